"""Jobs: programs run side by side, each once, however often and by however many it is asked for.

A job is done when its own test says so, holds a lock while it runs, and writes to a log. The lock is the
running program's own: it stays while the program lives, also if what started it is killed, and goes when the
program ends in whatever way. So after `kill -9`, starting anew waits for what still runs, repeats nothing and
starts what is left.

The trap: a lock of the starting process would be gone with it, and a program that it left behind would be
started a second time in the same folder.
"""

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nspec_hf.core import try_lock

_COMMAND = "$ "  # what the line of a log begins with that says how the program was called


@dataclass(frozen=True, kw_only=True)
class Job:
    """A program to run once."""

    name: str
    command: Sequence[str]
    log: Path
    """What it prints is added to this file."""
    lock: Path
    """Held while it runs."""
    is_done: Callable[[], bool]
    """Says whether what it makes is there."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A job that ended without being done."""

    job: Job
    reason: str


@dataclass(kw_only=True)
class _Running:
    job: Job
    process: subprocess.Popen
    since: float


def places(count: int | None, cores: int, gpus: Sequence[str], given: Mapping[str, str]) -> list[dict]:
    """Return the environment of each job that may run at a time.

    Args:
        count: How many; None: one a GPU, or one where there is none.
        cores: Shared out among the jobs.
        gpus: As `CUDA_VISIBLE_DEVICES` names them; each job sees one.
        given: The user's environment, whose values stay.
    """
    count = count or max(1, len(gpus))
    chosen = {"OMP_NUM_THREADS": str(max(1, cores // count)), "TOKENIZERS_PARALLELISM": "false"}
    devices = [{"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {} for place in range(count)]
    return [{**chosen, **given, **device} for device in devices]


def run_jobs(
    jobs: Sequence[Job],
    environments: Sequence[Mapping[str, str]],
    show: Callable[[str, bool], None],
    pause: float = 0.2,
) -> list[Failure]:
    """Run jobs to the end, as many at a time as there are environments; one that fails stops no other.

    A job that is done is not run. One that another process runs is waited for, and then run if it is still
    not done. If this process is interrupted, its jobs are stopped.

    Args:
        jobs: In the order in which they are started.
        environments: One for each place.
        show: Called whenever something happened, with a line of text and whether a job has ended.
        pause: Seconds between two looks.

    Returns:
        The jobs that failed.
    """
    waiting, failures = list(jobs), []
    running: list[_Running | None] = [None] * len(environments)
    elsewhere: set[str] = set()
    try:
        while waiting or any(running):
            for place, held in enumerate(running):
                if held is not None and held.process.poll() is not None:
                    running[place] = None
                    failures += _ended(held, show)
            for job in list(waiting):
                if None not in running:
                    break
                place = running.index(None)
                lock = _locked(job.lock)
                if lock is None:
                    if job.name not in elsewhere:
                        show(f"{job.name}: is being run by another process; waiting for it", False)
                        elsewhere.add(job.name)
                    continue
                waiting.remove(job)
                with lock:
                    if job.is_done():
                        show(f"{job.name}: done already", True)
                    else:
                        running[place] = held = _start(job, environments[place], lock)
                        show(f"{job.name}: started (process {held.process.pid}, log {job.log})", False)
            time.sleep(pause if waiting or any(running) else 0)
    finally:
        _stop([held.process for held in running if held is not None])
    return failures


def _locked(path: Path) -> IO | None:
    """Return an open, locked file, or None if another process holds its lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a", encoding="utf-8")
    if try_lock(file):
        return file
    file.close()
    return None


def _start(job: Job, environment: Mapping[str, str], lock: IO) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as log:
        log.write(f"{_COMMAND}{shlex.join(job.command)}\n")
        log.flush()
        process = subprocess.Popen(
            list(job.command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            # The program inherits the open file, and with it the lock; ours is closed by the caller.
            pass_fds=[lock.fileno()] if os.name == "posix" else (),
        )
    return _Running(job=job, process=process, since=time.monotonic())


def _ended(held: _Running, show: Callable[[str, bool], None]) -> list[Failure]:
    """Say how a job ended; return its failure, if it is one."""
    minutes, code = (time.monotonic() - held.since) / 60, held.process.returncode
    if code == 0 and held.job.is_done():
        show(f"{held.job.name}: done after {minutes:.1f} minutes", True)
        return []
    reason = f"exit code {code}" if code else "it ended without its result"
    if code < 0:
        reason = f"killed by signal {-code}"
    if code == -9:
        reason += ", as the system does where memory is short (fewer jobs at a time need less)"
    lines = held.job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    reason += "" if last.startswith(_COMMAND) else f": {last}"  # else it said nothing
    show(f"{held.job.name}: FAILED, {reason} (log {held.job.log})", True)
    return [Failure(job=held.job, reason=reason)]


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
