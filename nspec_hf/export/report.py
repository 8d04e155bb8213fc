"""What was exported, in numbers, for a reader, and on the page of its folder."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nspec_hf.core import as_pairs, versions, write_json, write_text
from nspec_hf.export.config import ExportConfig
from nspec_hf.export.group import Sharing
from nspec_hf.export.trim import VocabularyReport
from nspec_hf.masks import front_matter

REPORT_FILE = "nspec_export.json"
"""What was exported, in every exported folder."""

_SHARED: dict[Sharing, str] = {
    "": "",
    "gated": ", each pair with its own neurons (`nspec_hf.load`, `nspec serve`)\nwithout the masks that lie "
    "beside the model, as plain classes load it, all pairs run the neurons of all:",
    "apart": ", each pair in a model of its own, since CTranslate2 has no masks\none for all "
    "(--export.group union) would run the neurons of all:",
    "union": ",",
}
"""How pairs share an export → what goes before `alone`."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was exported and how it compares with the model that it was made from."""

    folder: str
    config: ExportConfig
    pairs: tuple[str, ...]
    """Pairs whose neurons, together, the model has."""
    sharing: Sharing = ""
    """How they share it: see `Sharing`."""
    masks: str
    """Fingerprint of their masks; empty where all neurons stay."""
    widths: Mapping[str, int]
    """Feed-forward sites, which may be narrower than the config says: name → neurons left. Empty for `zeroed`
    and `padded`, and where each pair has a model."""
    density: float
    """Share of neurons kept."""
    parameters: int
    """How many numbers the model has, or those of all pairs have …"""
    parameters_dense: int
    """… and how many the one that it was made from."""
    bytes: int
    """Size of the files of weights, and of masks where there are some …"""
    bytes_dense: int
    """… and of the weights that they were made from, as they are in memory."""
    sentences: int
    """Size of the sample."""
    same: float
    """Share of it whose greedy translations equal the gate's, token by token; with a trimmed vocabulary those
    that the gate writes for the same tokens when it may not write the others."""
    quantized: float | None = None
    """Share of it that quantized weights translate as the same model in float32 does; None where they are
    not quantized."""
    levels: tuple[float, ...] = ()
    """Further coverages of the masks that lie beside the model."""
    alone: float
    """Share of it that each pair's own neurons translate in the same way as those of all pairs together. Less
    than 1 where a model that was trained with each pair's own is not used to more."""
    vocabulary: VocabularyReport | None = None
    """What the trimmed vocabulary does to text; None where it was not trimmed."""
    positions: int | None = None
    """Longest text in tokens that it was made for; None where it counts distances instead."""

    def __str__(self) -> str:
        """Say it in a few lines."""
        parameters, size = self.parameters / self.parameters_dense, self.bytes / self.bytes_dense
        levels, quantized = ", ".join(f"{level:g}" for level in self.levels), ""
        if self.quantized is not None:
            least = self.config.quantized_agreement
            quantized = (
                f"\n{self.quantized:.1%} of them have the tokens of the same model in float32, before its "
                f"weights became {self.config.quantization} ({least:.0%} are required)"
            )
        shared = _SHARED[self.sharing] or ("," if len(self.pairs) > 1 else "")
        return (
            f"{self.folder}: {self.config.format} for {', '.join(self.pairs)}; {parameters:.1%} of the "
            f"parameters ({self.parameters:,} of {self.parameters_dense:,}), {size:.1%} of the bytes "
            f"({self.bytes / 2**20:.1f} of {self.bytes_dense / 2**20:.1f} MiB)\n"
            f"{self.same:.1%} of {self.sentences} sample sentences have the gate's tokens"
            + (f"{shared} {self.alone:.1%} those of their pair's own neurons" if shared else "")
            + quantized
            + (f"\ncoverages that may be chosen too: {levels}" if levels else "")
            + (f"\n{self.vocabulary}" if self.vocabulary else "")
        )

    def write(self, folder: Path) -> None:
        """Write the report and a page that says how the folder is used."""
        write_json(
            folder / REPORT_FILE, {"format_number": 1, **dataclasses.asdict(self), "versions": versions()}
        )
        write_text(folder / "README.md", _page(self))


def _page(report: ExportReport) -> str:
    plain = {
        "zeroed": "`AutoModelForSeq2SeqLM` and `AutoTokenizer` load it too",
        "padded": "`AutoModelForSeq2SeqLM` and `AutoTokenizer` load it too",
        "pruned": "`nspec_hf.load_pruned` gives the model alone (`from_pretrained` refuses it)",
        "ctranslate2": "`ctranslate2.Translator` loads it too",
    }[report.config.format]
    shared = {
        "": ".",
        "gated": ", but then every pair runs the neurons of all these pairs: of the sample, that writes "
        f"{report.alone:.1%} as each pair's own neurons do, which is what `nspec_hf.load` runs.",
        "apart": ", from the folder of a pair: each pair has a model of its own.",
        "union": ". Every pair runs the neurons of all these pairs: of the sample, that writes "
        f"{report.alone:.1%} as each pair's own neurons do.",
    }[report.sharing]
    facts = str(dataclasses.replace(report, folder="This model"))
    return f"""{front_matter(as_pairs(report.pairs), tags=("translation", "nspec-hf"))}

# {", ".join(report.pairs)}

{facts}

```python
from nspec_hf import load

loaded = load("path/or/repository")
loaded.translate(["…"], "{report.pairs[0]}")
```

{plain}{shared}
"""
