"""Do one, two and three processes find the same, with whole weights (DDP) and shared out (FSDP2, ZeRO-3)?

    python -m recipes.bench.processes --json processes.json
    python -m recipes.bench.processes --ways ddp,fsdp2 --counts 2 --modes slice

A tiny M2M-100 on made-up languages goes through all that a run does: it is recorded, translates after a
backward pass, is evaluated, trains four updates, saves, and goes on from its second update. Everything is
compared with one process in mode `mask`; the global batches are the same, whatever the number of processes.

The ways: `ddp`, `fsdp2` and `zero3` are the Trainer with accelerate behind it; `fully_shard` is a loop of
one's own around a model that PyTorch shards. accelerate leaves FSDP aside on a CPU; here it is told not to.
"""

import argparse
import functools
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import distributed

from nspec_hf.core import write_result
from recipes.bench.process_case import STEPS, WAYS, Case, World, make_world, run_case


def compare(found: Mapping[str, Any], alone: Mapping[str, Any], folder: Path, first: Path) -> dict[str, Any]:
    """Return how far a case is from one process: largest differences, and what is equal."""

    def furthest(name: str, expected: str, start: int = 0) -> float | None:
        pairs = zip(found.get(name, ()), alone[expected][start:], strict=False)
        return max((abs(one[0] - other[0]) for one, other in pairs), default=None)

    def between(name: str) -> float | None:
        losses = [key for key in alone[name] if "loss" in key]
        return max(abs(found[name][key] - alone[name][key]) for key in losses) if name in found else None

    counts = [name for name in alone["statistics"] if not name.startswith(("av/", "te/"))]
    same = [one == other for one, other in zip(found["translations"], alone["translations"], strict=True)]
    weights = None
    if (folder / "model").is_dir():
        one, other = (load_file(each / "model" / "model.safetensors") for each in (folder, first))
        weights = max((one[name] - other[name]).abs().max().item() for name in other)
    return {
        "statistics_equal": all(found["statistics"][name] == alone["statistics"][name] for name in counts),
        "translations_equal": f"{sum(same)} of {len(same)}",
        "evaluation": between("evaluation"),
        "training": furthest("training", "training"),
        "trained": between("trained"),
        "resumed": furthest("resumed", "training", STEPS // 2),
        "weights": weights,
    }


def in_processes(world: World, case: Case, folder: Path, seconds: float = 300) -> dict[str, Any]:
    """Run a case in processes that know each other; return what the first found.

    They are forked, so that text and masks are there and nothing is imported again. Those that are not done
    after `seconds` are killed.

    Raises:
        RuntimeError: If one of them failed or was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [os.fork() or _child(world, case, rank, port, folder) for rank in range(case.count)]
    ends, failed = time.monotonic() + seconds, []
    while children:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                failed += [status] if status else []
        if children and (failed or time.monotonic() > ends):
            # One that failed leaves the others in a collective that it never enters.
            for child in children:
                os.kill(child, 9)
                os.waitpid(child, 0)
            failed.append(-1)
            children = []
        time.sleep(0.05)
    if failed:
        errors = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("error.*"))]
        raise RuntimeError(f"{case}: {errors[0] if errors else f'not done after {seconds:.0f} seconds'}")
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def _child(world: World, case: Case, rank: int, port: int, folder: Path) -> int:
    """Be one of the processes; it never returns."""
    status = 1
    try:
        torch.set_num_threads(1)
        if case.count > 1:
            _introduce(rank, case.count, port)
        if case.way == "zero3":
            # Its own kernels would be compiled now, for minutes; without them it uses PyTorch's.
            import_module("deepspeed").ops.__compatible_ops__.clear()
        shard_on_cpu()
        found = run_case(world, case, rank, folder)
        if rank == 0:
            (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
        if distributed.is_initialized():
            distributed.barrier()
        status = 0
    except BaseException as error:
        (folder / f"error.{rank}").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not in order: gloo joins its threads while it holds what they may be waiting for.
        os._exit(status)


def _introduce(rank: int, count: int, port: int) -> None:
    """Tell the libraries of the other processes, as `accelerate launch` does."""
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_PORT": port,
    }
    os.environ |= {name: str(value) for name, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"}
    if not torch.cuda.is_available():
        os.environ |= {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": str(count)}


def shard_on_cpu() -> None:
    """Let accelerate shard by FSDP2 and ZeRO-3 on a CPU too, where it falls back to DDP without a word."""
    make = AcceleratorState.__init__

    @functools.wraps(make)
    def init(
        self: Any, *args: Any, deepspeed_plugin: Any = None, fsdp_plugin: Any = None, **kwargs: Any
    ) -> None:
        make(self, *args, deepspeed_plugin=deepspeed_plugin, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type != DistributedType.MULTI_CPU:
            return
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        if deepspeed_plugin is not None:
            plugins = deepspeed_plugin if isinstance(deepspeed_plugin, dict) else {"": deepspeed_plugin}
            next(iter(plugins.values())).select(_from_accelerator_state=True)
            self.distributed_type, self.deepspeed_plugins = DistributedType.DEEPSPEED, deepspeed_plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = init


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", default=",".join(WAYS), help="default: %(default)s")
    parser.add_argument("--modes", default="mask,slice", help="default: %(default)s")
    parser.add_argument(
        "--counts", default="2,3", help="numbers of processes, of 2 and 3; default: %(default)s"
    )
    parser.add_argument("--json", help="file for the results, with versions and hardware")
    parser.add_argument("--resume", action="store_true", help="keep what the results' file has, add the rest")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases; return the exit status."""
    options = read_options(argv)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    world, results = make_world(), _earlier(options)
    with tempfile.TemporaryDirectory() as work:
        first = Path(work) / "alone"
        alone = in_processes(world, Case("ddp", "mask", 1), first)
        for case in (case for case in _cases(options) if str(case) not in results):
            folder = Path(work) / str(case)
            try:
                if case.way == "zero3" and find_spec("deepspeed") is None:
                    raise ImportError("DeepSpeed is not installed")
                results[str(case)] = compare(in_processes(world, case, folder), alone, folder, first)
            except (RuntimeError, ImportError) as error:
                results[str(case)] = {"failed": str(error)}
            print(f"{case}: {results[str(case)]}", file=sys.stderr, flush=True)
            if options.json:
                write_result(options.json, results, {**vars(options), "json": None})
    Console(width=None if sys.stdout.isatty() else 140).print(table_of(results))
    return int(any("failed" in each for name, each in results.items() if not name.startswith("zero3")))


def _earlier(options: argparse.Namespace) -> dict[str, Any]:
    if not options.resume or not options.json or not Path(options.json).is_file():
        return {}
    content = json.loads(Path(options.json).read_text(encoding="utf-8"))
    return {name: found for name, found in content.items() if name != "recipe" and "failed" not in found}


def _cases(options: argparse.Namespace) -> list[Case]:
    ways, modes = options.ways.split(","), options.modes.split(",")
    counts = [int(count) for count in options.counts.split(",")]
    alone = [Case("ddp", mode, 1) for mode in modes]
    return alone + [Case(way, mode, count) for way in ways for mode in modes for count in counts]


def table_of(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table of all cases against one process in mode `mask`."""
    names = (
        "statistics_equal",
        "translations_equal",
        "evaluation",
        "training",
        "trained",
        "resumed",
        "weights",
    )
    table = Table("way.mode.processes", *names, title="against one process in mode mask; largest differences")
    for case, found in results.items():
        if "failed" in found:
            table.add_row(case, found["failed"][:100])
            continue
        values = [found[name] for name in names]
        table.add_row(
            case, *("–" if v is None else f"{v:.1e}" if isinstance(v, float) else str(v) for v in values)
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
