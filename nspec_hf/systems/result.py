"""The result of a run, one small JSON file: scores with their signatures, costs, and all that made them.

    {"name": "ns", "system": "neuron_specialization", "seed": 1, "updates": 1000, …,
     "scores": {"bleu": {"nrefs:1|case:mixed|…": {"en-de": 33.65, "de-en": 37.1}}},
     "decoding": {"num_beams": 5, …},
     "recipe": {"config": …, "versions": …, "hardware": …}}

Scores stand under metric and signature, direction by direction, so that none is read without its signature.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nspec_hf.core import ConfigError, Pair, plain, read_json, write_result
from nspec_hf.evaluation import SystemScores
from nspec_hf.systems.experiment import ExperimentConfig

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

    @property
    def name(self) -> str:
        """What tables call the system."""
        return str(self.facts.get("name") or self.facts.get("system"))

    def values(self, metric: str) -> dict[Pair, float]:
        """Return a metric's scores by direction.

        Raises:
            ConfigError: If a direction has none.
        """
        missing = [str(pair) for pair, own in self.scores.items() if metric not in own]
        if missing or not self.scores:
            raise ConfigError(f"{self.name} has no {metric} of {', '.join(missing) or 'any direction'}")
        return {pair: own[metric] for pair, own in self.scores.items()}

    def average(self, metric: str, pairs: Sequence[Pair]) -> float | None:
        """Return the mean over directions, each counting once; None if one has no score."""
        values = [own[metric] for pair in pairs if metric in (own := self.scores.get(pair, {}))]
        return math.fsum(values) / len(values) if len(values) == len(pairs) else None

    def seconds(self, part: str) -> float | None:
        """Return what the `extraction`, the `decoding` or the `training`, from scratch if it was, took."""
        if part == "extraction":
            return self.facts.get("extraction", {}).get("seconds")
        seconds = self.facts.get(f"{part}_seconds")
        if part == "decoding" or not seconds:
            return seconds
        return seconds + self.facts.get("pretraining", {}).get("training_seconds", 0.0)

    @classmethod
    def read(cls, path: Path) -> "RunResult | None":
        """Return what `write_scores` wrote; None if there is no file.

        Raises:
            ConfigError: If the file is something else.
        """
        return cls.of(read_json(path), path) if path.is_file() else None

    @classmethod
    def of(cls, content: Any, path: str | Path) -> "RunResult":
        """Return the result that the content of a file is.

        Raises:
            ConfigError: If it is something else.
        """
        try:
            facts = dict(content)
            signed, decoding = facts.pop("scores") or {}, dict(facts.pop("decoding"))
            scores: dict[Pair, dict[str, float]] = {}
            for metric, by_signature in signed.items():
                for values in by_signature.values():
                    for pair, value in values.items():
                        if value is not None:
                            scores.setdefault(Pair(pair), {})[metric] = float(value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no result of a run ({error!r}); give another file, or run it again"
            ) from error
        signatures = sorted(f"{metric}: {signature}" for metric, by in signed.items() for signature in by)
        made = "decoding: " + ", ".join(f"{name}={value}" for name, value in decoding.items())
        return cls(facts=facts, scores=scores, notes=(*signatures, *([made] if decoding else [])))


def write_scores(
    path: Path, facts: Mapping[str, Any], scores: SystemScores | None, config: ExperimentConfig
) -> None:
    """Write a run's result: facts, scores (None without test text), what made it, versions and hardware."""
    content = {**facts, "scores": scores and signed_scores(scores), "decoding": {}}
    write_result(path, content | ({"decoding": scores.generation} if scores else {}), without_places(config))


def without_places(config: ExperimentConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's settings without its plan, and without where things lie on this machine."""
    content: dict[str, Any] = plain(config)
    kept = {name: value for name, value in content.items() if name not in ("work", "results", "compare")}
    corpus = kept["data"]["corpus"]
    return {
        **kept,
        "base": portable(kept["base"]),
        "data": {**kept["data"], "corpus": {**corpus, "path": portable(corpus["path"] or "")}},
    }


def portable(path: str) -> str:
    """Return a path; of an absolute one, the last three names."""
    return "/".join(Path(path).parts[-3:]) if Path(path).is_absolute() else path


def signed_scores(scores: SystemScores) -> Signed:
    """Return scores as results keep them."""
    signed: Signed = {}
    for pair, by_metric in scores.scores.items():
        for metric, score in by_metric.items():
            value = score.value if math.isfinite(score.value) else None
            signed.setdefault(metric, {}).setdefault(score.signature, {})[str(pair)] = value
    return signed
