"""How time and memory grow: with pairs, sites, text, processes. Nothing may grow faster than the work.

    only=growth_pairs,growth_sites,growth_plan,growth_text,growth_ranks,growth_processes
    python -m recipes.bench --full --only $only --json growth.json --growth growth.png

With `--threads 1 --clock cpu` times are processor seconds. Memory is what a piece of work takes on top of
what the process had, at its peak, as Linux counts it.

Shape letters: P = pairs, F = neurons of a site, N = sentence pairs.
"""

import ctypes
import gc
import math
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from nspec_hf.core import NspecError, Pair, english_centric, zero_shot
from nspec_hf.data import (
    BatchConfig,
    CorpusConfig,
    LanguageTags,
    PairBatchSampler,
    PairCollator,
    VocabularyConfig,
    encode_corpus,
    read_corpus,
    train_vocabulary,
)
from nspec_hf.gating import NeuronGate
from nspec_hf.masks import MASKS_FILE, NeuronMasks
from recipes.bench.clock import Measured, processor_seconds
from recipes.bench.masks import mask_sites
from recipes.bench.measurements import Bench, Found
from recipes.bench.process_case import Case, make_world
from recipes.bench.processes import in_processes
from recipes.bench.workload import make_batch, make_masks, make_model

_Result = TypeVar("_Result")


def grow_pairs(bench: Bench) -> Found:
    """Masks of 2 to 40,000 pairs, all but the first composed: to make, to keep, to save, to load, to use."""
    shape = bench.plan.artifact
    for count in _to_do(bench, "growth_pairs.batch_seconds", bench.plan.growth.pairs):
        own, new = _pairs_of(count)
        setting = {"shape": str(shape), "sites": 2 * shape.layers, "pairs": len(own) + len(new)}
        recorded, seconds, _ = measured(partial(make_masks, mask_sites(shape), own, 0.75), bench.watch.now)
        composed, again, _ = measured(partial(recorded.compose, new, pivot="l000"), bench.watch.now)
        tracemalloc.start()  # the process has freed memory that composing takes before any of the system's
        recorded.compose(new, pivot="l000")
        objects = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        yield f"growth_pairs.build_seconds.{count}", Measured.exactly(seconds, **setting, own=len(own))
        if new:
            yield (
                f"growth_pairs.compose_ms.{count}",
                Measured.exactly(1000 * again / len(new), **setting, what="a pair"),
            )
        held = sum(tensor.nbytes for tensor in composed.keep.tensors().values()) / 1e6
        how = {"what": "bits and row numbers, and the peak of Python's objects in composing"}
        yield f"growth_pairs.memory_mb.{count}", Measured.exactly(held + objects, **setting, **how)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MASKS_FILE
            composed.save(path)
            yield f"growth_pairs.file_mb.{count}", Measured.exactly(path.stat().st_size / 1e6, **setting)
            loads = [measured(partial(NeuronMasks.from_pretrained, path), bench.watch.now) for _ in range(5)]
            yield f"growth_pairs.load_ms.{count}", Measured.of([1000 * each[1] for each in loads], **setting)
            loaded = loads[-1][0]
            yield from _used(bench, loaded, count)


def _used(bench: Bench, masks: NeuronMasks, count: int) -> Found:
    """A gate with these masks on a model with the same sites and few other weights; a batch of many pairs."""
    shape = replace(bench.plan.artifact, d_model=bench.plan.growth.narrow, vocabulary=64)
    model = make_model(shape, bench.device, bench.dtype).eval()
    rows = min(64, len(masks))
    batch = make_batch(shape, rows, 8, 8, bench.device)
    # The last ones: where some are composed, these are.
    ids = torch.arange(len(masks) - rows, len(masks), device=bench.device)
    setting = {"shape": str(shape), "pairs": len(masks), "rows": rows}
    gate, seconds, memory = measured(lambda: NeuronGate(model, masks).attach(), bench.watch.now)
    yield f"growth_pairs.gate_ms.{count}", Measured.exactly(1000 * seconds, **setting, memory_mb=memory)
    with torch.no_grad():
        together, seconds, memory = measured(
            lambda: model(**batch, pair_ids=ids, use_cache=False).logits, bench.watch.now
        )
        gate.detach()
        apart = 0.0
        for row in {0, rows - 1}:
            alone = {name: value[row : row + 1] for name, value in batch.items()}
            pair = masks.pairs[int(ids[row])]
            keep = {name: keep_F[None] for name, keep_F in masks[pair].items()}
            with NeuronGate(model, NeuronMasks([pair], keep)) as single:
                single.use(pair)
                found = model(**alone, use_cache=False).logits
            apart = max(apart, float((found - together[row : row + 1]).abs().max()))
    yield (
        f"growth_pairs.batch_seconds.{count}",
        Measured.exactly(seconds, **setting, memory_mb=memory, differs_from_rows_alone=apart),
    )


