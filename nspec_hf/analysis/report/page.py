"""One HTML page that shows what a model's neurons do: no server, no network, one file to mail.

The masks themselves travel in the page as packed bits (about half a megabyte for 60 pairs × 12 sites × 4096),
and the page works overlaps and owners out in the browser; trees, tests and scores come from an `Analysis`. A
content security policy in the page forbids it to load anything. The template is in `templates/`.
"""

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from torch import Tensor

from nspec_hf import __version__
from nspec_hf.analysis.analysis import Analysis
from nspec_hf.analysis.general_specific import general_neurons, general_share
from nspec_hf.analysis.language_families import family_colours
from nspec_hf.analysis.result import p_text, site_label
from nspec_hf.core import languages_of, pack, plain, write_text
from nspec_hf.evaluation import VERDICTS

SCRIPTS = ("report_data.js", "report_map.js", "report_charts.js", "report_neurons.js", "report_page.js")
_SECTIONS = ("overview", "gains", "overlap", "layers", "tree", "neurons", "efficiency", "recipe")
_METHODS = {
    "coverage": "chosen by coverage of activations",
    "chance": "drawn with chances that follow activity",
    "te": "allocated by importance (Taylor expansion)",
    "av": "allocated by importance (absolute value)",
    "random": "drawn at random",
}
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
    """Return the page as text; without a title it names the base model."""
    loader = PackageLoader("nspec_hf.analysis.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"bytes": _bytes, "signed": _signed}
    # Style sheet and scripts are part of the package, not of the data, so they need no escaping.
    environment.globals["source"] = lambda name: Markup(loader.get_source(environment, name)[0])
    base, gains = analysis.masks.recipe.base_model, _gains(analysis)
    return environment.get_template("report.html.jinja").render(
        title=title or (f"Neurons of {base}" if base else "Neurons of a translation model"),
        lead=_lead(analysis),
        sections=[name for name in _SECTIONS if name != "gains" or gains],
        tiles=_tiles(analysis),
        gains=gains,
        pivot=analysis.pivot or "en",
        sides=list(dict.fromkeys(site.side for site in analysis.masks.sites)),
        efficiency=analysis.efficiency.to_pandas().to_dict("records"),
        recipe=_recipe(analysis),
        data=_embed(_data(analysis)),
        scripts=SCRIPTS,
    )


def write_report(analysis: Analysis, path: str | Path, title: str | None = None) -> Path:
    """Write the page to a file, whose folder is made if needed; return its path."""
    write_text(path, report_html(analysis, title))
    return Path(path)


def _data(analysis: Analysis) -> dict[str, Any]:
    """Return what the page's scripts read."""
    masks, agreement, pivot = analysis.masks, analysis.agreement, analysis.pivot or "en"
    general = general_neurons(masks)
    columns = ("within", "across", "p_value", "relabelings", "exact")
    site_names = [site.name for site in agreement.sites]
    return {
        "pairs": [
            {"name": str(p), "source": p.source, "target": p.target, "group": p.group(pivot)}
            for p in masks.pairs
        ],
        "pivot": analysis.pivot,
        "families": analysis.families,
        "colours": family_colours(analysis.families),
        "sites": [
            {
                **{field: getattr(site, field) for field in ("name", "side", "layer", "width")},
                "label": site_label(site),
                "bits": _base64(masks.keep[site.name]),
                "general_bits": _base64(general[site.name]),
            }
            for site in masks.sites
        ],
        "agreement": {
            name: {column: getattr(agreement, column)[number] for column in columns}
            for number, name in enumerate(site_names)
        },
        "trees": {
            name: {
                "languages": tree.languages,
                "leaves": tree.leaves,
                "linkage": tree.linkage.round(6),
                "left_out": tree.left_out,
                "cophenetic": tree.cophenetic,
                "with_families": agreement.tree_correlation[site_names.index(name)],
            }
            for name, tree in analysis.trees.items()
        },
    }


def _base64(keep: Tensor) -> str:
    return base64.b64encode(pack(keep).numpy().tobytes()).decode("ascii")


def _embed(data: Mapping[str, Any]) -> Markup:
    # Inside a script element only "<" can end the data early; JSON may write it as an escape.
    text = json.dumps(plain(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _lead(analysis: Analysis) -> str:
    pairs, sites = analysis.masks.pairs, analysis.masks.sites
    method = _METHODS.get(analysis.masks.recipe.rule, "given as masks")
    languages = len(languages_of(pairs))
    return f"{len(pairs)} directions between {languages} languages at {len(sites)} sites; neurons {method}."


def _tiles(analysis: Analysis) -> list[tuple[str, str, str]]:
    """Return the numbers at the top of the page: value, name and note."""
    masks, width = analysis.masks, sum(site.width for site in analysis.masks.sites)
    general = "kept by every pair" if masks.general is None else "so allocated"
    tiles = [
        (f"{masks.density():.1%}", "of neurons kept by a pair", f"of {width:,} at all sites"),
        (f"{general_share(masks):.1%}", "of neurons are general", general),
        (_bytes(analysis.efficiency.extra_bytes[0]), "masks of all pairs", "no extra parameters"),
    ]
    agreement = analysis.agreement
    number = next((n for n, site in enumerate(agreement.sites) if site.side == "decoder"), 0)
    if not math.isnan(agreement.p_value[number]):
        name = f"IoU within / across families, {site_label(agreement.sites[number])}"
        value = f"{agreement.within[number]:.2f} / {agreement.across[number]:.2f}"
        tiles.append((value, name, f"{p_text(agreement.p_value[number])}, permutation test"))
    comparison, gains = analysis.comparison, analysis.gains
    if comparison is not None:
        for system, metric in comparison.tested():
            value = " / ".join(map(str, comparison.counts(metric, system).values()))
            note = f"{system} against {comparison.baseline_name}, p < {comparison.alpha}"
            tiles.append((value, f"{' / '.join(VERDICTS)}, {metric}", note))
    elif gains is not None and not np.isnan(means := gains.by_group().mean[:, -1]).all():
        best = int(np.nanargmax(-means if gains.lower_is_better else means))
        tiles.append((_signed(means[best]), f"mean gain of {gains.systems[best]}", f"over {gains.baseline}"))
    return tiles


def _gains(analysis: Analysis) -> dict[str, Any] | None:
    """Return the table of gains: from the significance tests where there are some, else from scores."""
    comparison, gains = analysis.comparison, analysis.gains
    if comparison is not None:
        rows: list[dict[str, Any]] = [
            vars(r)
            | {"choice": f"{r.system_name}, {r.metric}", "css": r.verdict.split()[0]}
            | {"verdict": r.verdict_in_words(comparison.alpha)}
            for r in comparison.rows
        ]
        test = {"ar": "paired approximate randomization", "bs": "paired bootstrap"}[comparison.test]
        doubts = comparison.doubts()
        summary = (
            f"Against {comparison.baseline_name}. Verdicts at p < {comparison.alpha} for a direction alone "
            f"({test}, {comparison.n_samples:,} samples, seed {comparison.seed}); the second p is Holm's, of "
            f"all together.{f' {doubts[0].upper()}{doubts[1:]}.' if doubts else ''}"
        )
    elif gains is not None:
        rows = [
            {"pair": pair, "baseline": gains.reference[i], "system": gains.score[row, i]}
            | {"delta": gains.change[row, i], "choice": system, "css": "plain"}
            for row, system in enumerate(gains.systems)
            for i, pair in enumerate(gains.pairs)
            if not math.isnan(gains.score[row, i])
        ]
        summary = f"Against {gains.baseline}. No significance test was given, so small gains may be chance."
    else:
        return None
    # Each table of a system and metric has its own scale.
    most: dict[str, float] = {}
    for row in rows:
        most[row["choice"]] = max(most.get(row["choice"], 0.0), abs(row["delta"]))
    for row in rows:
        length = 50 * abs(row["delta"]) / (most[row["choice"]] or 1.0)
        row["bar"] = (0 if row["delta"] > 0 else round(-length, 2), round(length, 2))
    return {"rows": rows, "summary": summary, "tested": comparison is not None, "choices": list(most)}


def _recipe(analysis: Analysis) -> list[tuple[str, str]]:
    masks, pivot = analysis.masks, analysis.pivot
    recipe = plain(masks.recipe)
    tokens = recipe.pop("tokens", None) or {}
    rows = [("masks", f"fingerprint {masks.fingerprint()}")]
    rows += [(name.replace("_", " "), _words(value)) for name, value in recipe.items() if value]
    if tokens:
        rows.append(("tokens counted", f"{sum(tokens.values()):,} of {len(tokens)} pairs"))
    rows.append(("general", "allocated to all pairs" if masks.general is not None else "kept by every pair"))
    rows += [*_DEFINITIONS, ("seed of the test", str(analysis.agreement.seed))]
    if pivot:
        rows.append(("pivot", f"{pivot}; left out of languages, tree and test, since every pair has it"))
    if analysis.comparison is not None:
        rows += [("scores", text) for text in analysis.comparison.signatures()]
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


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
