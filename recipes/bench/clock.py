"""Paired timing: every way of doing a piece of work runs once a round, and each round gives its own ratios.

Times on a shared machine drift by more than the differences that matter, but they drift together: so ways
take turns within seconds of each other in one process, in alternating order, and a ratio is only ever made
of two times of one round. What is reported is the median of the rounds' ratios, with the smallest and the
largest beside it.
"""

import functools
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often to repeat a comparison."""

    least: int = 3
    """Rounds that are timed in any case."""
    most: int = 15
    """Rounds after which it ends."""
    seconds: float = 30.0
    """Between the two: no new round begins after so many seconds."""
    warm: int = 1
    """Rounds before these that are not timed: memory is taken, weights are sliced, kernels are compiled."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One reported number with its spread and the setting that it holds for."""

    median: float | None
    minimum: float | None
    maximum: float | None
    setting: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Why there is no number, where there is none."""

    @classmethod
    def of(cls, values: Sequence[float], **setting: Any) -> "Measured":
        """Return median, smallest and largest of the rounds' values."""
        return cls(
            median=statistics.median(values),
            minimum=min(values),
            maximum=max(values),
            setting={**setting, "rounds": len(values)},
        )

    @classmethod
    def exactly(cls, value: float, **setting: Any) -> "Measured":
        """Return a number that does not vary: a count of bytes."""
        return cls(median=value, minimum=value, maximum=value, setting=setting)

    @classmethod
    def missing(cls, reason: str, **setting: Any) -> "Measured":
        """Return the place of a number that could not be measured."""
        return cls(median=None, minimum=None, maximum=None, setting=setting, reason=reason)

    def as_json(self) -> dict[str, Any]:
        """Return `median`, `min`, `max` and `setting`, and `reason` where there is no number."""
        numbers = {"median": self.median, "min": self.minimum, "max": self.maximum}
        return {**numbers, "setting": dict(self.setting), **({"reason": self.reason} if self.reason else {})}


class Stopwatch:
    """Seconds that a piece of work takes, with the accelerator's part of it.

    Args:
        device: Where the work runs. On CUDA, events are recorded around it and waited for.
        now: The clock of the host.
    """

    def __init__(
        self, device: torch.device | str = "cpu", now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device = torch.device(device)
        self.now = now

    def seconds(self, work: Callable[[], Any]) -> float:
        """Run the work and return how long it took."""
        since = self.start()
        work()
        return since()

    def start(self) -> Callable[[], float]:
        """Return a function that says how long ago this call was."""
        if self.device.type != "cuda":
            began = self.now()
            return lambda: self.now() - began
        torch.cuda.synchronize(self.device)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()

        def since() -> float:
            last.record()
            last.synchronize()
            return first.elapsed_time(last) / 1000

        return since


def processor_seconds() -> float:
    """Return the processor's time of this process and of those that it started and waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def time_rounds(
    works: Mapping[str, Callable[[int], Any]], rounds: Rounds, watch: Stopwatch
) -> dict[str, list[float]]:
    """Run all works once a round and return their times, one a round.

    Args:
        works: Name → what to do; it gets the number of the round, so that all do the same in a round.
        rounds: How many.
        watch: What times them.
    """
    for number in range(rounds.warm):
        for work in works.values():
            work(number)
    times: dict[str, list[float]] = {name: [] for name in works}
    began = watch.now()
    for number in range(rounds.most):
        if number >= rounds.least and watch.now() - began >= rounds.seconds:
            break
        # Alternating order: no way always runs behind the same other one, on its warm or spoilt caches.
        for name in list(works)[:: -1 if number % 2 else 1]:
            times[name].append(watch.seconds(functools.partial(works[name], number)))
    return times


def ratios(times: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return each round's time over that of the work it is compared with."""
    return [mine / other for mine, other in zip(times, base, strict=True)]
