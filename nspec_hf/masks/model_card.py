"""The text of the model card: what masks are, how to use them, and how they were made.

Shape letters: S = sites, P = pairs.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from nspec_hf.core import Pair, languages_of, main_language
from nspec_hf.masks.bits import PackedMasks
from nspec_hf.masks.select import LIBRARY, Recipe

_ROWS = 200  # so many pairs are listed
_TAGS = ("neuron-masks", "neuron-specialization", "multilingual-translation")

_METHODS = {
    "coverage": "the most active neurons of a site that together cover a share of its activations "
    "([Tan et al. 2024](https://aclanthology.org/2024.emnlp-main.374), Eq. 1)",
    "chance": "as many neurons of a site as cover a share of its activations, drawn with chances that follow "
    "how often they fired",
    "te": "allocation by importance, estimated with a Taylor expansion "
    "([Xie et al. 2021](https://aclanthology.org/2021.acl-long.445), Eq. 9)",
    "av": "allocation by importance, estimated by the absolute value "
    "([Xie et al. 2021](https://aclanthology.org/2021.acl-long.445), Eq. 9)",
    "random": "drawn at random, as a control",
}


def iso_codes(pairs: Iterable[Pair]) -> list[str]:
    """Return the sorted ISO 639 codes of the pairs' languages, as the Hub wants them (`deu_Latn` → `deu`)."""
    codes = {main_language(code) for code in languages_of(pairs)}
    return sorted(code for code in codes if re.fullmatch("[a-z]{2,3}", code))


def front_matter(
    pairs: Iterable[Pair],
    *,
    tags: Sequence[str] = _TAGS,
    base: str = "",
    repo: str = "",
    results: Sequence[EvalResult] = (),
) -> str:
    """Return what a card begins with: its metadata for the Hub, as YAML between two lines.

    Args:
        pairs: Whose languages it names.
        tags: What it is searched by.
        base: The model that it is for; left out where it cannot be the id of a repository.
        repo: Hub id or folder, for scores.
        results: Scores.
    """
    data: dict[str, Any] = {
        "language": iso_codes(pairs) or None,
        "library_name": LIBRARY,
        "pipeline_tag": "translation",
        "tags": list(tags),
    }
    # The Hub refuses a card whose base model cannot be the id of a repository.
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", base) and not Path(base).exists():
        data |= {"base_model": base, "base_model_relation": "adapter"}
    if results:
        data |= {"model_name": repo.rpartition("/")[2], "eval_results": list(results)}
    return f"---\n{ModelCardData(**data).to_yaml()}\n---"


def usage_snippet(recipe: Recipe, pairs: Sequence[Pair], repo: str, model: str | None = None) -> str:
    """Return Python code that loads the masks and, where a model is known, translates their first pair.

    That is the model which was trained on, by Hub id or path, or else the base that the recipe names.
    """
    load_masks = f"masks = NeuronMasks.from_pretrained({json.dumps(repo)})"
    name = model or recipe.base_model
    if not name:
        return f"from nspec_hf import NeuronMasks\n\n{load_masks}\nprint(masks)"
    which = json.dumps(name)
    if recipe.revision and not model:
        which += f", revision={json.dumps(recipe.revision)}"
    sentence = json.dumps(f"A sentence in {pairs[0].source}.")
    return f"""from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from nspec_hf import NeuronMasks, Translator

{load_masks}
tokenizer = AutoTokenizer.from_pretrained({which})
model = AutoModelForSeq2SeqLM.from_pretrained({which})
translator = Translator(model, tokenizer, masks)
print(translator.translate([{sentence}], {json.dumps(pairs[0])}))"""


class _Masks(Protocol):
    """What the card reads of masks."""

    pairs: list[Pair]
    keep: PackedMasks
    recipe: Recipe

    def fingerprint(self) -> str: ...


