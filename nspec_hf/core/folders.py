"""A run's folder: made whole or not at all, locked while it runs, kept to the settings it began with."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from nspec_hf.core.errors import ConfigError, FolderInUseError
from nspec_hf.core.files import plain, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None

SETTINGS_FILE = "settings.json"
_LOCK_FILE = ".lock"
_held: dict[Path, IO] = {}


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `folder` when all is written, else goes.

    Raises:
        ConfigError: If `folder` is there already and not empty, or a link to nothing, before anything is
            written.
    """
    folder = Path(folder)
    _require_free(folder)
    # One that is there may be a link, a mounted volume or ".", none of which a rename could replace.
    is_new = not folder.exists()
    partial = (folder.parent if is_new else folder) / f".{uuid.uuid4().hex}.partial"
    partial.mkdir(parents=True)
    try:
        yield partial
        _require_free(folder)  # another process may have filled it meanwhile: files of two would mix
        if is_new:
            os.replace(partial, folder)
        else:
            for path in sorted(partial.iterdir()):
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_new(folder: str | os.PathLike) -> None:
    """Check before the work that `atomic_folder` will take a folder, and that it can be written.

    Raises:
        ConfigError: If it is there already and not empty, or a link to nothing.
        OSError: If it cannot be written, with the path.
    """
    _require_free(Path(folder))
    require_writable(folder, is_folder=True)


def _require_free(folder: Path) -> None:
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(
            f"{folder} is a link to {os.readlink(folder)}, which is not there; make that folder"
        )
    # What a killed process was filling is no content, and may be another live one's.
    if folder.exists() and not (
        folder.is_dir() and all(path.suffix == ".partial" for path in folder.iterdir())
    ):
        raise ConfigError(f"{folder} is there already; give a new folder")


def require_writable(path: str | os.PathLike, *, is_folder: bool = False) -> None:
    """Check before the work that its result can be written; a trial leaves nothing behind.

    Raises:
        OSError: If it cannot, with the path.
    """
    path = Path(path)
    if not is_folder and path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if not is_folder and path.exists() and not path.is_file():
        return
    folder = path if is_folder else Path(os.path.realpath(path)).parent
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    trial = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from error
    finally:
        for part in missing:  # the deepest first; one that another process has filled since stays
            with contextlib.suppress(OSError):
                part.rmdir()


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder, which is made if needed, as the only process that writes it.

    A lock ends with its process, however that ends; the process that holds it may lock the folder once more,
    processes that it forks may not. Of several processes that train together, one holds the lock.

    Raises:
        FolderInUseError: If another process holds it.
    """
    folder = Path(os.path.realpath(folder))
    if folder in _held:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_FILE, "a", encoding="utf-8") as file:
        if not try_lock(file):
            raise FolderInUseError(
                f"another process is writing into {folder}; wait until it ends, or give another folder"
            )
        _held[folder] = file
        try:
            yield
        finally:
            _held.pop(folder, None)


def _let_go() -> None:
    """Leave the locks to the process that holds them: one that it forked would keep them after its death."""
    while _held:
        _held.popitem()[1].close()


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_let_go)


def try_lock(file: IO) -> bool:
    """Lock an open file until it is closed; return False where another process holds the lock."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def claim_folder(folder: str | os.PathLike, settings: Mapping[str, Any], file: str = SETTINGS_FILE) -> None:
    """Refuse to go on in a run's folder that was begun with other settings; a new one is made.

    `settings` are all that must stay the same for its files to be of use, anything that `plain` reads; `file`
    keeps them.

    Raises:
        ConfigError: If the folder was begun with others; the message names each that differs.
    """
    path, wanted = Path(folder) / file, _flat(plain(settings))
    if not path.is_file():
        write_json(path, settings)
        return
    begun = _flat(read_json(path))
    changed = [
        f"{name}: {begun.get(name)!r} then, {wanted.get(name)!r} now"
        for name in sorted(begun.keys() | wanted.keys())
        if begun.get(name) != wanted.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{folder} was begun with other settings ({'; '.join(changed)}); give another folder (--work), "
            "or delete this one to begin anew"
        )


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {name: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{name}.{key}" if name else key)
    return flat
