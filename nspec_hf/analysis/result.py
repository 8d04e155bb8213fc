"""A result: numbers that know what their axes mean.

Every analysis returns a small frozen dataclass. Fields that hold labels (`pairs`, `sites`, `languages` …) are
tuples; fields that hold numbers are numpy arrays declared with `axes(...)`, which names their axes in order:

    class Density(Result):
        sites: tuple[Site, ...]
        pairs: tuple[Pair, ...]
        density: np.ndarray = field(metadata=axes(site="sites", pair="pairs"))

So any result can be turned into a table (`to_pandas`, one row a cell) or JSON (`to_json`) without code of
its own. NaN means "undefined here" and becomes an empty cell or `null`.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nspec_hf.core import plain, write_text
from nspec_hf.recording import Site


def axes(**labels: str) -> dict[str, dict[str, str]]:
    """Name an array's axes, in order; each keyword's value is the field that holds that axis's labels."""
    return {"axes": labels}


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of all results; see the module's text."""

    @classmethod
    def array_axes(cls) -> dict[str, dict[str, str]]:
        """Return, for each array field, its axes: axis name → name of the field with the labels."""
        return {f.name: f.metadata["axes"] for f in fields(cls) if "axes" in f.metadata}

    def to_pandas(self) -> pd.DataFrame:
        """Return a long table: a row for each cell of the first array, a column for each axis and each array.

        Arrays whose axes differ from the first array's are left to `to_json`. A site becomes three columns:
        `site` (its dotted path), `side` and `layer`.
        """
        arrays = self.array_axes()
        main = next(iter(arrays.values()))
        labels = [getattr(self, field) for field in main.values()]
        index = pd.MultiIndex.from_product(labels, names=list(main))
        values = {name: np.ravel(getattr(self, name)) for name, own in arrays.items() if own == main}
        table = pd.DataFrame(values, index=index).reset_index()
        if "site" in main:
            sites = list(table["site"])
            after = list(main).index("site") + 1
            table["site"] = [site.name for site in sites]
            table.insert(after, "side", [site.side for site in sites])
            table.insert(after + 1, "layer", [site.layer for site in sites])
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: `{"result": …, field: …, "axes": {array: [axis, …]}}`.

        Undefined numbers are None.
        """
        content = {f.name: plain(getattr(self, f.name)) for f in fields(self)}
        if "sites" in content:
            content["sites"] = [
                {key: site[key] for key in ("name", "side", "layer", "width")} for site in content["sites"]
            ]
        named = {name: list(own) for name, own in self.array_axes().items()}
        return {"result": type(self).__name__, "axes": named, **content}

    def to_json(self) -> str:
        """Return `to_dict()` as strict JSON: undefined numbers are `null`, never `NaN`."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write `name.json` and `name.csv` into a folder, which is made if needed; return their paths."""
        paths = [Path(folder) / f"{name}.json", Path(folder) / f"{name}.csv"]
        write_text(paths[0], self.to_json() + "\n")
        write_text(paths[1], self.to_pandas().to_csv(index=False))
        return paths


def site_label(site: Site) -> str:
    """Return a short name: `decoder 0` for feed-forward neurons, else `decoder 0 self_attn.q_proj`."""
    if site.kind == "ffn":
        return f"{site.side} {site.layer}"
    within = [part for part in site.name.split(".")[-2:] if not part.isdigit()]
    return f"{site.side} {site.layer} {'.'.join(within)}"


def p_text(p_value: float) -> str:
    """Return a p-value as it is written beside a number."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
