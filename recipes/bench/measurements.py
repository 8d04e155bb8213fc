"""The benchmark's measurements, one function each: it yields keys and what was measured for them.

A bare key stands for the setting that `recipes/SPEED.md` quotes: the first shape of the plan, density 0.75,
greedy decoding. The same at another setting has that setting behind a dot:
`train_slice_vs_dense.512x2048.d0.5`.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nspec_hf.core import NspecError
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, find_sites, record
from recipes.bench.clock import Measured, Rounds, Stopwatch, ratios, time_rounds
from recipes.bench.workload import (
    WAYS,
    BlockConfig,
    BlockModel,
    ReleasedRecorder,
    Runner,
    Shape,
    make_batch,
    make_masks,
    make_model,
    pairs_of,
    shared_copy,
)

DENSITY = 0.75
"""The density of the bare keys."""
Found = Iterator[tuple[str, Measured]]


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How far things grow; see `growth.py`."""

    pairs: Sequence[int] = (2, 60, 400)
    """Pairs that have masks."""
    layers: Sequence[int] = (3, 6, 12, 24)
    """Layers of the encoder, and again of the decoder."""
    planned: Sequence[int] = (10_000, 100_000, 1_000_000)
    """Sentence pairs of which an epoch is planned."""
    lines: Sequence[int] = (1_000, 10_000)
    """Lines of text that are read and encoded."""
    ranks: Sequence[int] = (1, 8, 64, 512)
    """Processes of which one plans its batches."""
    processes: Sequence[int] = (1, 2, 3)
    """Processes that encode text, and that train together."""
    narrow: int = 64
    """d_model of the cut-down model that masks are put on; the sites are as wide as ever."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How large and how long; `PLANS` in `__main__.py` has those there are."""

    blocks: Mapping[tuple[int, int], Sequence[float]]
    """Feed-forward blocks, D and F → densities."""
    models: Mapping[Shape, Sequence[float]]
    """Whole models → densities."""
    multiples: Sequence[int]
    """Values of `GateConfig.multiple_of` to try on the first block."""
    train: tuple[int, int, int]
    """Rows, source tokens and target tokens of a training step; the block sees as many tokens."""
    recorded: tuple[int, int, int]
    """The same of a batch to record."""
    decode: tuple[int, int, int]
    """Rows, source tokens and generated tokens."""
    switched: Shape
    """The model to switch pairs on."""
    artifact: Shape
    """The model whose masks are saved and loaded."""
    rounds: Rounds
    """Of the short comparisons."""
    long_rounds: Rounds
    """Of training whole models and of decoding."""
    ends: tuple[Shape, tuple[int, int, int]]
    """The model that is trained and translated with from end to end; rows translated at once, tokens of the
    longest sentence, updates that are timed."""
    growth: Growth = Growth()
    """Of the measurements of growth."""
    pairs: int = 3
    """Pairs that take turns, one a round."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the benchmark."""

    plan: Plan
    device: torch.device
    dtype: torch.dtype
    watch: Stopwatch
    only: tuple[str, ...] = ()
    """Keys that are wanted, those with a setting behind a dot included; none means all."""
    multiple_of: int | None = None
    """For the gates; None leaves the choice to them."""
    done: frozenset[str] = frozenset()
    """Keys that an earlier run has measured already."""
    deadline: float = math.inf
    """When to begin no more comparisons, on the watch's clock."""

    def due(self, *keys: str) -> bool:
        """Return whether there is time left and one of the keys is not there yet."""
        return self.watch.now() < self.deadline and not self.done.issuperset(keys)

    def wants(self, key: str) -> bool:
        """Return whether a key is to be reported."""
        return not self.only or any(key == each or key.startswith(f"{each}.") for each in self.only)

    def ways(self, key: str, density: float = DENSITY) -> list[str]:
        """Return the ways to compare for a key such as `train_{}_vs_dense`; none if it was not asked for."""
        # Only slicing depends on the density.
        compared = WAYS[1:] if density == DENSITY else ("slice",)
        # A key with a setting behind it, such as "….d0.5", asks for its way too.
        asked = [each.split(".")[0] for each in self.only]
        wanted = [way for way in compared if not asked or key.format(way) in asked]
        return ["dense", *wanted] if wanted else []

    def setting(self, **more: Any) -> dict[str, Any]:
        """Return what every number is reported with."""
        common = {"dtype": str(self.dtype).removeprefix("torch."), "device": self.device.type}
        common["clock"] = "processor seconds" if self.watch.now is time.process_time else "wall"
        return {**more, **common, "threads": torch.get_num_threads(), "pairs": self.plan.pairs}

    def open_ways(
        self, ways: Sequence[str], model: PreTrainedModel, masks: NeuronMasks, **gate: Any
    ) -> tuple[dict[str, Runner], dict[str, str]]:
        """Return a runner for each way, and for those that there are not the reason."""
        runners, missing = {}, {}
        for way in ways:
            try:
                runners[way] = Runner(model, way, masks, **{"multiple_of": self.multiple_of, **gate})
            except NspecError as error:
                missing[way] = str(error)
        return runners, missing

    def compare(
        self,
        key: str,
        ways: tuple[Mapping[str, Runner], Mapping[str, str]],
        work: Callable[[Runner, int], Any],
        rounds: Rounds,
        setting: Mapping[str, Any],
        floor: Mapping[str, float],
    ) -> Found:
        """Run a piece of work in all ways and yield each one's ratio to dense.

        Args:
            key: Of the ratio, with `{}` where the way's name stands.
            ways: What `open_ways` returned.
            work: What to do with a runner and the index of a pair.
            rounds: How often.
            setting: What is reported with the ratio.
            floor: The least ratio that slicing could reach, by what is counted.
        """
        runners, missing = ways
        if not self.due(*(key.format(way) for way in {**runners, **missing} if way != "dense")):
            return
        works = {
            way: lambda number, runner=runner: work(runner, number % self.plan.pairs)
            for way, runner in runners.items()
        }
        setting = self.setting(**setting)
        times = time_rounds(works, rounds, self.watch) if len(works) > 1 else {}
        for way in times.keys() - {"dense"}:
            seconds = statistics.median(times["dense"])
            more = {"dense_seconds": seconds, **({"floor": dict(floor)} if way == "slice" else {})}
            yield key.format(way), Measured.of(ratios(times[way], times["dense"]), **setting, **more)
        for way, reason in missing.items():
            yield key.format(way), Measured.missing(reason, **setting)


