"""The compared systems by name; each is a file here, and `system.py` says what a system is."""

# ruff: noqa: F401  what is imported is found below

import dataclasses
from collections.abc import Mapping
from typing import Any

import jsonargparse

from nspec_hf.core import ConfigError
from nspec_hf.systems.adapters import FamilyAdapters, PairAdapters
from nspec_hf.systems.architectures import Deep, Expansion, Gelu, Shallow, Wide
from nspec_hf.systems.baseline import Baseline, FineTune
from nspec_hf.systems.controls import SharedMask, SwappedMasks
from nspec_hf.systems.differentiation import ParameterDifferentiation
from nspec_hf.systems.elastic import ElasticMasks
from nspec_hf.systems.individual import Individual
from nspec_hf.systems.lass import LaSS
from nspec_hf.systems.masked import Allocation, AllocationByValue, NeuronSpecialization, RandomMasks
from nspec_hf.systems.system import System
from nspec_hf.systems.target_attention import TargetAttention
from nspec_hf.systems.variants import SampledMasks

SYSTEMS: dict[str, type[System]] = {
    kind.name: kind
    for kind in list(vars().values())
    if isinstance(kind, type) and issubclass(kind, System) and kind.name
}
"""Name → class. A new system is imported above, in a line of its own; nothing else names it."""


def make_system(kind: str | type[System], settings: Mapping[str, Any] | None = None) -> System:
    """Return a system by class or name, with the settings that are not its defaults.

    Text, as from a command line, is read as what a setting wants.

    Raises:
        ConfigError: If there is no such system, it has no such setting, or a value is of another type.
    """
    if isinstance(kind, str):
        if kind not in SYSTEMS:
            raise ConfigError(f"there is no system {kind!r}; there are: {', '.join(SYSTEMS)}")
        kind = SYSTEMS[kind]
    settings, known = dict(settings or {}), {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"{kind.name} has no setting {', '.join(unknown)}; it has: {', '.join(sorted(known)) or 'none'}"
        )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        return kind(**vars(parser.instantiate_classes(parser.parse_object(settings))))
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"a setting of {kind.name} cannot be read: {error}") from error
