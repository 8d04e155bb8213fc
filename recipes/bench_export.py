"""Measurement of `bench.py` on a pair exported to CTranslate2, beside the whole model exported likewise."""

from bench_clock import Measured
from bench_parts import Bench, Found

KEYS = ("ct2_pruned_vs_dense",)


def exported(bench: Bench) -> Found:
    """Greedy decoding of the pruned model against the dense one."""
    yield KEYS[0], Measured.missing("nspec_hf/export.py is not there yet")
