"""One HTML page that shows what a model's neurons do: no server, no network, one file to mail.

The masks themselves travel in the page as packed bits (about half a megabyte for 60 pairs × 12 sites × 4096),
and the page works overlaps and owners out in the browser; trees, tests and scores come from an `Analysis`. A
content security policy in the page forbids it to load anything. The template is in `templates/`.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from scipy.cluster.hierarchy import leaves_list
from torch import Tensor

from nspec_hf import __version__
from nspec_hf.analysis.analysis import Analysis, general_share, recipe_of
from nspec_hf.analysis.figures.neurons import family_colours
from nspec_hf.analysis.gain_tables import Gains
from nspec_hf.analysis.general_specific import general_neurons
from nspec_hf.analysis.result import site_label, to_plain
from nspec_hf.core import Pair, pack, write_text

SCRIPTS = ("report_data.js", "report_map.js", "report_charts.js", "report_neurons.js", "report_page.js")
_SECTIONS = {
    "overview": "Overview",
    "gains": "Gains",
    "overlap": "Overlap",
    "layers": "Layers",
    "tree": "Tree",
    "neurons": "Neurons",
    "efficiency": "Efficiency",
    "recipe": "Recipe",
}
_TESTED_COLUMNS = [("p", "number"), ("p (Holm)", "number"), ("Verdict", "")]
_DEFINITIONS = (
    ("overlap", "intersection over union of the neurons kept at a site; undefined where both keep none"),
    (
        "languages",
        "a language stands for the pairs from it (encoder) or into it (decoder): the mean over all couples "
        "of two different pairs",
    ),
    ("tree", "scipy, complete linkage of 1 − IoU, optimal leaf order"),
    (
        "permutation p",
        "one-sided, of mean IoU within minus across families; all relabelings where at most 10,000, else as "
        "many drawn, and p = (1 + hits) / (1 + drawn)",
    ),
)


def report_html(analysis: Analysis, title: str | None = None) -> str:
    """Return the page as text.

    Args:
        analysis: Of masks alone, or with statistics, scores and significance, which add sections.
        title: Heading; None names the base model.
    """
    environment = Environment(
        loader=PackageLoader("nspec_hf.analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed}
    # Style sheet and scripts are part of the package, not of the data, so they need no escaping.
    environment.globals["source"] = lambda name: Markup(environment.loader.get_source(environment, name)[0])
    base = analysis.masks.recipe.base_model
    gains = _gains(analysis)
    return environment.get_template("report.html.jinja").render(
        title=title or (f"Neurons of {base}" if base else "Neurons of a translation model"),
        lead=_lead(analysis),
        sections=[(anchor, name) for anchor, name in _SECTIONS.items() if anchor != "gains" or gains],
        tiles=_tiles(analysis),
        gains=gains,
        sides=[side for side in ("encoder", "decoder") if any(s.side == side for s in analysis.masks.sites)],
        efficiency=_efficiency(analysis),
        recipe=_recipe(analysis),
        data=_embed(_data(analysis)),
        scripts=SCRIPTS,
    )


def write_report(analysis: Analysis, path: str | Path, title: str | None = None) -> Path:
    """Write the page to a file, whose folder is made if needed; return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, report_html(analysis, title))
    return path


def _data(analysis: Analysis) -> dict[str, Any]:
    masks, agreement, pivot = analysis.masks, analysis.agreement, analysis.pivot or "en"
    general = general_neurons(masks)
    columns = ("within", "across", "p_value", "relabelings", "exact")
    return {
        "pairs": [
            {"name": str(p), "source": p.source, "target": p.target, "group": p.group(pivot)}
            for p in masks.pairs
        ],
        "pivot": analysis.pivot,
        "families": dict(analysis.families),
        "colours": family_colours(analysis.families),
        "sites": [
            {
                "name": site.name,
                "label": site_label(site),
                "side": site.side,
                "layer": site.layer,
                "width": site.width,
                "bits": _base64(masks.keep[site.name]),
                "general_bits": _base64(general[site.name]),
            }
            for site in masks.sites
        ],
        "agreement": {
            site.name: {name: getattr(agreement, name)[number] for name in columns}
            for number, site in enumerate(agreement.sites)
        },
        "trees": {
            name: {
                "languages": tree.languages,
                "leaves": [tree.languages[i] for i in leaves_list(tree.linkage)],
                "linkage": tree.linkage.round(6),
                "left_out": tree.left_out,
                "cophenetic": tree.cophenetic,
                "with_families": agreement.tree_correlation[_position(agreement.sites, name)],
            }
            for name, tree in analysis.trees.items()
        },
    }


