"""Kill a piece of work with kill -9 at one of the moments at which it changes files."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def killed_at(number: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do the work in a process that is killed right before its `number`-th change of files in a folder.

    Changes are: opening a file to write it, renaming, removing and making folders. What the work prints is
    not shown.

    Returns:
        Whether it was killed; False if it came to its end before.
    """
    child = os.fork()
    if child == 0:
        # From here on nothing returns: this is a copy of the test process.
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            sys.addaudithook(_Killer(number, str(folder)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    if os.WEXITSTATUS(status):
        raise RuntimeError("the work failed by itself")
    return False


class _Killer:
    def __init__(self, number: int, folder: str) -> None:
        self.left, self.folder = number, folder

    def __call__(self, event: str, arguments: tuple) -> None:
        changes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
        if event == "open":
            changes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not changes or not str(arguments[0]).startswith(self.folder):
            return
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