def recording(bench: Bench) -> Found:
    """Recording, and the released code's way to record, against plain forward passes in eval mode.

    The passes take turns batch by batch: while `record` waits for its next batch, the others run on it. So
    what `record` does once (finding sites, fingerprint of the weights) is in none of the ratios; it is
    reported by itself.
    """
    shape, (rows, source, target) = next(iter(bench.plan.models)), bench.plan.recorded
    model = make_model(shape, bench.device, bench.dtype).eval()
    pairs, rounds = pairs_of(bench.plan.pairs), bench.plan.rounds
    plain, released = shared_copy(model), ReleasedRecorder(shared_copy(model))
    works = {
        "forward": lambda batch: plain(**batch, use_cache=False),
        "without_head": lambda batch: plain.model(**batch, use_cache=False),
        "released": released.run,
    }
    times: dict[str, list[float]] = {name: [] for name in ("record", *works)}

    def batches() -> Iterator[dict[str, Tensor]]:
        began = bench.watch.now()
        for number in range(rounds.most + 1):
            if number > rounds.least and bench.watch.now() - began >= rounds.seconds:
                return
            batch = make_batch(shape, rows, source, target, bench.device, seed=number)
            pair_ids = torch.arange(rows, device=bench.device) % len(pairs)
            since = bench.watch.start()
            yield {**batch, "pair_ids": pair_ids}
            times["record"].append(since())
            del batch["labels"]  # `record` computes no loss either
            with torch.no_grad():
                for name, work in works.items():
                    times[name].append(bench.watch.seconds(functools.partial(work, batch)))

    since = bench.watch.start()
    record(model, batches(), pairs, RecordConfig(progress=False))
    once = since() - sum(map(sum, times.values()))
    timed = {name: values[1:] for name, values in times.items()}  # the first batch warms up
    setting = bench.setting(shape=str(shape), tokens=f"{rows}×{source} source, {rows}×{target} target")
    setting["forward_seconds"] = statistics.median(timed["forward"])
    yield "record_vs_forward", Measured.of(ratios(timed["record"], timed["forward"]), **setting)
    yield (
        "record_vs_forward_without_head",
        Measured.of(
            ratios(timed["record"], timed["without_head"]), **setting, note="the output layer is not computed"
        ),
    )
    yield "record_released_vs_ours", Measured.of(ratios(timed["released"], timed["record"]), **setting)
    yield "record_released_vs_forward", Measured.of(ratios(timed["released"], timed["forward"]), **setting)
    yield "record_once_ms", Measured.exactly(1000 * once, **setting, note="once a recording, not a batch")


def blocks(bench: Bench) -> Found:
    """A feed-forward block alone: forward and backward pass of many tokens, 32 forward passes of four."""
    for number, ((d_model, d_ff), densities) in enumerate(bench.plan.blocks.items()):
        for density in densities:
            plain = number == 0 and density == DENSITY
            suffix = "" if plain else f".{d_model}x{d_ff}.d{density}"
            yield from _block(bench, d_model, d_ff, density, suffix)
    (d_model, d_ff), _ = next(iter(bench.plan.blocks.items()))
    yield from _block(bench, d_model, d_ff, DENSITY, ".multiple_of_{}", bench.plan.multiples)


