"""How the command line was called, and how it ends: printed commands run as printed, errors are one line."""

import contextlib
import errno
import logging
import os
import re
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from nspec_hf.core.errors import LIBRARIES, NspecError

_NOT_WRITTEN = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|PytorchStreamWriter|"
    r"inline_container\.cc:\d+\] \. unexpected pos"
)
"""What tokenizers, safetensors and torch say, in errors of their own, where a file could not be written."""


def program() -> str:
    """Return what calls the command line again, such as `nspec` or `.venv/bin/python -m nspec_hf`."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py" and script.parent.name == "nspec_hf":
        return f"{_as_typed(Path(sys.executable))} -m nspec_hf"
    on_path = Path(shutil.which("nspec") or "").resolve() == script.resolve()
    return "nspec" if on_path or script.stem != "nspec" else _as_typed(script)


def exit_status(name: str, call: Callable[[], int | None]) -> int:
    """Run a command or a script to its end and return its exit status.

    0, or what `call` returns: done. 2: something was asked that cannot be. 130: interrupted by Ctrl-C. 141:
    what reads the output has gone. What stops it is said in one line that begins with `name`.
    """
    try:
        status = call() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except (NspecError, OSError) as error:  # OSError: a file or model that is not there
        sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            _drop_output()
        return 2
    except Exception as error:
        if not _NOT_WRITTEN.search(str(error)):
            raise
        said = " ".join(str(error).split())
        sys.stderr.write(f"{name}: a file could not be written; is the disk full, or a quota? ({said})\n")
        return 2


@contextlib.contextmanager
def quiet_libraries(name: str) -> Iterator[None]:
    """Keep back what libraries log and warn of, short of errors; a warning of ours is a line after `name`."""

    def line(message: Warning | str, *_place: object) -> str:
        return f"{name}: warning: {' '.join(str(message).split())}\n"

    disabled, format_warning = logging.root.manager.disable, warnings.formatwarning
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES.split())})(\.|$)")
        warnings.formatwarning = line
        logging.disable(max(disabled, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(disabled)
            warnings.formatwarning = format_warning


def _drop_output() -> None:
    """Forget what could not be written; else the interpreter tries again when it ends, and complains."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_typed(path: Path) -> str:
    """Return a path as a shell takes it, from here where it lies below this folder."""
    path, here = Path(os.path.abspath(path)), Path.cwd()  # not resolved: a link tells the environment
    if not path.is_relative_to(here):
        return shlex.quote(str(path))
    below = str(path.relative_to(here))
    return shlex.quote(below if os.sep in below else os.path.join(os.curdir, below))
