"""Publish masks with all that a reader of their page needs, in one commit.

    README.md                  the card: use, gains with significance, heat map, recipe; scores as metadata
    nspec_masks.safetensors    the masks; config.json and nspec_config.json name their model and their gate
    figures/overlap.png        which neurons pairs share
    scores/NAME.json           what `nspec evaluate` wrote, signatures and decoding included
    comparison.json            what `nspec compare` wrote
    report.html                the page of `nspec report`

One repository may hold several sets of masks, each in a folder of its own; its first page then lists them.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, EvalResult, ModelCard

from nspec_hf.analysis import analyze, draw_overlap_layers, save_figure, write_report
from nspec_hf.core import ConfigError, Pair, Table, as_pairs, read_json, require, write_json, write_text
from nspec_hf.evaluation import Comparison, SystemScores, require_names
from nspec_hf.masks import (
    CONFIG_FILE,
    NeuronMasks,
    card_text,
    facts_without_paths,
    front_matter,
    prepare,
    pull,
    stats_without_paths,
    upload,
)
from nspec_hf.recording import ActivationStats, weight_fingerprint
from nspec_hf.serving.loading import LoadedModel

_SETS = "sets"
_CARD = "README.md"


def publish(
    loaded: LoadedModel,
    repo: str,
    *,
    model: str | None = None,
    model_revision: str | None = None,
    subfolder: str = "",
    scores: Sequence[SystemScores] = (),
    comparison: Comparison | None = None,
    dataset: str = "",
    stats: ActivationStats | None = None,
    families: Mapping[str, str] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload neuron masks",
) -> CommitInfo:
    """Upload masks, card, scores, figure and report in one commit; `load(repo)` takes it from there.

    Needs `pip install nspec-hf[analysis]`. A push that is interrupted has changed nothing; do it again.

    Args:
        loaded: The masks with their model and gate, as `load("runs/mine")` gives them.
        repo: Its id, `user/name` or `organization/name`; made where there is none.
        model: Id of the repository of the model that they go with. The base that was counted if not given,
            which is right as long as it was not trained since.
        model_revision: Its revision.
        subfolder: Folder for these masks, where the repository is to hold several sets.
        scores: What systems scored, the published one the last.
        comparison: Significance of the gains.
        dataset: What the scores were made on, for their metadata: `multi30k test_2016_flickr`.
        stats: What the masks were selected from; uploaded beside them.
        families: Language → family, for the figure; None takes those known of the
            languages of M2M-100, mBART and NLLB.
        private: Whether a new repository is private; the account's default if not given.
        token: Of the Hub; the one that is logged in if not given.
        revision: A branch, made where there is none; main if not given.
        message: Of the commit.

    Returns:
        The Hub's answer; its `oid` is a `revision` for `load`.

    Raises:
        ConfigError: If there are no masks, scores have no `dataset`, or the model was trained since its masks
            were counted and is not named.
        ValueError: If the Hub refuses the card.
    """
    masks, gate = loaded.masks, loaded.gate
    if masks is None or gate is None:
        raise ConfigError(f"{loaded.source} has no masks to publish")
    require_names([re.sub(r"[^\w.-]", "_", each.name) for each in scores])  # as their files are called
    require(bool(dataset) or not scores, "scores need a dataset='NAME SPLIT' that they were made on")
    fingerprint = weight_fingerprint(loaded.model)
    if model is None and fingerprint != masks.recipe.weight_fingerprint:
        raise ConfigError(
            f"the weights of {loaded.base} ({fingerprint}) are not those that the masks were counted on "
            f"({masks.recipe.weight_fingerprint or 'not stated'}): upload that model, and name it: "
            "model='user/name'"
        )
    published = masks.without_paths(model)
    stats = None if stats is None else stats_without_paths(stats)
    scores = [replace(each, generation=facts_without_paths(each.generation)) for each in scores]
    use = {"gate": asdict(gate.config), "fingerprint": fingerprint, "revision": model_revision}
    repo, parent = prepare(repo, private=private, token=token, revision=revision)
    with tempfile.TemporaryDirectory() as temporary:
        root, folder = Path(temporary), Path(temporary) / subfolder
        figures = _contents(folder, published, scores, comparison, stats, families)
        published.save_pretrained(folder, repo=repo, model=model, stats=stats, use=use)
        # Every table with its signatures, tests and decoding.
        sections = {} if comparison is None else {"Gains": comparison.table().render("markdown")}
        if scores:
            sections["Scores"] = "\n".join(each.table().render("markdown") for each in scores)
        sections["Report"] = "[report.html](report.html) shows what each pair's neurons do."
        card = card_text(
            published,
            repo=repo,
            model=model,
            figures=figures,
            sections=sections,
            results=_results(scores[-1], dataset) if scores else (),
            snippet=_snippet(published, repo, subfolder),
        )
        write_text(folder / _CARD, card)
        _index(root, repo, parent, subfolder, token)
        for path in {root / _CARD, folder / _CARD}:
            if path.is_file():
                ModelCard.load(path).validate()
        below = f"{subfolder}/" if subfolder else ""
        stale = ("figures/*", "scores/*", "comparison.json", "report.html", "nspec_stats.safetensors")
        return upload(
            root,
            repo,
            parent,
            token=token,
            revision=revision,
            message=message,
            replaces=[f"{below}{name}" for name in stale],
        )


def _contents(
    folder: Path,
    masks: NeuronMasks,
    scores: Sequence[SystemScores],
    comparison: Comparison | None,
    stats: ActivationStats | None,
    families: Mapping[str, str] | None,
) -> list[str]:
    """Write figure, scores, comparison and report; return the figures' paths in the folder."""
    for system in scores:
        name = re.sub(r"[^\w.-]", "_", system.name)
        system.save(folder / "scores" / f"{name}.json")
    if comparison is not None:
        comparison.save(folder / "comparison.json")
    metric = scores[0].metrics[0] if scores else ""
    values: dict[str, dict[str, float]] = {
        each.name: {pair: each.value(pair, metric) for pair in each.pairs} for each in scores
    }
    analysis = analyze(masks, stats, values or None, families, comparison=comparison, metric=metric or "bleu")
    write_report(analysis, folder / "report.html")
    if len(analysis.progression.languages) < 2:
        return []
    drawn = draw_overlap_layers(analysis.progression, analysis.families)
    _, in_lines = save_figure(drawn, folder / "figures", "overlap")
    in_lines.unlink()  # the card shows the other one
    return ["figures/overlap.png"]


