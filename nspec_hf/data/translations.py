"""Translations on disk: a folder with one file a pair, one sentence a line.

What a system translated and what it is compared with have the same shape in memory, `{pair: [sentence, …]}`,
and on disk, `en-de.txt`, `de-en.ref`, `en-fr.hyp.xz` …: the first part of the name between dots that reads
as a pair says which pair it is. The ending is free; `.gz` and `.xz` are unpacked. Scores, significance and
COMET read from here.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from nspec_hf.core import PACKED, ConfigError, CorpusError, Pair, read_lines, warn

Outputs = dict[Pair, list[str]]


def read_outputs(folder: str | os.PathLike, ending: str = "") -> Outputs:
    """Read every pair's sentences from a folder.

    Where it holds several files a pair (`en-de.base`, `en-de.ref`), `ending` says which ones to read: `"ref"`
    takes files that end in `.ref`, `.ref.gz` or `.ref.xz`.

    Returns:
        The sentences of each pair, pairs in alphabetical order. Empty lines are kept, since they keep the
        place of a sentence; a byte order mark and carriage returns are not.

    Raises:
        CorpusError: If the folder is missing or has no file of a pair, two files are of the same pair, or a
            file is not UTF-8 or cannot be unpacked.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CorpusError(f"there is no folder {folder}")
    paths: dict[Pair, Path] = {}
    nameless = []
    for path in sorted(folder.iterdir()):
        wanted = not ending or _bare_name(path).endswith(f".{ending.removeprefix('.')}")
        if not path.is_file() or path.name.startswith(".") or not wanted:
            continue
        pair = pair_of_file(path)
        if pair is None:
            nameless.append(path.name)
        elif pair in paths:
            raise CorpusError(
                f"{folder} has two files of {pair}: {paths[pair].name} and {path.name}; keep one file a "
                f"pair, or say which ones to read (ending={_bare_name(path).rsplit('.', 1)[-1]!r})"
            )
        else:
            paths[pair] = path
    if not paths:
        which = f" with the ending {ending!r}" if ending else ""
        raise CorpusError(
            f"{folder} has no file of a pair{which}; expected names such as en-de.txt or de-en.xz"
        )
    if nameless:
        warn(f"{folder}: not read, since they name no pair: {', '.join(nameless)}")
    return {pair: read_lines(path) for pair, path in sorted(paths.items())}


def pair_of_file(path: Path) -> Pair | None:
    """Return the pair that a file's name names: the first part between dots that reads as one, or None."""
    for part in _bare_name(path).split("."):
        try:
            return Pair(part)
        except ConfigError:
            continue
    return None


def require_parallel(
    pair: str, hypotheses: Sequence[str], references: Sequence[str], system: str = "system"
) -> None:
    """Check that a pair has sentences, and as many references as hypotheses.

    Raises:
        CorpusError: If it has not; the message names the pair and both counts.
    """
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise CorpusError(f"{pair}: expected a list of sentences, got one string")
    if len(hypotheses) != len(references):
        raise CorpusError(
            f"{pair}: {system} has {len(hypotheses)} lines, the references have {len(references)}; line by "
            "line they must be the same sentences"
        )
    if not references:
        raise CorpusError(f"{pair}: there is no sentence to score")
    for name, sentences in ((system, hypotheses), ("the references", references)):
        wrong = next((i for i, text in enumerate(sentences) if not isinstance(text, str)), None)
        if wrong is not None:
            raise CorpusError(f"{pair}: sentence {wrong} of {name} is {sentences[wrong]!r}, not a text")


def _bare_name(path: Path) -> str:
    return path.stem if path.suffix in PACKED else path.name
