"""The one place where files are read and written: lines of text, JSON, whole files.

Lines end at newlines only: `str.splitlines` would also split at U+2028 and others, which sentences do
contain, and all lines after it would then be shifted. A byte order mark and carriage returns are not text.
What is written is whole or not there: under another name first, then renamed.
"""

import bz2
import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import stat
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from nspec_hf.core.errors import ConfigError, CorpusError, NspecError

PACKED = (".gz", ".xz", ".bz2")
"""Endings of files that are unpacked while they are read, and packed while they are written."""

_LIBRARIES: dict[str, Any] = {".gz": gzip, ".xz": lzma, ".bz2": bz2}
_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ", ".bz2": b"BZh"}
_LINE = 110


def raw_lines(source: Path | BinaryIO) -> Iterator[bytes]:
    """Yield a file's lines as bytes, read as they are asked for; a last line need not end with a newline.

    It is unpacked as its name says; an open one, such as standard input, as its content says.

    Raises:
        CorpusError: If it cannot be opened or unpacked, or holds what no text in UTF-8 does.
    """
    name = source if isinstance(source, Path) else getattr(source, "name", "standard input")
    try:
        with _opened(source) as file:
            for number, line in enumerate(file):
                if number == 0:
                    line = line.removeprefix(codecs.BOM_UTF8)
                    if not line:
                        continue
                if b"\0" in line or (
                    number == 0 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
                ):
                    for _ in file:
                        pass  # what cannot be unpacked to its end is named as that
                    raise CorpusError(
                        f"{name} is UTF-16 or no text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
                    )
                yield line.removesuffix(b"\n").removesuffix(b"\r")
    except CorpusError:
        raise
    except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"{name} cannot be read: {error}") from None


def _opened(source: Path | BinaryIO) -> Any:
    """Return an open file of what is in it, unpacked."""
    if isinstance(source, Path):
        return _LIBRARIES[source.suffix].open(source) if source.suffix in _LIBRARIES else source.open("rb")
    content = source.read()
    packing = next((each for each, magic in _MAGIC.items() if content.startswith(magic)), "")
    return io.BytesIO(_LIBRARIES[packing].decompress(content) if packing else content)


def decode_line(line: bytes) -> str | None:
    """Return a line's text, or None where it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def read_lines(source: Path | BinaryIO) -> list[str]:
    """Return a file's lines, empty ones too, of what `raw_lines` takes.

    Raises:
        CorpusError: If it cannot be opened or unpacked, or a line is not UTF-8.
    """
    lines = [decode_line(line) for line in raw_lines(source)]
    if None in lines:
        name = source if isinstance(source, Path) else getattr(source, "name", "standard input")
        raise CorpusError(f"{name}, line {lines.index(None) + 1}: not UTF-8")
    return cast("list[str]", lines)


def as_line(text: str) -> str:
    """Return a text as one line: a line break in it, which would shift all lines after it, is a space."""
    return re.sub(r"[\r\n]+", " ", text)


def write_lines(target: str | os.PathLike | BinaryIO, lines: Iterable[str], holder: str = "") -> None:
    """Write one line each, UTF-8 with newlines on every system.

    The target is a file, packed as its name says, or an open one such as standard output. An error calls the
    lines what `holder` says, such as a pair.

    Raises:
        CorpusError: If a text holds a line break (see `as_line`) or what UTF-8 cannot write.
    """
    lines = list(lines)
    for number, line in enumerate(lines, start=1):
        place = f"{holder or target}, sentence {number}"
        if "\n" in line or "\r" in line:
            raise CorpusError(f"{place} holds a line break: {line!r}; replace it by a space")
        if "\0" in line:
            raise CorpusError(f"{place} holds NUL: {line!r}; leave it out")
        if not line.isascii() and decode_line(line.encode(errors="replace")) != line:
            raise CorpusError(f"{place} holds half a character: {line!r}")
    content = "".join(f"{line}\n" for line in lines).encode()
    if not isinstance(target, (str, os.PathLike)):
        target.write(content)
        target.flush()
        return
    packing = Path(target).suffix
    with atomic_write(target) as file:
        file.write(_LIBRARIES[packing].compress(content) if packing in _LIBRARIES else content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file (UTF-8, newlines as they are), whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_json(path: str | os.PathLike, error: type[NspecError] = ConfigError) -> Any:
    """Return what a JSON file holds; `error` where it holds none, or is nested too deeply to be read.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is no readable JSON ({reason}); make it again") from None


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write a JSON file of anything that `plain` takes, whole or not at all."""
    write_text(path, _indented(plain(content)) + "\n")


def _indented(value: Any, depth: int = 0) -> str:
    """Return JSON text with what fits into a line on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or depth + len(line) <= _LINE:
        return line
    if isinstance(value, dict):
        (first, last), keys = "{}", [f"{json.dumps(key, ensure_ascii=False)}: " for key in value]
        inner = [key + _indented(part, depth + 1) for key, part in zip(keys, value.values(), strict=True)]
    else:
        (first, last), inner = "[]", [_indented(part, depth + 1) for part in value]
    indent = "\n" + " " * (depth + 1)
    return f"{first}{indent}{f',{indent}'.join(inner)}{indent[:-1]}{last}"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file to be written in one step: readers of `path` see the old file or the whole new one.

    Its folder is made if needed. A link is followed and permissions are those that plain `open` would give.
    What is no regular file (`/dev/stdout`) is written directly.

    Raises:
        OSError: If it cannot be written, with the path; a file that was there before is then still whole.
    """
    given, path = path, Path(os.path.realpath(path))
    temporary = path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:
                yield file
            return
        # In the same folder (only a rename within one file system is atomic), with a name that fits however
        # long the file's is, opened plainly (a mkstemp file would be unreadable for colleagues).
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename not in (None, str(path), str(temporary), path, temporary, path.parent):
            raise  # of another file, which the caller read meanwhile
        reason = f"cannot be written ({error.strerror or error})"
        raise OSError(error.errno, reason, os.fspath(given)) from error
    finally:
        if temporary != path:
            temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Return settings or results as JSON values.

    Dataclasses become dicts, sets sorted lists, arrays and tensors lists, numbers that are not finite None
    (JSON has none such), and what is no JSON value at all its text.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(part) for part in value)
    if callable(tolist := getattr(value, "tolist", None)):  # NumPy's and torch's, neither imported here
        return plain(tolist())
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return str.__str__(value)  # a Pair as a plain string
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def digest(*parts: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 over the parts, in their order.

    These are texts (as UTF-8), bytes or arrays (as their bytes), iterators of such parts, or settings (as
    JSON with sorted keys).
    """
    sha = hashlib.sha256()
    for part in _flat_parts(parts):
        sha.update(part)
    return sha.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flat_parts(parts: Iterable[Any]) -> Iterator[Any]:
    for part in parts:
        if isinstance(part, Iterator):
            yield from _flat_parts(part)
        elif isinstance(part, str):
            yield part.encode()
        elif isinstance(part, (bytes, bytearray, memoryview)):
            yield part
        elif hasattr(part, "__array_interface__"):
            yield part if part.flags.c_contiguous else part.tobytes()
        else:
            yield json.dumps(plain(part), sort_keys=True).encode()


def _sync_folder(folder: Path) -> None:
    # Without this a power cut could forget the rename. Windows cannot open a folder.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