def grow_sites(bench: Bench) -> Found:
    """Masks of 100 pairs at more and more sites."""
    for layers in _to_do(bench, "growth_sites.file_mb", bench.plan.growth.layers):
        shape = replace(bench.plan.artifact, layers=layers)
        masks = make_masks(mask_sites(shape), _pairs_of(2_500)[0][:100], 0.75)
        setting = {"shape": str(shape), "sites": 2 * layers, "pairs": len(masks)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MASKS_FILE
            masks.save(path)
            loads = [measured(partial(NeuronMasks.from_pretrained, path), bench.watch.now) for _ in range(5)]
            yield f"growth_sites.load_ms.{layers}", Measured.of([1000 * each[1] for each in loads], **setting)
            yield f"growth_sites.file_mb.{layers}", Measured.exactly(path.stat().st_size / 1e6, **setting)


def grow_plan(bench: Bench) -> Found:
    """The sampler's plan of an epoch and its first batch, from lengths alone."""
    for count in _to_do(bench, "growth_plan.memory_mb", bench.plan.growth.planned):
        lengths, pair_ids = _lengths(count)
        setting = {"shape": f"{count:,} sentence pairs of 200 pairs, 4,096 tokens a batch"}

        def first(lengths: np.ndarray = lengths, pair_ids: np.ndarray = pair_ids) -> list[int]:
            return next(iter(PairBatchSampler(lengths, pair_ids, BatchConfig(max_tokens=4096))))

        batch, seconds, memory = measured(first, bench.watch.now)
        again = first() if count <= 10_000_000 else batch
        if batch != again:
            raise NspecError("a second start has other batches")
        yield f"growth_plan.seconds.{count}", Measured.exactly(seconds, **setting)
        held = (lengths.nbytes + pair_ids.nbytes) / 1e6
        yield f"growth_plan.memory_mb.{count}", Measured.exactly(memory, **setting, lengths_mb=held)


def grow_text(bench: Bench) -> Found:
    """Text on disk: read and encoded at the first start, found at the second, then the first batch."""
    for count in _to_do(bench, "growth_text.second_start_seconds", bench.plan.growth.lines):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = _write_text(Path(folder), count)
            # The libraries are loaded before.
            _first_batch(replace(CorpusConfig(path=folder, store=f"{folder}/few"), max_lines=20), tokenizer)
            start = partial(_first_batch, CorpusConfig(path=folder, store=f"{folder}/store"), tokenizer)
            setting = {"shape": f"{count:,} lines of 4 to 24 words, one process"}
            batch, seconds, memory = measured(start, bench.watch.now)
            per_line = Measured.exactly(1e6 * seconds / count, **setting, what="a line")
            yield f"growth_text.first_start_us.{count}", per_line
            yield f"growth_text.memory_mb.{count}", Measured.exactly(memory, **setting)
            again, seconds, _ = measured(start, bench.watch.now)
            if batch != again:
                raise NspecError("a second start has other batches")
            yield f"growth_text.second_start_seconds.{count}", Measured.exactly(seconds, **setting)


def grow_ranks(bench: Bench) -> Found:
    """What one of so many processes needs to plan the same million sentence pairs, to its first batch."""
    count = min(1_000_000, bench.plan.growth.planned[-1])
    for ranks in _to_do(bench, "growth_ranks.memory_mb", bench.plan.growth.ranks):
        own = {"rank": ranks - 1, "world_size": ranks}
        setting = {"shape": f"{count:,} sentence pairs, the last of {ranks} processes"}

        def first(own: dict[str, int] = own) -> list[int]:
            return next(iter(PairBatchSampler(*_lengths(count), BatchConfig(max_tokens=4096), **own)))

        _, seconds, memory = measured(first, bench.watch.now)
        yield f"growth_ranks.seconds.{ranks}", Measured.exactly(seconds, **setting)
        yield f"growth_ranks.memory_mb.{ranks}", Measured.exactly(memory, **setting)


def grow_processes(bench: Bench) -> Found:
    """The same work by more processes, text encoded and a small run under DDP: processor seconds of all."""
    lines, world = bench.plan.growth.lines[-1], make_world()
    for count in _to_do(bench, "growth_processes.run_seconds", bench.plan.growth.processes):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = _write_text(Path(folder), lines)
            config = CorpusConfig(path=folder, store=f"{folder}/store", num_proc=count)
            _first_batch(replace(config, store=f"{folder}/few", max_lines=20, num_proc=1), tokenizer)
            began = processor_seconds()
            _first_batch(config, tokenizer)
            setting = {"shape": f"{lines:,} lines of 4 to 24 words, all of {count} processes"}
            yield (
                f"growth_processes.encode_seconds.{count}",
                Measured.exactly(processor_seconds() - began, **setting),
            )
            began = processor_seconds()
            in_processes(world, Case("ddp", "mask", count), Path(folder) / "run")
            setting = {"shape": f"a tiny M2M-100 recorded, trained, evaluated, all of {count} processes"}
            yield (
                f"growth_processes.run_seconds.{count}",
                Measured.exactly(processor_seconds() - began, **setting),
            )


def _to_do(bench: Bench, key: str, sizes: Sequence[int]) -> Iterator[int]:
    """Yield the sizes that no earlier run has measured, while there is time."""
    return (size for size in sizes if bench.due(f"{key}.{size}"))


def _first_batch(config: CorpusConfig, tokenizer: Any) -> list[int]:
    """Start as a training does; return the numbers and the labels of its first batch."""
    tags = LanguageTags(tokenizer)
    corpus = encode_corpus(read_corpus(config, ["en-de"], "train"), tags, progress=False)
    sampler = PairBatchSampler(corpus.lengths, corpus.pair_ids, BatchConfig(max_tokens=4096))
    rows = next(iter(sampler))
    batch = PairCollator(tags, corpus.pairs)([corpus[row] for row in rows])
    return [*rows, *batch["labels"].flatten().tolist()]


def _pairs_of(count: int) -> tuple[list[Pair], list[Pair]]:
    """Return pairs with English, and as many zero-shot ones as make up the count, or all there are."""
    languages = [f"l{number:03d}" for number in range(math.isqrt(count) + 2)]
    own = english_centric(languages, "l000")[:count]
    return own, zero_shot(languages, "l000")[: count - len(own)]


def _lengths(count: int) -> tuple[np.ndarray, np.ndarray]:
    generator, lengths = np.random.default_rng(1), np.empty((count, 2), np.uint16)
    for start in range(0, count, 1_000_000):
        part = lengths[start : start + 1_000_000]
        part[:] = np.clip(generator.lognormal(3.2, 0.6, part.shape), 3, 255)
    return lengths, np.repeat(np.arange(200, dtype=np.uint8), -(-count // 200))[:count]


def _write_text(folder: Path, count: int) -> Any:
    """Write both languages of one pair, and return a tokenizer for them."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(2000)]

    def lines() -> Iterator[str]:
        for _ in range(count):
            yield " ".join(draw.choices(words, k=draw.randint(4, 24)))

    sample = list(zip(range(2000), lines(), strict=False))
    for code in ("en", "de"):
        with (folder / f"train.{code}").open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines())
    return train_vocabulary([line for _, line in sample], ["en", "de"], VocabularyConfig(size=1000))


def measured(
    work: Callable[[], _Result], now: Callable[[], float] = time.perf_counter
) -> tuple[_Result, float, float]:
    """Return what work returns, the seconds it took, and the MB of its peak on top of what there was.

    Args:
        work: What to do.
        now: The clock.

    Raises:
        NspecError: Where Linux's counters are not there.
    """
    reset = Path("/proc/self/clear_refs")
    gc.collect()
    try:
        # What earlier work has freed but not given back would serve, and not count.
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
    except (OSError, AttributeError) as error:
        raise NspecError(f"memory is measured on Linux alone: {error}") from None
    before, began = memory_kb("VmHWM"), now()
    result = work()
    return result, now() - began, (memory_kb("VmHWM") - before) / 1000


def memory_kb(name: str) -> int:
    """Return what Linux says of this process's memory: `VmRSS` now, `VmHWM` at most since `measured`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


GROWTH: dict[Callable[[Bench], Found], tuple[str, ...]] = {
    grow_pairs: ("growth_pairs",),
    grow_sites: ("growth_sites",),
    grow_text: ("growth_text",),
    grow_processes: ("growth_processes",),
    grow_ranks: ("growth_ranks",),
    grow_plan: ("growth_plan",),
}
"""Measurement → the key that it yields."""
