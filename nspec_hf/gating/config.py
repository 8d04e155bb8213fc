"""How masks act on a model."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from nspec_hf.core import ArtifactError, NspecError, read_json, require, require_count, warn_unused

MADE_BY_FILE = "made_by.json"
"""What decided the weights beside which it lies: base, text, gate, arguments."""

GateMode = Literal["mask", "slice", "gradient"]
"""The modes; what one does stands in the file with its name, `mask_mode.py` for `mask`."""

Silence = Literal["neuron", "weights"]

_NEEDS = {
    "silence": "mode=mask|slice",
    "multiple_of": "mode=slice",
    "cache_bytes": "mode=slice",
    "pivot": "zero_shot=compose",
}


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How masks act on a model."""

    mode: GateMode = "mask"
    """`mask`: compute all neurons, silence those that the pair does not keep; any mix of pairs in a batch.
    `slice`: compute only the kept rows, faster. `gradient`: a dense forward pass, but each pair's loss
    trains only its own rows."""

    silence: Silence = "neuron"
    """`neuron`: h = σ(m·z), the neuron is gone, bias included (Eq. 4 as the paper explains it). `weights`:
    h = σ(m·xW + b), the released code, where a silenced neuron still emits σ(b). Mode `gradient` silences
    nothing, so it warns of a choice here."""

    zero_shot: Literal["error", "compose"] = "error"
    """What to do with a pair without masks: refuse it, or compose its masks from those to and from the
    pivot."""

    pivot: str = "en"
    """The language that zero-shot composition goes through."""

    multiple_of: int | None = None
    """For `slice`: round the number of computed rows up to a multiple of this. None: 8 on a CPU, the fastest
    of 1 to 128 in training a 1024×4096 block, though they differ by no more than the rounds do
    (`recipes/results/bench.cpu.json`); 64 on CUDA, a guess for tensor cores that has not been measured."""

    cache_bytes: int = 2 << 30
    """For `slice`: memory bound in bytes of the slices that a `generate` keeps from step to step."""

    def __post_init__(self) -> None:
        """Check the values."""
        for each in fields(self):
            if get_origin(each.type) is Literal:
                value, known = getattr(self, each.name), get_args(each.type)
                require(value in known, f"{each.name} is one of {', '.join(known)}, got {value!r}")
        if self.multiple_of is not None:
            require_count("multiple_of", self.multiple_of)
        require_count("cache_bytes", self.cache_bytes, least=0)
        warn_unused(self, _NEEDS, "gate.")


def facts_of_training(folder: Path) -> Any:
    """Return the facts of what was on the model in a folder when a run trained it; None of nothing.

    Raises:
        ArtifactError: If the file of it cannot be read.
    """
    path = folder / MADE_BY_FILE
    content = read_json(path, ArtifactError) if path.is_file() else {}
    return content.get("gate") if isinstance(content, dict) else None


def stated_config(stated: Any, path: Path) -> GateConfig | None:
    """Return how masks acted, from what a file says; None where it says nothing.

    Raises:
        ArtifactError: If the file states what cannot be.
    """
    if not stated:
        return None
    try:
        known = {each.name for each in fields(GateConfig)}
        return GateConfig(**{name: value for name, value in stated.items() if name in known})
    except (NspecError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} states a gate that cannot be: {error}") from error
