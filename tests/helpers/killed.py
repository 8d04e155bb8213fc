"""Commands in processes that are killed at a random moment, or at one of their renames."""

import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

from nspec_hf.cli.main import main


def run(
    folder: Path,
    arguments: list[str],
    kill_after: float | None = None,
    at_rename: int | None = None,
    as_nobody: bool = False,
) -> int:
    """Run a command in a forked process and return its exit status, -9 where it was killed.

    Args:
        folder: Where it runs.
        arguments: The command line.
        kill_after: Seconds until `kill -9`; None lets it end.
        at_rename: Kills it just before its rename of this number, counted from 0.
        as_nobody: Runs it as a user without rights where this one has all.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forking with threads: none computes here
        number = os.fork()
    if number == 0:
        _child(folder, arguments, at_rename, as_nobody)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            ended, status = os.waitpid(number, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(number, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def _child(folder: Path, arguments: list[str], at_rename: int | None, as_nobody: bool) -> None:
    status = 3
    try:
        os.chdir(folder)
        silent = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # not the tests'
        if as_nobody and os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        replace, count = os.replace, iter(range(10**9))

        def renamed(*paths: object, **more: object) -> None:
            if next(count) == at_rename:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths, **more)

        os.replace = renamed
        status = main(arguments)
    finally:
        os._exit(status)


def moments(seed: int, count: int, seconds: float, renames: int) -> list[dict[str, float]]:
    """Return when to kill: two thirds at random moments, one third at renames."""
    draw = random.Random(seed)
    timed = [{"kill_after": draw.uniform(0, seconds)} for _ in range(count - count // 3)]
    return timed + [{"at_rename": draw.randrange(renames)} for _ in range(count // 3)]
