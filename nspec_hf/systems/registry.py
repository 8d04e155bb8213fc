"""The compared systems by name; each is a file here, and `system.py` says what a system is."""

from nspec_hf.systems.adapters import FamilyAdapters, PairAdapters
from nspec_hf.systems.architectures import Deep, Expansion, Gelu, Shallow, Wide
from nspec_hf.systems.differentiation import ParameterDifferentiation
from nspec_hf.systems.individual import Individual
from nspec_hf.systems.lass import LaSS
from nspec_hf.systems.masked import Allocation, AllocationByValue, NeuronSpecialization, RandomMasks
from nspec_hf.systems.own_neurons import OwnNeurons
from nspec_hf.systems.plain import Baseline, FineTune
from nspec_hf.systems.system import System
from nspec_hf.systems.target_attention import TargetAttention

SYSTEMS: dict[str, type[System]] = {
    kind.name: kind
    for kind in (
        Baseline,
        Individual,
        FineTune,
        RandomMasks,
        Allocation,
        AllocationByValue,
        NeuronSpecialization,
        OwnNeurons,
        LaSS,
        ParameterDifferentiation,
        PairAdapters,
        FamilyAdapters,
        TargetAttention,
        Expansion,
        Gelu,
        Shallow,
        Wide,
        Deep,
    )
}
"""Name → class; a new system is added here."""
