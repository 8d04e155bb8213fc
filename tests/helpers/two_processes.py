"""Run a function in several processes that know each other (gloo), as `accelerate launch` starts them."""

import os
import pickle
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing as mp

from tests.helpers.fresh_python import run_python

PROGRAM = "import sys; from tests.helpers.two_processes import start; start(sys.argv[1])"


def run_in_processes(work: Callable[..., None], count: int, *args: Any, seconds: float = 240) -> None:
    """Call `work(rank, count, *args)` in each of `count` processes, which share nothing with this one.

    Processes that are still there after `seconds` are killed: a collective that one of them never enters
    must fail the test, not hang it.

    Raises:
        RuntimeError: If one of them raises, or they hang; it says what went wrong.
    """
    with tempfile.NamedTemporaryFile() as asked:
        asked.write(pickle.dumps((work, count, args, seconds)))
        asked.flush()
        ended = run_python(PROGRAM, asked.name)
    if ended.returncode:
        raise RuntimeError(ended.stderr)


def start(asked: str) -> None:
    """Be the process from which all are forked, after the test's own module is loaded."""
    work, count, args, seconds = pickle.loads(Path(asked).read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.start_processes(_one, (count, port, work, args), count, join=False, start_method="fork")
    deadline = time.monotonic() + seconds
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{work.__name__} hangs: not all of {count} processes came to an end")


def _one(rank: int, count: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    work(rank, count, *args)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    # Gloo's process group joins its threads while it holds Python's lock, which they may be waiting for:
    # a process that is taken down in order hangs now and then.
    os._exit(0)
