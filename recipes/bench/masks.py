"""Measurements of masks themselves: changing pairs, their files, and pairs exported as models.

Shape letters: P = pairs, F = neurons of a site.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nspec_hf.core import packed_width
from nspec_hf.masks import MASKS_FILE, NeuronMasks
from nspec_hf.recording import Site, find_sites, site_from_name
from recipes.bench.clock import Measured, time_rounds
from recipes.bench.measurements import DENSITY, Bench, Found
from recipes.bench.workload import Runner, Shape, make_batch, make_masks, make_model, pairs_of


def switching(bench: Bench) -> Found:
    """What it costs that the next batch is of another pair: its forward pass beside one of the same pair.

    It is the forward pass of one token, so that the difference is not lost in it.
    """
    shape = bench.plan.switched
    model = make_model(shape, bench.device, bench.dtype).eval()
    masks = make_masks(find_sites(model), pairs_of(2), DENSITY)
    batch = make_batch(shape, 1, 1, 1, bench.device)
    del batch["labels"]
    with torch.no_grad():
        model(**batch, use_cache=False)  # else the first switch would pay for memory and kernels
    for mode, key in (("slice", "switch_ms"), ("mask", "switch_ms.mask")):
        setting = bench.setting(shape=str(shape), density=DENSITY, mode=mode) | {"pairs": 2}
        runners, missing = bench.open_ways([mode] if bench.wants(key) else [], model, masks)
        for reason in missing.values():
            yield key, Measured.missing(reason, **setting)
        for runner in runners.values():
            times = _switches(bench, runner, batch)
            setting["forward_ms"] = statistics.median(times.pop("forward"))
            notes = {
                "": "both pairs had a batch before; difference of two forward passes, noise included",
                ".first": "first batch of a pair",
                ".use": "gate.use alone",
            }
            for suffix, note in notes.items():
                yield key + suffix, Measured.of(times[suffix], **setting, note=note)


def _switches(bench: Bench, runner: Runner, batch: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Return milliseconds: of the first and of later switches to a pair, of `use`, of a forward pass."""

    def run(pair: int) -> None:
        runner.use(pair)
        with torch.no_grad():
            runner.model(**batch, use_cache=False)

    def took(work: Callable[[int], None], pair: int) -> float:
        return 1000 * bench.watch.seconds(lambda: work(pair))

    times: dict[str, list[float]] = {"": [], ".first": [], ".use": [], "forward": []}
    for pair in range(2):
        times[".first"].append(took(run, pair) - took(run, pair))
    for number in range(4 * bench.plan.rounds.most):
        stay, move = took(run, (number + 1) % 2), took(run, number % 2)
        times[""].append(move - stay)
        times["forward"].append(stay)
    for number in range(4 * bench.plan.rounds.most):
        times[".use"].append(took(runner.use, number % 2))
    return times


def artifact(bench: Bench) -> Found:
    """Masks of many pairs: bytes of their file, bytes in memory, milliseconds to load them.

    60 pairs (and half as many) are saved. Bits grow by the same number with every pair, and so does the
    header where codes are of one length; so the files of more pairs follow.
    """
    shape = bench.plan.artifact
    sites = mask_sites(shape)
    neurons = sum(site.width for site in sites)
    setting = {"shape": str(shape), "sites": len(sites), "neurons": neurons}
    with tempfile.TemporaryDirectory() as folder:
        half = saved_bytes(Path(folder) / "half" / MASKS_FILE, sites, 30)
        path = Path(folder) / "masks" / MASKS_FILE
        size = saved_bytes(path, sites, 60)
        times = time_rounds(
            {"load": lambda _: NeuronMasks.from_pretrained(path)}, bench.plan.rounds, bench.watch
        )
    for count in (60, 400, 40_000):
        whole = size + (count - 60) * (size - half) // 30
        how = "file as saved" if count == 60 else "computed from the files of 30 and 60 pairs"
        released = count * neurons * shape.d_model
        yield f"mask_bytes_{count}_pairs", Measured.exactly(whole, **setting, how=how, released=released)
        held = count * sum(packed_width(site.width) for site in sites)
        yield (
            f"mask_memory_{count}_pairs",
            Measured.exactly(held, **setting, how="a bit each; composed pairs take row numbers alone"),
        )
    loaded = [1000 * seconds for seconds in times["load"]]
    yield "load_masks_ms", Measured.of(loaded, **setting, pairs=60, what="map, check every byte")


def mask_sites(shape: Shape) -> list[Site]:
    """Return the feed-forward sites of an M2M-100 model of that shape, without making the model."""
    return [
        site_from_name(f"model.{side}.layers.{layer}.fc1", shape.d_ff)
        for side in ("encoder", "decoder")
        for layer in range(shape.layers)
    ]


def saved_bytes(path: Path, sites: list[Site], count: int) -> int:
    """Save masks of so many pairs and return the size of the file."""
    make_masks(sites, pairs_of(count), DENSITY).save(path)
    return path.stat().st_size