def _results(system: SystemScores, dataset: str) -> list[EvalResult]:
    """Return a system's scores as the Hub's metadata, signature included."""
    name, _, split = dataset.partition(" ")
    return [
        EvalResult(
            task_type="translation",
            task_name=f"Translation {pair}",
            dataset_type=name,
            dataset_name=dataset,
            dataset_config=str(pair),
            dataset_split=split or None,
            metric_type=metric.split(":")[0].rstrip("+"),
            metric_name=metric,
            metric_value=round(score.value, 4),
            metric_config=score.signature,
        )
        for pair, by_metric in system.scores.items()
        for metric, score in by_metric.items()
    ]


def _snippet(masks: NeuronMasks, repo: str, subfolder: str) -> str:
    where = json.dumps(repo) + (f", subfolder={json.dumps(subfolder)}" if subfolder else "")
    sentence = json.dumps(f"A sentence in {masks.pairs[0].source}.")
    return (
        f"from nspec_hf import load\n\nmasks = load({where})\n"
        f"print(masks.translate([{sentence}], {json.dumps(masks.pairs[0])}))"
    )


def _index(root: Path, repo: str, parent: str, subfolder: str, token: str | bool | None) -> None:
    """Write the repository's own config.json and first page, if it holds sets in folders.

    Other sets stay as in the commit `parent`; `subfolder` is empty where the set is the repository's own.
    """
    there = pull(repo, [CONFIG_FILE], parent, download={"token": token}) / CONFIG_FILE
    old = read_json(there) if there.is_file() else {}
    sets = dict(old.get(_SETS, {}))
    if not subfolder:
        if sets:
            write_json(root / CONFIG_FILE, {**read_json(root / CONFIG_FILE), _SETS: sets})
        return
    masks = NeuronMasks.from_pretrained(root / subfolder)
    sets[subfolder] = {
        "pairs": [str(pair) for pair in masks.pairs],
        "density": round(masks.density(), 4),
        "method": masks.recipe.method,
        "settings": masks.recipe.settings,
        "model": read_json(root / subfolder / CONFIG_FILE).get("model") or masks.recipe.base_model,
        "fingerprint": masks.fingerprint(),
    }
    write_json(root / CONFIG_FILE, {"library_name": "nspec_hf", **old, _SETS: sets})
    if "masks" not in old:  # else the first page is the card of the repository's own masks
        write_text(root / _CARD, _first_page(repo, sets))


def _first_page(repo: str, sets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the card of a repository that holds several sets of masks."""
    pairs: list[Pair] = as_pairs(dict.fromkeys(pair for each in sets.values() for pair in each["pairs"]))
    rows = tuple(
        (f"[{name}]({name}/README.md)", len(each["pairs"]), each["density"], each["method"], each["model"])
        for name, each in sorted(sets.items())
    )
    columns = ("set", "pairs", "share of neurons kept", "method", "model")
    table = Table(title="Sets of masks", columns=columns, rows=rows, digits=3).render("markdown")
    code = "\n".join(f"load({json.dumps(repo)}, subfolder={json.dumps(name)})" for name in sorted(sets))
    snippet = f"```python\nfrom nspec_hf import load\n\n{code}\n```"
    return f"{front_matter(pairs)}\n\n# Neuron masks\n\n{table}\n{snippet}\n"