def _block(
    bench: Bench, d_model: int, d_ff: int, density: float, suffix: str, multiples: Sequence[int] | None = None
) -> Found:
    """Compare the ways, or with multiples those values of `GateConfig.multiple_of`, in the same rounds."""
    rows, source, target = bench.plan.train
    model = BlockModel(BlockConfig(d_model=d_model, d_ff=d_ff)).to(bench.device, bench.dtype)
    masks = make_masks(find_sites(model), pairs_of(bench.plan.pairs), density)
    cases = {
        "block_train_{}_vs_dense": (rows, source + target, Runner.train_block, "forward, backward", "flops"),
        "block_decode_{}_vs_dense": (4, 1, Runner.run_block, "32 forward passes", "bytes"),
    }
    for key, (samples, length, work, what, counted) in cases.items():
        ways = bench.ways(key, density)
        opened = bench.open_ways(ways if multiples is None else ways[:1], model.train("train" in key), masks)
        if multiples is not None:
            key = key.format("slice")
            for multiple in multiples if bench.wants(key) else ():
                opened[0][str(multiple)] = Runner(model, "slice", masks, multiple_of=multiple)
        hidden_BLD = torch.randn(samples, length, d_model, device=bench.device, dtype=bench.dtype)
        setting = {"shape": f"{d_model}×{d_ff} block", "density": density, "tokens": samples * length}
        yield from bench.compare(
            key + suffix,
            opened,
            lambda runner, pair, work=work, hidden_BLD=hidden_BLD: work(runner, hidden_BLD, pair),
            bench.plan.rounds,
            {**setting, "what": what, **({} if multiples is None else {"multiple_of": "as in the key"})},
            {counted: density},
        )


def models(bench: Bench) -> Found:
    """Whole models: training steps with the optimizer, greedy and beam-5 decoding."""
    for number, (shape, densities) in enumerate(bench.plan.models.items()):
        if bench.ways("train_{}_vs_dense") or bench.ways("decode_{}_vs_dense"):
            model = make_model(shape, bench.device, bench.dtype)
            for density in densities:
                plain = number == 0 and density == DENSITY
                place = "" if plain else f".{shape.d_model}x{shape.d_ff}x{shape.layers}.d{density}"
                masks = make_masks(find_sites(model), pairs_of(bench.plan.pairs), density)
                yield from _training(bench, model, shape, masks, density, place)
                yield from _decoding(bench, model, shape, masks, density, place)


def _training(
    bench: Bench, model: PreTrainedModel, shape: Shape, masks: NeuronMasks, density: float, place: str
) -> Found:
    rows, source, target = bench.plan.train
    batch = make_batch(shape, rows, source, target, bench.device)
    # What the Trainer uses by default; its states are shared by all ways, as the weights are.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    yield from bench.compare(
        "train_{}_vs_dense" + place,
        bench.open_ways(bench.ways("train_{}_vs_dense", density), model, masks),
        lambda runner, pair: runner.train_step(optimizer, batch, pair),
        bench.plan.long_rounds,
        {
            "shape": str(shape),
            "density": density,
            "tokens": f"{rows}×{source} source, {rows}×{target} target",
            "what": "forward, backward, AdamW (fused)",
        },
        {"flops": shape.step_flops(rows, source, target, density) / shape.step_flops(rows, source, target)},
    )


def _decoding(
    bench: Bench, model: PreTrainedModel, shape: Shape, masks: NeuronMasks, density: float, place: str
) -> Found:
    rows, source, new_tokens = bench.plan.decode
    batch = make_batch(shape, rows, source, 1, bench.device)
    opened = bench.open_ways(bench.ways("decode_{}_vs_dense", density), model, masks)
    for beams in (1, 5) if density == DENSITY else (1,):
        # Greedy decoding comes first, so it warms up with every pair: then all slices are there.
        warm = bench.plan.pairs if beams == 1 else 1
        yield from bench.compare(
            "decode_{}_vs_dense" + place + ("" if beams == 1 else f".beam{beams}"),
            opened,
            lambda runner, pair, beams=beams: runner.decode(batch, pair, beams, new_tokens),
            replace(bench.plan.long_rounds, warm=warm),
            {
                "shape": str(shape),
                "density": density,
                "tokens": f"{rows}×{source} source, {new_tokens} generated",
                "beams": beams,
            },
            {
                "bytes": shape.decoding_weights(new_tokens, density) / shape.decoding_weights(new_tokens),
                "flops": _decoding_flops(shape, density, source, new_tokens, beams),
            },
        )


def _decoding_flops(shape: Shape, density: float, source: int, new_tokens: int, beams: int) -> float:
    """Return what is computed at a density over what is computed densely; beams only multiply the target."""
    sliced, dense = (
        shape.step_flops(1, source, 0, share) + beams * shape.step_flops(1, 0, new_tokens, share)
        for share in (density, 1.0)
    )
    return sliced / dense
