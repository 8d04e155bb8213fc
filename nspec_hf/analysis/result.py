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
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nspec_hf.core import write_text
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
        shape = tuple(len(getattr(self, labels)) for labels in main.values())
        columns: dict[str, Any] = {}
        for position, (axis, labels) in enumerate(main.items()):
            index = np.indices(shape)[position].ravel()
            for name, entries in _axis_columns(axis, getattr(self, labels)).items():
                columns[name] = [entries[i] for i in index]
        for name, own_axes in arrays.items():
            if own_axes == main:
                columns[name] = np.asarray(getattr(self, name)).reshape(-1)
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, numbers and strings: `{"result": …, field: …, "axes": {array: [axis, …]}}`."""
        plain = {f.name: to_plain(getattr(self, f.name)) for f in fields(self)}
        named = {name: list(own) for name, own in self.array_axes().items()}
        return {"result": type(self).__name__, "axes": named, **plain}

    def to_json(self) -> str:
        """Return `to_dict()` as strict JSON: undefined numbers are `null`, never `NaN`."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write `name.json` and `name.csv` into a folder, which is made if needed; return their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.json", folder / f"{name}.csv"]
        write_text(paths[0], self.to_json() + "\n")
        write_text(paths[1], self.to_pandas().to_csv(index=False))
        return paths


def to_plain(value: Any) -> Any:
    """Return a value as JSON can hold it; a number that is not finite becomes None."""
    if isinstance(value, Site):
        return {"name": value.name, "side": value.side, "layer": value.layer, "width": value.width}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [to_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    # A Pair is a string; JSON should hold a plain one.
    return str(value) if isinstance(value, str) else value


def site_label(site: Site) -> str:
    """Return a short name: `decoder 0` for feed-forward neurons, else `decoder 0 self_attn.q_proj`."""
    if site.kind == "ffn":
        return f"{site.side} {site.layer}"
    return f"{site.side} {site.layer} {'.'.join(site.name.split('.')[-2:])}"


def _axis_columns(axis: str, labels: tuple[Any, ...]) -> dict[str, list[Any]]:
    if labels and isinstance(labels[0], Site):
        return {
            axis: [site.name for site in labels],
            "side": [site.side for site in labels],
            "layer": [site.layer for site in labels],
        }
    return {axis: [str(label) if isinstance(label, str) else label for label in labels]}
