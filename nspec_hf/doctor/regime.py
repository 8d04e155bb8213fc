"""Where a set-up stands: how far its base overfits, and what came of pairs' own neurons in such a place.

Overfitting is the part of the validation loss that the training text does not have: 1 − loss on training text
/ loss on validation text, language tags left out, without dropout. In the laboratory (`recipes/lab.py`) it is
what tells best whether a continuation with each pair's own neurons gains over fine-tuning. The check needs
both splits, and runs the model on a few hundred sentences of each.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from nspec_hf.core import NspecError, read_lines
from nspec_hf.data import BatchConfig, PairText, encode_corpus
from nspec_hf.doctor.setup import Finding, NotCheckedError, NotGivenError, Setup, note, one_line
from nspec_hf.training import TrainConfig, text_loss

_SENTENCES = 400  # of each split, all pairs together
_LONGEST = 256  # tokens
_UNEVEN = 4  # lines of the largest pair over those of the smallest


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Bases that overfit from a share upwards, and what came of masks there in the laboratory."""

    least: float
    """The share of overfitting that it begins with."""
    cells: int
    """Cells of the laboratory whose base was of that kind."""
    above: int
    """Of these, the ones in which own neurons (coverage 0.6) ended above fine-tuning in BLEU."""
    own: float
    """What own neurons gained over fine-tuning on average, in BLEU."""
    random: float
    """What random neurons, as many, gained."""
    drawn: float
    """What as many gained that were drawn with chances that follow activity (`select.temperature` 0.3)."""
    advice: str
    """What to do."""

    @property
    def expectation(self) -> str:
        """What to expect, in a sentence."""
        return (
            f"of {self.cells} such bases in the laboratory (recipes/RESULTS.md), own neurons at coverage 0.6 "
            f"ended above fine-tuning in {self.above}, by {self.own:+.1f} BLEU on average, random ones, as "
            f"many, by {self.random:+.1f}, and ones drawn by activity, by {self.drawn:+.1f}"
        )


_ADVICE = (
    "this base gains by any regularization: tune the dropout of fine-tuning first; then draw neurons by "
    "activity, --coverage 0.6 --select.temperature 0.3, with a continuation at the base's rate and length, "
    "and random masks as dense beside it; the Bible's base of 51 % gained 0.45 chrF++ by --coverage 0.6, "
    "0.38 by fine-tuning without dropout and 0.07 by random masks",
    "train both, with random masks as dense beside, and let validation text decide: on Multi30k a base with "
    "47 % gained 0.44 BLEU by --coverage 0.6, 0.68 with --select.temperature 0.3 and 0.71 by random masks; "
    "two with 43 and 42 % lost 0.02 by --coverage 0.6 and gained 0.19 by random masks; of two with 36 %, one "
    "whose six directions share no English gained 0.48 and 0.37, and one of twelve directions by none",
    "expect speed and size, not quality: on the whole of Multi30k bases with 22, 14 and 6 % lost 0.49, 0.80 "
    "and 0.55 BLEU at coverage 0.6, which keeps less than a third of their neurons, random ones 0.86 to 1.20 "
    "BLEU; fine-tune, with its best dropout, or keep more of them",
)
_FOUND = yaml.safe_load("\n".join(read_lines(Path(__file__).with_name("regimes.yaml"))))
REGIMES = tuple(Regime(**found, advice=advice) for found, advice in zip(_FOUND, _ADVICE, strict=True))
"""The most overfitted first. Tests hold the numbers to the laboratory's, and the advice to the numbers."""


def check_regime(setup: Setup) -> Iterator[Finding]:
    """Measure the base on both splits, and say what to expect of masks there."""
    if setup.corpus is None or not {"train", "valid"} <= setup.splits.keys():
        raise NotGivenError("no text, or no validation split")
    texts = setup.given("text", lambda: setup.texts)
    train, valid = (loss_of(setup, texts[use]) for use in ("train", "valid"))
    share = max(0.0, 1 - train / valid)
    regime = next(regime for regime in REGIMES if share >= regime.least)
    yield note(
        what=f"{facts(setup, texts['train'])}; loss {train:.2f} nats a token on training text and "
        f"{valid:.2f} on validation text, {share:.0%} of which is overfitting",
        why=regime.expectation,
        mend=regime.advice,
    )
    lines = [len(text) for text in texts["train"]]
    if max(lines) > _UNEVEN * min(lines):
        yield note(
            what=f"pairs have from {min(lines)} to {max(lines)} training lines",
            why="batches that follow the text show small pairs seldom, and the mean over pairs hides them",
            mend="--train.batches.temperature 5 (Tan et al. 2024), and look at the loss of each pair",
        )


def loss_of(setup: Setup, texts: Sequence[PairText]) -> float:
    """Return the mean loss of the first sentences of every pair, in nats a token, language tags left out.

    Raises:
        NotCheckedError: If the model or tokenizer cannot be loaded, or cannot be run on them.
    """
    each = max(1, _SENTENCES // len(texts))
    some = [replace(text, sources=text.sources[:each], targets=text.targets[:each]) for text in texts]
    settings = TrainConfig(batches=BatchConfig(max_tokens=2048, max_length=_LONGEST))
    tags = setup.given("tokenizer", lambda: setup.tags)
    network = setup.given("model", lambda: setup.network)
    try:
        corpus = encode_corpus(some, tags, _LONGEST, progress=False)
        with tempfile.TemporaryDirectory() as folder:
            return text_loss(network, tags, corpus, settings, folder)
    except (NspecError, RuntimeError, IndexError) as error:
        raise NotCheckedError(f"the model cannot be run on the text: {one_line(error)}") from error


def facts(setup: Setup, texts: Sequence[PairText]) -> str:
    """Return how much text there is for how large a model."""
    lines = [len(text) for text in texts]
    sample = [target for text in texts for target in text.targets[:50]]
    tokens = sum(map(len, setup.tags.tokenizer(sample).input_ids)) / max(len(sample), 1) * sum(lines)
    uneven = f", from {min(lines)} to {max(lines)} lines" if len(lines) > 1 else f", {lines[0]} lines"
    parameters = setup.network.num_parameters()
    return f"{len(lines)} pairs{uneven}, {tokens / parameters:.2g} target tokens a parameter"
