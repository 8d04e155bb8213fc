"""Checks of the text: what is read twice, what is tested on although it was trained on, what is no sentence.

All are shares of lines, counted once over the text, pair by pair; no model is needed but the tokenizer, for
lengths in tokens.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial

import numpy as np

from nspec_hf.core import CorpusError, in_short
from nspec_hf.data import PairText
from nspec_hf.doctor.setup import Finding, Setup, note, one_line
from nspec_hf.recording import longest_text

_PART, _FEWEST = 200, 50  # lines whose lengths are compared at a time, and how few are too few for it
_SAMPLE = 1000  # sentences of each side whose tokens are counted
_TAG = re.compile(r"__[a-z]{2,3}__|>>[\w-]+<<|<2\w+>|\b[a-z]{3}_[A-Z][a-z]{3}\b|</s>|<unk>|<pad>")
_MOJIBAKE = re.compile("Ã[\x80-\xbf©¤¶¼]|â€|Â[\x80-\xbf]|\ufffd")


def check_text(setup: Setup) -> Iterator[Finding]:
    """Look at the text of all splits."""
    try:
        texts = setup.texts
    except CorpusError as error:
        yield Finding(
            what=f"the text cannot be read: {one_line(error)}",
            why="a command stops at the same place",
            mend="mend the file; bad_lines: skip leaves such lines out and counts them",
        )
        return
    rows = [_Rows(use, text) for use, split in texts.items() for text in split]
    trained = {frozenset(row) for text in rows if text.use == "train" for row in text.rows}
    of_kinds = (partial(_unlike_sentences, *kind) for kind in _KINDS)
    for check in (_duplicates, _slipped, *of_kinds, partial(_leaks, trained)):
        yield from _summed(finding for text in rows for finding in check(text))
    yield from _summed(setup.given("model or tokenizer", lambda: list(_too_long(setup, rows))))


class _Rows:
    """The lines of one pair and split, as (source, target)."""

    def __init__(self, use: str, text: PairText) -> None:
        self.use, self.text = use, text
        self.rows = list(zip(text.sources, text.targets, strict=True))

    def __str__(self) -> str:
        return f"{self.text.pair} ({self.use})"


def _summed(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Return the first finding of a kind, and of how many more pairs and splits the same is to be said."""
    found = list(findings)
    if found:
        more = f"; the same of {len(found) - 1} more pairs or splits" if len(found) > 1 else ""
        yield replace(found[0], what=found[0].what + more)


def _duplicates(text: _Rows) -> Iterator[Finding]:
    share = 1 - len(set(text.rows)) / max(len(text.rows), 1)
    if share > 0.1:
        yield note(
            what=f"{share:.0%} of the lines of {text} stand there already",
            why="the same sentences are learned again and again, or decide the score",
            mend="take each line once: paste SOURCE TARGET | sort -u",
        )


def _slipped(text: _Rows) -> Iterator[Finding]:
    """The first part of a text whose sides have more alike lengths when one is moved by a line."""
    for first in range(0, len(text.rows), _PART):
        lengths = np.log1p([[*map(len, row)] for row in text.rows[first : first + _PART]])
        if len(lengths) < _FEWEST:
            return
        sources, targets = lengths.T
        here = _correlation(sources, targets)
        later, earlier = _correlation(sources[:-1], targets[1:]), _correlation(sources[1:], targets[:-1])
        best, way = max((later, "up"), (earlier, "down"))
        if best > max(0.5, here + 0.3):
            yield Finding(
                what=f"lines {first + 1} to {first + len(lengths)} of {text} have slipped: lengths on both "
                f"sides go together (correlation {best:.2f}) where targets are moved by a line {way}, and do "
                f"not as they stand ({here:.2f})",
                why="sentence n is no translation of sentence n, and nothing else says so",
                mend="one side has a line too many or too few at or before these; align the files again",
            )
            return


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() and other.std() else 0.0


def _unlike_sentences(
    about: str, is_so: Callable[[str, str], bool], limit: float, why: str, mend: str, text: _Rows
) -> Iterator[Finding]:
    bad = [str(number) for number, row in enumerate(text.rows, start=1) if is_so(*row)]
    if len(bad) > limit * len(text.rows):
        what = f"{len(bad)} of {len(text.rows)} lines of {text} {about}: line {in_short(bad, 3)}"
        yield Finding(what=what, why=why, mend=mend, level="note" if limit else "wrong")


def _is_uneven(source: str, target: str) -> bool:
    shorter, longer = sorted([len(source), len(target)])
    return longer > 20 and longer > 5 * shorter


_KINDS: tuple[tuple[str, Callable[[str, str], bool], float, str, str], ...] = (
    (
        "hold a language tag or a special token as text",
        lambda source, target: bool(_TAG.search(source) or _TAG.search(target)),
        0.0,
        "the tokenizer puts the tag there itself; a second one is translated, or switches the language",
        "take tags out of the text: sed -E 's/^(__[a-z]+__|>>[a-z]+<<) //'",
    ),
    (
        "were decoded with a wrong table (Ã©, â€, \ufffd)",
        lambda source, target: bool(_MOJIBAKE.search(source) or _MOJIBAKE.search(target)),
        0.001,
        "such letters are in no vocabulary, and the model learns to write them",
        "decode the original file as UTF-8, or mend it with ftfy",
    ),
    (
        "are copies of their source",
        lambda source, target: source == target and len(source) > 10,
        0.05,
        "the model learns to copy instead of to translate",
        "leave such lines out",
    ),
    (
        "are five times as long on one side",
        _is_uneven,
        0.02,
        "lines may have slipped: sentence n is no translation of sentence n",
        "compare the lines named with their neighbours; align the files again",
    ),
)
"""What is said of the lines, how to tell, the share that is still normal, why it matters, what to do."""


def _leaks(trained: Set[frozenset[str]], text: _Rows) -> Iterator[Finding]:
    """Held-out lines that were trained on, by source and target together, in either direction."""
    share = sum(frozenset(row) in trained for row in text.rows) / max(len(text.rows), 1)
    if text.use != "train" and share > 0.01:
        yield Finding(
            what=f"{share:.0%} of the lines of {text} are among the training lines",
            why="scores tell what was learned by heart; fine-tuning and masks profit differently",
            mend="take such lines out of the training text, on both sides",
        )


def _too_long(setup: Setup, texts: Sequence[_Rows]) -> Iterator[Finding]:
    positions = longest_text(setup.network) or sys.maxsize
    in_training = min(setup.train.batches.max_length or positions, positions)
    for text in texts:
        limit = in_training if text.use == "train" else positions
        sources, targets = (list(side[:_SAMPLE]) for side in (text.text.sources, text.text.targets))
        sides = (
            setup.tags.encode_source(sources, text.text.pair),
            setup.tags.encode_target(targets, text.text.pair),
        )
        over = sum(max(map(len, row)) > limit for row in zip(*sides, strict=True))
        if over:
            yield note(
                what=f"{over} of the first {len(sources)} lines of {text} are over {limit} tokens",
                why="they are left out of training, and cut off in translation",
                mend="split them at sentence ends, or raise --train.batches.max_length where the model "
                "has more positions",
            )
