"""How fast is it? Each number is a ratio to the plain run of the same work, in paired rounds of one process.

    python -m recipes.bench --quick --json bench.json       # minutes, on two CPU cores
    python -m recipes.bench --full --json bench.json --plot bench.png --base MODEL --masks MASKS --data DIR
    python -m recipes.bench --full --resume --minutes 5 --json bench.json …   # again, until all is there
    python -m recipes.bench --quick --only switch_ms,record_vs_forward

On a GPU the same commands measure in bfloat16 with CUDA events. What is measured and where: `measurements.py`
(recording, feed-forward blocks, whole models), `masks.py` (switching pairs, masks' files), `export.py`
(CTranslate2), `end_to_end.py` (what a user sees), `trained_model.py` (a trained model with its own masks);
`workload.py` has the ways that are compared, `clock.py` how they are timed.

A number that cannot be measured is reported as null, with the reason.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from nspec_hf.core import NspecError, write_result
from recipes.bench.clock import Measured, Rounds, Stopwatch
from recipes.bench.end_to_end import KEYS as END_KEYS, end_to_end
from recipes.bench.export import KEYS as EXPORT_KEYS, exported
from recipes.bench.figure import draw
from recipes.bench.growth import GROWTH
from recipes.bench.growth_figure import draw_growth, slopes
from recipes.bench.masks import artifact, switching
from recipes.bench.measurements import (
    DENSITY,
    Bench,
    Found,
    Growth,
    Plan,
    blocks,
    models,
    recording,
)
from recipes.bench.trained_model import KEYS as BASE_KEYS, Base, trained
from recipes.bench.workload import WAYS, Shape

DENSITIES = (DENSITY, 0.95, 0.85, 0.5)
M2M100_418M = Shape(d_model=1024, d_ff=4096, layers=12, vocabulary=128_112)
NLLB_3B = Shape(d_model=2048, d_ff=8192, layers=24, vocabulary=256_206)
MIDDLE = Shape(d_model=1024, d_ff=4096, layers=4, vocabulary=8_000)

TINY = Plan(
    blocks={(16, 64): (DENSITY, 0.5)},
    models={Shape(d_model=16, d_ff=64, layers=1, vocabulary=64): (DENSITY, 0.5)},
    multiples=(4,),
    train=(2, 6, 5),
    recorded=(4, 6, 5),
    decode=(2, 6, 4),
    switched=Shape(d_model=16, d_ff=64, layers=2, vocabulary=64),
    artifact=Shape(d_model=16, d_ff=64, layers=2, vocabulary=64),
    ends=(Shape(d_model=16, d_ff=64, layers=1, vocabulary=64), (3, 96, 3)),
    growth=Growth(pairs=(2, 12), layers=(1, 2), planned=(500, 1000), lines=(60,), processes=(1,), narrow=16),
    rounds=Rounds(least=2, most=2, seconds=0, warm=0),
    long_rounds=Rounds(least=2, most=2, seconds=0, warm=0),
)
QUICK = Plan(
    blocks={(1024, 4096): (DENSITY,), (512, 2048): DENSITIES},
    models={MIDDLE: (DENSITY,)},
    multiples=(),
    train=(32, 32, 32),
    recorded=(16, 32, 32),
    decode=(4, 32, 32),
    switched=Shape(d_model=1024, d_ff=4096, layers=12, vocabulary=1_000),
    artifact=NLLB_3B,
    ends=(Shape(d_model=512, d_ff=2048, layers=2, vocabulary=1_000), (8, 96, 20)),
    rounds=Rounds(least=3, most=9, seconds=6),
    long_rounds=Rounds(least=3, most=9, seconds=30),
)
FULL = dataclasses.replace(
    QUICK,
    blocks={(1024, 4096): DENSITIES, (512, 2048): DENSITIES},
    models={
        MIDDLE: DENSITIES,
        Shape(d_model=512, d_ff=2048, layers=6, vocabulary=8_000): DENSITIES,
        M2M100_418M: DENSITIES,
    },
    growth=Growth(
        pairs=(2, 60, 400, 4_000, 40_000),
        planned=(10_000, 100_000, 1_000_000, 5_000_000, 50_000_000),
        lines=(1_000, 10_000, 100_000),
    ),
    multiples=(1, 4, 8, 16, 32, 64, 128),
    ends=(Shape(d_model=1024, d_ff=4096, layers=1, vocabulary=1_000), (8, 96, 10)),
)
"""The same measurements and more, so that it can go on with the results of a quick run."""

RECORDED = ("record_vs_forward", "record_released_vs_ours", "record_released_vs_forward")
PARTS: dict[Callable[[Bench], Found], tuple[str, ...]] = {
    recording: (*RECORDED, "record_vs_forward_without_head", "record_once_ms"),
    blocks: tuple(f"block_{what}_{way}_vs_dense" for what in ("train", "decode") for way in WAYS[1:]),
    models: tuple(f"{what}_{way}_vs_dense" for what in ("train", "decode") for way in WAYS[1:]),
    exported: EXPORT_KEYS,
    end_to_end: END_KEYS,
    switching: ("switch_ms",),
    artifact: (
        *(f"mask_{what}_{count}_pairs" for what in ("bytes", "memory") for count in (60, 400, 40_000)),
        "load_masks_ms",
    ),
    **GROWTH,
}
"""Measurement → the keys that it yields, in the order of the table."""
AT_ONCE = (recording, exported, switching, artifact)
"""Measurements that are short: all of their keys are measured in one run, or none."""

MACHINE = ("dtype", "device", "threads", "clock")
"""Settings that nearly all numbers of a run share; the table says them once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    options = read_options(argv)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench: there is no CUDA device here, so nothing is measured", file=sys.stderr)
        return 2
    bench = Bench(
        plan=plan_for(options.size, device),
        device=device,
        dtype=getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32")),
        watch=Stopwatch(device, time.process_time if options.clock == "cpu" else time.perf_counter),
        only=tuple(filter(None, options.only.split(","))),
        multiple_of=options.multiple_of,
    )
    parts = dict(PARTS)
    if options.base:
        base = Base(model=options.base, masks=options.masks, data=options.data, split=options.split)
        parts[functools.partial(trained, base)] = BASE_KEYS
    unknown = {each.split(".")[0] for each in bench.only} - {key for keys in parts.values() for key in keys}
    if unknown:
        known = ", ".join(key for keys in parts.values() for key in keys)
        print(f"bench: no such key: {', '.join(sorted(unknown))}; keys are: {known}", file=sys.stderr)
        return 2
    found = earlier(options.json) if options.resume else {}
    log = RunLog(options, list(found.pop("runs", [])))
    began = bench.watch.now()
    bench = dataclasses.replace(
        bench, done=frozenset(found), deadline=began + 60 * (options.minutes or math.inf)
    )
    for part, keys in parts.items():
        if any(bench.wants(key) or key in {each.split(".")[0] for each in bench.only} for key in keys):
            for key, measured in run_part(bench, part, keys):
                found[key] = measured
                log.write(found, bench.watch.now() - began)
    for key, measured in (*best_multiple(found), *slopes(found)):
        found[key] = measured
        log.write(found, bench.watch.now() - began)
    Console(width=None if sys.stdout.isatty() else 140).print(table_of(found))
    if options.plot:
        draw(found, options.plot)
    if options.growth:
        draw_growth(found, options.growth)
    return 0


