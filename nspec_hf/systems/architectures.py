"""Other shapes of the base, for all pairs alike: wider, deeper, shallower, another activation.

They tell what a method gains from what parameters or depth alone would gain. All are trained from scratch
with the base's budget and then the continuation's. Sizes are given as factors of the base's, so that the
same settings serve a model of a paper's size and a small one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PretrainedConfig, PreTrainedModel

from nspec_hf.core import ConfigError
from nspec_hf.recording import SIDES, load_config
from nspec_hf.systems.run import Run
from nspec_hf.systems.system import System


@dataclass(frozen=True, kw_only=True)
class Architecture(System):
    """A model of another shape than the base, trained from scratch on all pairs."""

    from_scratch: ClassVar[bool] = True

    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's config in addition to what the system changes, or in its place."""

    def check(self, run: Run) -> None:
        """Refuse a base that has no such sizes, and sizes that are none."""
        config = load_config(run.config.base_model, run.config.model)
        changed = {**self.changed(config), **self.changes}
        absent = sorted(name for name in changed if not hasattr(config, name))
        if absent:
            raise ConfigError(
                f"the config of {run.config.base_model}, a {config.model_type} model, has no "
                f"{', '.join(absent)}; name fields that it has"
            )

    def model(self, run: Run) -> PreTrainedModel:
        """Return the untrained model."""
        config = load_config(run.config.base_model, run.config.model)
        return run.scratch(**{**self.changed(config), **self.changes})

    def changed(self, config: PretrainedConfig) -> dict[str, Any]:
        """Return the fields of the base's config that are others here."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OtherWidth(Architecture):
    """A base with feed-forward layers of another width, and all else as it is."""

    width: float = 1.0
    """Factor of d_ff in both stacks, rounded to whole neurons."""

    def changed(self, config: PretrainedConfig) -> dict[str, Any]:
        """Return the other width."""
        return _scaled(config, self.width, *(f"{side}_ffn_dim" for side in SIDES))


@dataclass(frozen=True, kw_only=True)
class Expansion(OtherWidth):
    """More feed-forward neurons for all pairs: the base of "+Expansion", Xie et al. 2021, Table 2.

    d_ff 2048 → 3000 in 6 + 6 layers of width 512 adds 11.71 M parameters, about what one adapter a layer and
    direction adds there. "+Expansion" itself is allocation by TE on it: a row `{system: allocation_te, base:
    expansion}`.
    """

    name: ClassVar[str] = "expansion"
    source: ClassVar[str] = "Xie et al. 2021, +Expansion before its allocation"

    width: float = 3000 / 2048


@dataclass(frozen=True, kw_only=True)
class Wide(OtherWidth):
    """Wider feed-forward layers alone, 4,096 → 8,192 in Tan et al. 2024, A.5 and Table 8."""

    name: ClassVar[str] = "wide"
    source: ClassVar[str] = "Tan et al. 2024, mT-wide"

    width: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Gelu(Architecture):
    """The base with GELU in the place of ReLU: do neurons specialize there too? Tan et al. 2024, §6.2.

    Neuron specialization on it is a row `{system: neuron_specialization, base: gelu}`.
    """

    name: ClassVar[str] = "gelu"
    source: ClassVar[str] = "Tan et al. 2024, mT-big of GELU"

    def changed(self, config: PretrainedConfig) -> dict[str, Any]:
        """Return the other activation."""
        return {"activation_function": "gelu"}


@dataclass(frozen=True, kw_only=True)
class OtherDepth(Architecture):
    """A base with another number of layers."""

    layers: float = 1.0
    """Factor of the number of layers in both stacks, rounded, at least one layer."""

    def changed(self, config: PretrainedConfig) -> dict[str, Any]:
        """Return the other depth."""
        return _scaled(config, self.layers, *(f"{side}_layers" for side in SIDES))


@dataclass(frozen=True, kw_only=True)
class Shallow(OtherDepth):
    """Half the layers (Tan et al. 2024, Fig. 3, Table 8: 6 → 3); into English better than the base there."""

    name: ClassVar[str] = "shallow"
    source: ClassVar[str] = "Tan et al. 2024, mT-shallow"

    layers: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Deep(OtherDepth):
    """Twice the layers of the base's width (Tan et al. 2024, A.5 and Table 8: 6 → 12)."""

    name: ClassVar[str] = "deep"
    source: ClassVar[str] = "Tan et al. 2024, mT-large"

    layers: float = 2.0


def _scaled(config: PretrainedConfig, factor: float, *names: str) -> dict[str, int]:
    """Return the named sizes of a config times a factor, rounded half up and at least 1.

    Raises:
        ConfigError: If the factor is not positive, or the config has not all of the sizes.
    """
    if factor <= 0:
        raise ConfigError(f"a size changes by a positive factor, got {factor}")
    absent = [name for name in names if not hasattr(config, name)]
    if absent:
        raise ConfigError(f"the config of a {config.model_type} model has no {', '.join(absent)}")
    return {name: max(1, int(getattr(config, name) * factor + 0.5)) for name in names}