def _position(sites: Sequence[Any], name: str) -> int:
    return [site.name for site in sites].index(name)


def _base64(keep: Tensor) -> str:
    return base64.b64encode(pack(keep).numpy().tobytes()).decode("ascii")


def _embed(data: Mapping[str, Any]) -> Markup:
    # Inside a script element only "<" can end the data early; JSON may write it as an escape.
    text = json.dumps(to_plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _lead(analysis: Analysis) -> str:
    pairs, recipe = analysis.masks.pairs, analysis.masks.recipe
    languages = {code for pair in pairs for code in (pair.source, pair.target)}
    method = {
        "coverage": "chosen by coverage of activations",
        "te": "allocated by importance (Taylor expansion)",
        "av": "allocated by importance (absolute value)",
        "random": "drawn at random",
    }.get(recipe.method, "given as masks")
    sites = len(analysis.masks.sites)
    return f"{len(pairs)} directions between {len(languages)} languages at {sites} sites; neurons {method}."


def _tiles(analysis: Analysis) -> list[dict[str, str]]:
    masks = analysis.masks
    neurons = sum(site.width for site in masks.sites)
    size = sum(pack(masks.keep[site.name]).numel() for site in masks.sites)
    density = float(np.average(analysis.density.density.mean(axis=1), weights=[s.width for s in masks.sites]))
    tiles = [
        {
            "value": f"{density:.1%}",
            "name": "of neurons kept by a pair",
            "note": f"of {neurons:,} at all sites",
        },
        {
            "value": f"{general_share(masks):.1%}",
            "name": "of neurons are general",
            "note": _general_note(analysis),
        },
        {"value": _bytes(size), "name": "masks of all pairs", "note": "no extra parameters"},
    ]
    kin = _kinship(analysis)
    if kin is not None:
        tiles.append(kin)
    return tiles + _gain_tiles(analysis)


def _general_note(analysis: Analysis) -> str:
    return "kept by every pair" if analysis.masks.general is None else "so allocated"


def _kinship(analysis: Analysis) -> dict[str, str] | None:
    agreement = analysis.agreement
    number = next((n for n, site in enumerate(agreement.sites) if site.side == "decoder"), 0)
    if math.isnan(agreement.p_value[number]):
        return None
    within, across, p_value = (getattr(agreement, f)[number] for f in ("within", "across", "p_value"))
    shown = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    name = f"IoU within / across families, {site_label(agreement.sites[number])}"
    return {"value": f"{within:.2f} / {across:.2f}", "name": name, "note": f"{shown}, permutation test"}


def _gain_tiles(analysis: Analysis) -> list[dict[str, str]]:
    comparison = analysis.comparison
    if comparison is not None:
        names = dict.fromkeys((row.system_name, row.metric) for row in comparison.rows)
        tested = {(system, metric): comparison.counts(metric, system) for system, metric in names}
        return [
            {
                "value": f"{counts['better']} / {counts['worse']} / {counts['not significant']}",
                "name": f"better / worse / not significant, {metric}",
                "note": f"{system} against {comparison.baseline_name}, p < {comparison.alpha}",
            }
            for (system, metric), counts in tested.items()
        ]
    if analysis.gains is not None:
        means = analysis.gains.by_group().mean[:, -1]
        best = int(np.nanargmax(means))
        name = f"mean gain of {analysis.gains.systems[best]}"
        return [{"value": _signed(means[best]), "name": name, "note": f"over {analysis.gains.baseline}"}]
    return []


def _gains(analysis: Analysis) -> dict[str, Any] | None:
    """Return the table of gains: from the significance tests where there are some, else from scores."""
    pivot, comparison = analysis.pivot or "en", analysis.comparison
    if comparison is not None:
        rows = [
            _gain_row(r.pair, pivot, r.baseline, r.system, f"{r.system_name}, {r.metric}")
            | {"p_value": r.p_value, "p_holm": r.p_holm}
            | {"verdict": r.verdict_in_words(comparison.alpha), "css": r.verdict.split()[0]}
            for r in comparison.rows
        ]
        test = {"ar": "paired approximate randomization", "bs": "paired bootstrap"}[comparison.test]
        summary = (
            f"Against {comparison.baseline_name}. Verdicts at p < {comparison.alpha} for a direction alone "
            f"({test}, {comparison.n_samples:,} samples, seed {comparison.seed}); the second p is Holm's, of "
            "all together."
        )
        doubts = comparison.doubts()
        summary += f" {doubts[0].upper()}{doubts[1:]}." if doubts else ""
    elif analysis.gains is not None:
        rows = _untested_rows(analysis.gains, pivot)
        name = analysis.gains.baseline
        summary = f"Against {name}. No significance test was given, so small gains may be chance."
    else:
        return None
    # Each table of a system and metric has its own scale.
    most: dict[str, float] = {}
    for row in rows:
        most[row["choice"]] = max(most.get(row["choice"], 0.0), abs(row["delta"]))
    for row in rows:
        length = 50 * abs(row["delta"]) / (most[row["choice"]] or 1.0)
        row["bar"] = (0 if row["delta"] > 0 else round(-length, 2), round(length, 2))
    columns = [("Direction", ""), ("Group", ""), ("Baseline", "number"), ("System", "number"), ("Gain", "")]
    return {
        "rows": rows,
        "summary": summary,
        "tested": comparison is not None,
        "columns": columns + ([] if comparison is None else _TESTED_COLUMNS),
        "choices": list(dict.fromkeys(row["choice"] for row in rows)),
    }


def _untested_rows(found: Gains, pivot: str) -> list[dict[str, Any]]:
    return [
        _gain_row(pair, pivot, found.reference[i], found.score[row, i], system)
        for row, system in enumerate(found.systems)
        for i, pair in enumerate(found.pairs)
        if not math.isnan(found.score[row, i])
    ]


def _gain_row(pair: Pair, pivot: str, baseline: float, system: float, choice: str) -> dict[str, Any]:
    row = {"pair": str(pair), "group": pair.group(pivot), "choice": choice, "css": "plain"}
    return row | {
        "baseline": float(baseline),
        "system": float(system),
        "delta": float(system) - float(baseline),
    }


def _efficiency(analysis: Analysis) -> list[dict[str, str]]:
    found = analysis.efficiency
    return [
        {
            "system": system,
            "parameters": f"{found.extra_parameters[i]:,.0f}",
            "bytes": _bytes(found.extra_bytes[i]),
            "seconds": "–"
            if math.isnan(found.extraction_seconds[i])
            else f"{found.extraction_seconds[i]:,.1f} s",
            "computed": f"{found.computed[i]:.1%}",
        }
        for i, system in enumerate(found.systems)
    ]


def _recipe(analysis: Analysis) -> list[tuple[str, str]]:
    masks, comparison = analysis.masks, analysis.comparison
    recipe = recipe_of(masks)
    tokens = recipe.pop("tokens", None) or {}
    rows = [("masks", f"fingerprint {masks.fingerprint()}")]
    rows += [(name.replace("_", " "), _words(value)) for name, value in recipe.items() if value]
    if tokens:
        rows.append(("tokens counted", f"{sum(tokens.values()):,} of {len(tokens)} pairs"))
    rows.append(("general", "allocated to all pairs" if masks.general is not None else "kept by every pair"))
    rows += _DEFINITIONS
    rows.append(("seed of the test", str(analysis.agreement.seed)))
    if analysis.pivot:
        rows.append(
            ("pivot", f"{analysis.pivot}; left out of languages, tree and test, since every pair has it")
        )
    if comparison is not None:
        rows += [("scores", text) for text in sorted({f"{r.metric}: {r.signature}" for r in comparison.rows})]
    rows += [(f"no {name}", why) for name, why in analysis.notes.items()]
    return [*rows, ("page", f"nspec_hf {__version__}, torch {torch.__version__}")]


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_words(entry)}" for name, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_words(entry) for entry in value)
    return str(value)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