class RunLog:
    """The results' file: written after every number, so that a stopped run has what it found.

    Args:
        options: The command line. Of folders only the last name is written down.
        runs: What earlier runs into the same file were.
    """

    def __init__(self, options: argparse.Namespace, runs: list[Any]) -> None:
        self.options, self.runs = options, runs
        names = {name: Path(getattr(options, name)).name for name in ("base", "masks", "data")}
        self.config = {**vars(options), **names}
        for name in ("json", "plot", "growth", "resume", "minutes"):
            self.config.pop(name)
        # On Unix; how many processes wanted the processor in the minute before, so 0 on an idle machine.
        self.load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None

    def write(self, found: Mapping[str, Measured], seconds: float) -> None:
        """Write what there is."""
        if self.options.json:
            run = {name: getattr(self.options, name) for name in ("size", "only", "threads")}
            run |= {"seconds": round(seconds, 1), "load_before": self.load}
            results = {key: each.as_json() for key, each in found.items()}
            write_result(self.options.json, {**results, "runs": [*self.runs, run]}, self.config)


def earlier(path: str | None) -> dict[str, Any]:
    """Return what an earlier run has left in the results' file: numbers that were measured, and `runs`."""
    if not path or not Path(path).is_file():
        return {}
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    found = {
        key: Measured(
            median=each["median"], minimum=each["min"], maximum=each["max"], setting=each["setting"]
        )
        for key, each in content.items()
        if key not in ("runs", "recipe") and each["median"] is not None
    }
    return {**found, "runs": content["runs"]}