def card_text(
    masks: _Masks,
    *,
    repo: str,
    model: str | None = None,
    figures: Sequence[str] = (),
    sections: Mapping[str, str] | None = None,
    results: Sequence[EvalResult] = (),
    snippet: str | None = None,
) -> str:
    """Return the text of README.md: metadata for the Hub; what the masks are, how to use and to remake them.

    Args:
        masks: The masks.
        repo: Hub id or folder that the snippet loads.
        model: See `usage_snippet`.
        figures: Paths of images, relative to the card.
        sections: Further headings and their Markdown, behind the snippet.
        results: Scores for the metadata.
        snippet: Code in the place of `usage_snippet`.
    """
    recipe, pairs = masks.recipe, masks.pairs
    sites = [masks.keep.at(name) for name in masks.keep]
    density_SP = np.stack([site.kept_P / site.width for site in sites])
    name = model or recipe.base_model
    parts = [
        front_matter(pairs, base=name, repo=repo, results=results),
        f"# Neuron masks{f' for {name}' if name else ''}",
        f"Which neurons {_counted(len(pairs), 'translation direction')} keep at "
        f"{_counted(len(masks.keep), 'linear layer')}: {float(density_SP.mean()):.1%} on average. Masks "
        "only: they add no parameter, and the model itself is loaded from its own repository.",
        f"## Use\n\n```python\n{snippet or usage_snippet(recipe, pairs, repo, model)}\n```",
        *(f"## {heading}\n\n{text}" for heading, text in (sections or {}).items()),
        f"## How they were made\n\n{_recipe_table(masks)}",
        f"## Share of neurons kept\n\n{_site_table(masks, density_SP)}",
        _pair_table(masks, density_SP),
    ]
    if figures:
        images = "\n\n".join(f"![{Path(figure).stem.replace('_', ' ')}]({figure})" for figure in figures)
        parts.append(f"## Figures\n\n{images}")
    return "\n\n".join(parts) + "\n"


def _recipe_table(masks: _Masks) -> str:
    recipe = masks.recipe
    total = sum(recipe.tokens.values())
    rows = {
        "method": f"`{recipe.method}`: {_METHODS.get(recipe.rule, 'made from given tensors')}",
        **{f"setting `{name}`": f"`{json.dumps(value)}`" for name, value in recipe.settings.items()},
        "then": "; ".join(recipe.derived),
        "base model": recipe.base_model,
        "base revision": recipe.revision,
        "fingerprint of the base's weights": recipe.weight_fingerprint,
        "fingerprint of the masks": masks.fingerprint(),
        "counted on": json.dumps(recipe.corpus, ensure_ascii=False) if recipe.corpus else "",
        "tokens counted": f"{total:,}" if total else "",
        "made with": ", ".join(f"{name} {version}" for name, version in recipe.versions.items()),
    }
    return _table(("", ""), [(name, value) for name, value in rows.items() if value])


def _site_table(masks: _Masks, density_SP: np.ndarray) -> str:
    rows = [
        (
            f"`{name}`",
            str(masks.keep.at(name).width),
            f"{float(density_P.mean()):.3f}",
            *(f"{density_P[at]:.3f} ({masks.pairs[at]})" for at in (density_P.argmin(), density_P.argmax())),
        )
        for name, density_P in zip(masks.keep, density_SP, strict=True)
    ]
    return _table(("site", "neurons", "mean over pairs", "lowest", "highest"), rows)


def _pair_table(masks: _Masks, density_SP: np.ndarray) -> str:
    tokens = masks.recipe.tokens
    rows = [
        (str(pair), f"{float(mean):.3f}", f"{tokens[pair]:,}" if pair in tokens else "–")
        for pair, mean in zip(masks.pairs[:_ROWS], density_SP[:, :_ROWS].mean(axis=0), strict=True)
    ]
    if len(masks.pairs) > _ROWS:
        rest = float(density_SP[:, _ROWS:].mean())
        rows.append((f"{len(masks.pairs) - _ROWS:,} more", f"{rest:.3f}", "–"))
    return _table(("pair", "mean over sites", "tokens counted"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
