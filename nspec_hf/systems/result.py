"""The result of a run, one small JSON file: scores with their signatures, costs, and all that made them.

    {"name": "ns", "system": "neuron_specialization", "seed": 1, "updates": 1000, …,
     "scores": {"bleu": {"nrefs:1|case:mixed|…": {"en-de": 33.65, "de-en": 37.1}}},
     "decoding": {"num_beams": 5, …},
     "recipe": {"config": …, "versions": …, "hardware": …}}

Scores stand under metric and signature, direction by direction, so that none is read without its signature.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nspec_hf.core import ConfigError, Pair, read_json, write_result
from nspec_hf.evaluation import SystemScores

Signed = dict[str, dict[str, dict[str, float | None]]]
"""Metric → signature → direction → score; None where it is undefined."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a results file says."""

    facts: Mapping[str, Any]
    """Name, system, settings, seed, costs, recipe …"""

    scores: Mapping[Pair, Mapping[str, float]] = field(default_factory=dict)
    """Direction → metric → score; empty where there was no test text."""

    notes: tuple[str, ...] = ()
    """The signatures, and how was decoded."""

    @classmethod
    def read(cls, path: Path) -> "RunResult | None":
        """Return what `write_scores` wrote; None if there is no file.

        Raises:
            ConfigError: If the file is something else.
        """
        if not path.is_file():
            return None
        try:
            facts = read_json(path)
            signed, decoding = facts.pop("scores") or {}, facts.pop("decoding")
            scores: dict[Pair, dict[str, float]] = {}
            for metric, by_signature in signed.items():
                for values in by_signature.values():
                    for pair, value in values.items():
                        if value is not None:
                            scores.setdefault(Pair(pair), {})[metric] = float(value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no result of a run ({error!r}); files of an older layout are converted by "
                "recipes/shrink_results.py"
            ) from error
        signatures = sorted(f"{metric}: {each}" for metric, by in signed.items() for each in by)
        made = "decoding: " + ", ".join(f"{name}={value}" for name, value in decoding.items())
        return cls(facts=facts, scores=scores, notes=(*signatures, *([made] if decoding else [])))


def write_scores(path: Path, facts: Mapping[str, Any], scores: SystemScores | None, config: Any) -> None:
    """Write a run's result.

    Args:
        path: The file.
        facts: What else there is to say of the run.
        scores: Its scores; None where there was no test text.
        config: The settings that made it; versions and hardware are added.
    """
    content = {**facts, "scores": scores and signed_scores(scores), "decoding": {}}
    write_result(path, content | ({"decoding": scores.generation} if scores else {}), config)


def signed_scores(scores: SystemScores) -> Signed:
    """Return scores as results keep them."""
    signed: Signed = {}
    for pair, by_metric in scores.scores.items():
        for metric, score in by_metric.items():
            value = score.value if math.isfinite(score.value) else None
            signed.setdefault(metric, {}).setdefault(score.signature, {})[str(pair)] = value
    return signed