def run_part(bench: Bench, part: Callable[[Bench], Found], keys: Sequence[str]) -> Found:
    """Yield what is found for the keys that are wanted, or null with the reason."""
    if part in AT_ONCE and not bench.due(*([key for key in keys if bench.wants(key)] or keys)):
        return
    reached = set(bench.done)
    reason = "the measurement yielded nothing for this key"
    try:
        for key, measured in part(bench):
            if bench.wants(key):
                reached.add(key)
                print(f"{key}: {in_words(measured)}", file=sys.stderr, flush=True)
                yield key, measured
    except (NspecError, ImportError, torch.OutOfMemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
    for key in keys if bench.due(*keys) else ():
        if bench.wants(key) and not any(each == key or each.startswith(f"{key}.") for each in reached):
            missing = Measured.missing(reason)
            print(f"{key}: {in_words(missing)}", file=sys.stderr, flush=True)
            yield key, missing


def best_multiple(found: Mapping[str, Measured]) -> Found:
    """Yield the value of `GateConfig.multiple_of` whose block was the fastest, over all that was measured."""
    key = "block_{}_slice_vs_dense.multiple_of_"
    times: dict[int, list[float]] = {}
    for name, each in found.items():
        work = next((work for work in ("train", "decode") if name.startswith(key.format(work))), None)
        if work is not None and each.median is not None:
            times.setdefault(int(name.removeprefix(key.format(work))), []).append(each.median)
    if times:
        ratio_of = {multiple: statistics.fmean(values) for multiple, values in times.items()}
        best = min(ratio_of, key=lambda multiple: ratio_of[multiple])
        setting = next(each.setting for name, each in found.items() if "multiple_of" in name)
        yield "best_multiple_of", Measured.exactly(best, **setting, ratios=ratio_of)


def plan_for(size: str, device: torch.device) -> Plan:
    """Return a plan: on a CPU M2M-100-418M has fewer layers, on a GPU a step has more tokens."""
    plan = {"tiny": TINY, "quick": QUICK, "full": FULL}[size]
    if size == "tiny":
        return plan
    if device.type == "cuda":
        return dataclasses.replace(plan, train=(128, 32, 32), recorded=(128, 32, 32), decode=(16, 32, 32))
    fewer = {M2M100_418M: dataclasses.replace(M2M100_418M, layers=2)}
    return dataclasses.replace(
        plan, models={fewer.get(shape, shape): each for shape, each in plan.models.items()}
    )


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = parser.add_mutually_exclusive_group()
    for size, text in {
        "quick": "the numbers of recipes/SPEED.md (default)",
        "full": "all shapes and densities",
    }.items():
        sizes.add_argument(f"--{size}", dest="size", action="store_const", const=size, help=text)
    sizes.add_argument("--tiny", dest="size", action="store_const", const="tiny", help=argparse.SUPPRESS)
    parser.set_defaults(size="quick")
    parser.add_argument("--json", help="file for the results, with versions and hardware")
    parser.add_argument("--plot", help="file for the figure of time against density (PNG, SVG, PDF)")
    parser.add_argument("--growth", help="file for the figure of time and memory against size")
    parser.add_argument("--resume", action="store_true", help="keep what the results' file has, add the rest")
    parser.add_argument("--minutes", type=float, help="begin no comparison after so many; see --resume")
    parser.add_argument("--only", default="", help="keys to measure: record_vs_forward,switch_ms")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: processor seconds, for a machine that is not idle; with --threads 1 on a CPU",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu or cuda; default: cuda where it is there")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda")
    parser.add_argument("--multiple-of", type=int, help="GateConfig.multiple_of; default: the gate's choice")
    base = parser.add_argument_group("a trained model of yours (all three)")
    base.add_argument("--base", default="", help="folder or Hub id of the model")
    base.add_argument("--masks", default="", help="folder or Hub id of its masks")
    base.add_argument("--data", default="", help="folder of parallel text, with a split train")
    base.add_argument("--split", default=Base.split, help="split to score; default: %(default)s")
    options = parser.parse_args(argv)
    if len({bool(options.base), bool(options.masks), bool(options.data)}) > 1:
        parser.error("--base, --masks and --data go together")
    if options.clock == "cpu" and (options.threads != 1 or options.device != "cpu"):
        # Several threads spin while they wait for each other, and that would count.
        parser.error("--clock cpu is for one thread: --threads 1 --device cpu")
    return options


def in_words(measured: Measured) -> str:
    """Return `0.762 (0.751 to 0.790)`, or why there is no number."""
    if measured.median is None:
        return f"not measured: {measured.reason}"
    if measured.minimum == measured.maximum:
        return _number(measured.median)
    return f"{_number(measured.median)} ({_number(measured.minimum)} to {_number(measured.maximum)})"


def table_of(found: Mapping[str, Measured]) -> Table:
    """Return a table of all numbers, each with its setting."""
    shared = next((each.setting for each in found.values() if each.setting.keys() >= set(MACHINE)), {})
    shared = {name: shared[name] for name in MACHINE if name in shared}
    title = ", ".join(f"{name} {text}" for name, text in shared.items())
    table = Table("key", "median", "min", "max", "setting", title=f"ratios, milliseconds, bytes: {title}")
    for key, each in found.items():
        numbers = [_number(value) for value in (each.median, each.minimum, each.maximum)]
        own = {name: value for name, value in each.setting.items() if shared.get(name) != value}
        setting = ", ".join(f"{name} {_setting(value)}" for name, value in own.items())
        table.add_row(key, *numbers, each.reason or setting)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_setting(each)}" for name, each in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
