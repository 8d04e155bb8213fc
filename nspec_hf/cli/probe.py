"""What `nspec probe` does: it asks a model what erasing neurons costs, and how stable its masks are."""

import sys
from collections.abc import Mapping, Sequence

from nspec_hf import analysis, data, evaluation, masks as masks_room, recording, serving
from nspec_hf.cli.pipeline import load
from nspec_hf.core import ConfigError, Table, needs, require_count, require_writable

_TRANSLATED = "erase or coverages or generals"  # what translates


@needs(
    erase_of="erase",
    test_split=_TRANSLATED,
    lines=_TRANSLATED,
    metric=_TRANSLATED,
    translate=_TRANSLATED,
    split="sizes",
    seeds="sizes",
)
def probe(
    masks: str,
    model: str,
    corpus: data.CorpusConfig,
    output: str = "analysis",
    stats: str | None = None,
    split: str = "valid",
    test_split: str = "test",
    lines: int = 200,
    erase: bool = True,
    erase_of: Sequence[str] = (),
    sizes: Sequence[int] = (100, 200, 500),
    seeds: Sequence[int] = (1, 2, 3),
    coverages: Sequence[float] = (),
    generals: Sequence[float] = (),
    metric: str = "bleu",
    translate: evaluation.TranslateConfig = evaluation.TranslateConfig(num_beams=1),
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    figures: bool = True,
) -> None:
    """Ask a model: what does erasing neurons cost, what do masks of other settings, how stable are they?

    It translates and records, so it takes as long as the text is long; `nspec analyze` works on files alone.

    Example: nspec probe --masks masks --model runs/mine/model --corpus.path data --lines 100

    Args:
        masks: Folder or Hub repository of masks.
        model: Hub id or folder of the model that was trained with them.
        corpus: Where the text lies: --corpus.path DIR with DIR/test.en, DIR/test.de …
        output: Folder of tables (JSON, CSV) and figures (PNG, SVG).
        stats: File of the statistics that the masks were selected from; `coverages` and `generals` need it.
        split: Text that is recorded for stability.
        test_split: Text that is translated.
        lines: Sentences of each pair that are translated.
        erase: Whether to erase a fifth of the general neurons, and half of each pair's own.
        erase_of: Pairs, `[en-de,en-fr]`: half of the own neurons of each are taken from all pairs, one
            ablation each, which shows whether the others need them too.
        sizes: Numbers of sentences a pair to record, beside all of them, to see how masks change with the
            amount of text; `[]` leaves stability out.
        seeds: Of random samples of the smallest size, which are recorded too.
        coverages: Coverages k whose masks are tried without training.
        generals: Shares ρ of general neurons whose masks are tried without training.
        metric: What translations are scored by: bleu, chrf++ …
        translate: How text is decoded.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code that the model's repository brings may run on this machine.
        figures: Whether to draw; without, only tables are written.
    """
    require_writable(output, is_folder=True)
    held = masks_room.NeuronMasks.from_pretrained(masks)
    recorded = recording.ActivationStats.load(stats) if stats else None
    if (coverages or generals) and recorded is None:
        raise ConfigError("masks of other settings are selected from statistics; give --stats FILE")
    require_count("lines", lines)
    for size in sizes:
        require_count("a number of sizes", size)
    for seed in seeds:
        require_count("a seed", seed, least=0)
    network, tags = load(model, codes, trust_remote_code)
    results: dict[str, tuple[analysis.Result, analysis.Figure]] = {}
    if erase or coverages or generals:
        texts = data.read_corpus(corpus, held.pairs, test_split)
        tests = [data.PairText(text.pair, text.sources[:lines], text.targets[:lines]) for text in texts]
        acted = serving.as_trained(model, held)
        silence = acted.silence if acted else "neuron"
        score = analysis.scorer(network, tags, tests, metric, translate, silence)
        if erase:
            ablation = analysis.ablate(held, score, erase_of)
            results["ablation"] = ablation, analysis.draw_ablation(ablation)
            sys.stdout.write(f"{_ablation_table(ablation, metric, lines)}\n")
        pivot = analysis.find_pivot(held.pairs) or "en"
        swept = analysis.masked_gains(score, recorded, coverages, generals, pivot=pivot) if recorded else []
        for gains in swept:
            results[analysis.file_name("gains against", gains.setting)] = (
                gains,
                analysis.draw_setting_gains(gains),
            )
    if sizes:
        encoded = data.encode_corpus(data.read_corpus(corpus, held.pairs, split), tags)
        told = vars(recorded.config) if recorded else held.recipe.settings
        counted = {name: told[name] for name in ("count", "active_on") if name in told}
        as_counted = recording.RecordConfig(**counted)
        samples = analysis.recordings(network, tags, encoded, sizes, seeds, as_counted)
        stability = analysis.stability(samples, held.recipe.settings.get("coverage", 0.95))
        results["stability"] = stability, analysis.draw_stability(stability)
    paths = [path for name, (result, _) in results.items() for path in result.save(output, name)]
    if figures:
        paths += [
            path for name, (_, drawn) in results.items() for path in analysis.save_figure(drawn, output, name)
        ]
    sys.stdout.write(f"{output}: {', '.join(path.name for path in paths)}\n")


def _ablation_table(result: "analysis.Ablation", metric: str, lines: int) -> Table:
    rows = tuple((kind, *result.mean_change(row)) for row, kind in enumerate(result.kinds))
    shares = f"of general: {result.general_share:.0%}, of specific: {result.specific_share:.0%}"
    about = f"{shares}; seed {result.seed}"
    return Table(
        title=f"{metric} after erasing neurons, mean over {len(result.pairs)} directions",
        columns=("erased", metric, "change", "of the pair itself", "of the others"),
        rows=rows,
        notes=(about, f"the first {lines} sentences of each direction"),
    )
