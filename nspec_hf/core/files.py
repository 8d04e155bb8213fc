"""Lines of a text file, plain or packed, the same wherever this package reads one.

Lines end at newlines only: `str.splitlines` would also split at U+2028 and others, which sentences do
contain, and all lines after it would then be shifted. A byte order mark and carriage returns are not text.
"""

import gzip
import lzma
from pathlib import Path

from nspec_hf.core.errors import CorpusError

PACKED = (".gz", ".xz")
"""Endings of files that are unpacked while they are read."""

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_raw_lines(path: Path) -> list[bytes]:
    """Return a file's lines as bytes; a last line need not end with a newline.

    Raises:
        CorpusError: If the file cannot be opened or unpacked.
    """
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            text = file.read().removeprefix(_BYTE_ORDER_MARK)
    except (EOFError, OSError, lzma.LZMAError) as error:
        raise CorpusError(f"{path} cannot be read: {error}") from None
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def decode_line(line: bytes) -> str | None:
    """Return a line's text, or None where it is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def read_lines(path: Path) -> list[str]:
    """Return a file's lines, empty ones too.

    Raises:
        CorpusError: If the file cannot be opened or unpacked, or a line is not UTF-8.
    """
    lines = [decode_line(line) for line in read_raw_lines(path)]
    if None in lines:
        raise CorpusError(f"{path}, line {lines.index(None) + 1}: not UTF-8")
    return lines
