"""What `nspec evaluate` and `nspec compare` do: score translations, and test differences between systems.

Both read translations in a folder, one file a pair (`en-de.txt`, `de-en.hyp.xz` …), from any system.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from nspec_hf import data, evaluation
from nspec_hf.core import (
    ConfigError,
    Pair,
    TableFormat,
    as_pairs,
    join_tables,
    languages_of,
    listed,
    needs,
    pivot_of,
    require,
    require_writable,
)


@needs(split="corpus", sources="not corpus", tiers_from="not tiers", comet_model="comet_out")
def evaluate(
    hypotheses: str,
    references: str | None = None,
    sources: str | None = None,
    corpus: data.CorpusConfig | None = None,
    split: str = "test",
    name: str | None = None,
    metric: str | Sequence[str] = ("bleu", "chrf++"),
    pivot: str = "en",
    tiers: dict[str, str] | None = None,
    tiers_from: str | None = None,
    off_target_languages: bool = False,
    style: TableFormat = "text",
    output: str | None = None,
    comet_out: str | None = None,
    comet_in: str | None = None,
    comet_model: str = evaluation.COMET_MODEL,
) -> None:
    """Score one system's translations, each direction and averages by group, with signatures.

    Example: nspec evaluate --hypotheses outputs --corpus.path data --split test --metric bleu,chrf++

    COMET cannot be installed beside transformers 5. `--comet-out DIR` writes its files and a script; run that
    where unbabel-comet is installed, then read the scores back with `--comet-in DIR`.

    Args:
        hypotheses: Folder of translations, one file a pair: en-de.txt, de-en.hyp.xz …, a sentence a line.
        references: Folder of references, one file a pair; or give --corpus.path.
        sources: Folder of sources, for COMET and for metrics that look at them; not needed with a corpus.
        corpus: Parallel text that holds sources and references: --corpus.path DIR with DIR/test.en,
            DIR/test.de … Its other settings: --corpus.help CorpusConfig.
        split: Which split of the corpus was translated.
        name: The system's name in tables; null takes the folder's.
        metric: bleu, bleu:none (text that is tokenized already), spbleu, chrf, chrf++, ter, or evaluate:NAME
            for one of the `evaluate` library (its name or a folder), which runs the script that it is; one,
            or several with commas.
        pivot: The language that tells one-to-many from many-to-one.
        tiers: Language → resource tier, for averages by tier: '{de: high, sv: low}'.
        tiers_from: Split of the corpus (train, say) whose sizes decide the tiers, instead of --tiers.
        off_target_languages: Also give the share of translations in the wrong language; needs
            `pip install nspec-hf[evaluate]`.
        style: How tables are printed.
        output: File that the scores are written to, as JSON; `nspec analyze` and `nspec report` read it.
        comet_out: Folder that COMET's files and script are written to.
        comet_in: The same folder, once the script has run; its scores are added.
        comet_model: The COMET model that the script asks for.
    """
    if output:
        require_writable(output)
    outputs = _read(hypotheses)
    languages = sorted(languages_of(as_pairs(outputs)))
    pivot = pivot_of(languages, pivot)
    require(
        pivot in ("en", *languages),
        f"pivot {pivot!r} is no language of the translations; they hold {', '.join(languages)}",
    )
    gold, original = _gold(outputs, references, sources, corpus, split)
    if comet_out:
        if original is None:
            raise ConfigError("COMET needs the sources; give --sources DIR or --corpus.path DIR")
        script = evaluation.write_comet(comet_out, outputs, gold, original, comet_model)
        sys.stdout.write(f"run where unbabel-comet is installed: sh {script}; then: --comet-in {comet_out}\n")
    if tiers_from and not tiers:
        tiers = _tiers(corpus, outputs, tiers_from, pivot)
    about: dict[str, Any] = {"pivot": pivot, "tiers": tiers or {}}
    if off_target_languages:
        about["off_target"] = evaluation.off_target(outputs, gold)
    scores = evaluation.score_system(
        name or Path(hypotheses).name, outputs, gold, _listed(metric), sources=original, **about
    )
    if comet_in:
        comet = evaluation.read_comet(comet_in, outputs)
        rows = {pair: {**own, "comet": comet[pair]} for pair, own in scores.scores.items() if pair in comet}
        scores = replace(scores, scores={**scores.scores, **rows})
    tables = [scores.table(), *(evaluation.grouped_table(scores, one) for one in scores.metrics)]
    if tiers:
        tables += [evaluation.grouped_table(scores, one, by="tier") for one in scores.metrics]
    sys.stdout.write(join_tables(tables, style))
    if output:
        scores.save(output)


@needs(split="corpus", references_ending="references")
def compare(
    baseline: str,
    system: str | Sequence[str],
    references: str | None = None,
    corpus: data.CorpusConfig | None = None,
    split: str = "test",
    baseline_ending: str = "",
    system_ending: str = "",
    references_ending: str = "",
    metric: str | Sequence[str] = ("bleu", "chrf++"),
    test: Literal["ar", "bs"] = "ar",
    n_samples: int = 10_000,
    seed: int = 12345,
    n_jobs: int | None = None,
    style: TableFormat = "text",
    output: str | None = None,
) -> None:
    """Test on every direction whether a system is better or worse than a baseline, or neither.

    Example: nspec compare --baseline finetune/outputs --system specialized/outputs --corpus.path data

    Args:
        baseline: Folder of the baseline's translations, one file a pair: en-de.txt, de-en.hyp.xz …
        system: Folder of a system's translations, or several with commas.
        references: Folder of references, one file a pair; or give --corpus.path.
        corpus: Parallel text that holds the references: --corpus.path DIR with DIR/test.en, DIR/test.de …
        split: Which split of the corpus was translated.
        baseline_ending: Which files of the folder are the baseline's, where it holds several a pair:
            `hyp` reads en-de.hyp.
        system_ending: The same for the system's files.
        references_ending: The same for the references.
        metric: bleu, spbleu, chrf, chrf++ or ter; one, or several with commas.
        test: ar: paired approximate randomization; bs: paired bootstrap.
        n_samples: How many trials a direction; the smallest p is 1 / (n_samples + 1).
        seed: Of the trials; 0 is a seed like any other.
        n_jobs: How many processes; null takes all processors.
        style: How the table is printed.
        output: File that all rows are written to, as JSON; `nspec analyze` and `nspec report` read it.
    """
    if output:
        require_writable(output)
    folders = [system] if isinstance(system, str) else list(system)
    base = _read(baseline, baseline_ending)
    base_name, *names = _names([baseline, *folders], [baseline_ending, *[system_ending] * len(folders)])
    systems = {base_name: base}
    systems |= {name: _read(each, system_ending) for name, each in zip(names, folders, strict=True)}
    gold, _ = _gold(base, references, None, corpus, split, references_ending)
    comparison = evaluation.compare(systems, gold, base_name, _listed(metric), test, n_samples, seed, n_jobs)
    sys.stdout.write(comparison.table().render(style))
    if output:
        comparison.save(output)


def _listed(metrics: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(listed(metrics) if isinstance(metrics, str) else metrics)


def _tiers(corpus: data.CorpusConfig | None, pairs: Iterable[str], split: str, pivot: str) -> dict[str, str]:
    """Return the tier of every language other than the pivot, by the size of its text with the pivot."""
    if corpus is None:
        raise ConfigError("tiers come from the sizes of a corpus; give --corpus.path DIR, or --tiers")
    languages = languages_of(as_pairs(pairs))
    texts = data.read_corpus(corpus, [Pair(pivot, code) for code in languages if code != pivot], split)
    return evaluation.tiers_from_sizes({text.pair.target: len(text) for text in texts})


def _read(folder: str, ending: str = "") -> dict[str, list[str]]:
    """Read a folder of translations; to the functions that take them, pairs are strings."""
    return {pair: lines for pair, lines in data.read_outputs(folder, ending).items()}


def _gold(
    pairs: Iterable[str],
    references: str | None,
    sources: str | None,
    corpus: data.CorpusConfig | None,
    split: str,
    ending: str = "",
) -> tuple[dict[str, list[str]], dict[str, list[str]] | None]:
    """Return references, and sources where they are known."""
    one = (references is None) != (corpus is None)
    require(one, "give the references as --references DIR or as --corpus.path DIR, and not both")
    if corpus is not None:
        texts = data.read_corpus(corpus, pairs, split)
        targets: dict[str, list[str]] = {text.pair: list(text.targets) for text in texts}
        return targets, {text.pair: list(text.sources) for text in texts}
    return _read(references or "", ending), _read(sources) if sources else None


def _names(folders: Sequence[str], endings: Sequence[str]) -> list[str]:
    """Return a name for each folder: the shortest end of its path that tells it from the others.

    What all end in says nothing: `ours/outputs` and `theirs/outputs` are `ours` and `theirs`.
    """
    paths = [Path(folder).resolve().parts for folder in folders]
    while len(set(paths)) == len(paths) and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path[-1]}.{ending}" for path, ending in zip(paths, endings, strict=True)]
