"""Trim the vocabulary of an exported model, and prove and measure what that does.

Two proofs. Text whose tokens are all kept is split as before. And for every sentence of the sample, the
trimmed model writes what the whole one writes for the same tokens when it may not write the others. Measured
on text that was not counted: the share of sentences that are split otherwise, the share of translations that
are still the original's, and BLEU of both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from nspec_hf.core import ExportError, Pair
from nspec_hf.data import LanguageTags, PairText
from nspec_hf.evaluation import Score, score
from nspec_hf.export.tokenizer_cut import cut_tokenizer
from nspec_hf.export.verify import Tokens
from nspec_hf.export.vocabulary import kept_tokens, token_count


@dataclass(frozen=True)
class Trimmed:
    """A tokenizer before and after it was cut."""

    before: LanguageTags
    after: LanguageTags
    kept: list[int]
    """Old id of each new id."""
    size: int
    """How many tokens the model had."""

    @property
    def removed(self) -> list[int]:
        """Return the old ids that are gone."""
        return sorted(set(range(self.size)) - set(self.kept))

    def old(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return token ids as they were before."""
        return [[self.kept[number] for number in row] for row in rows]

    def new(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the new ids of tokens that are all kept."""
        new_id = {old: new for new, old in enumerate(self.kept)}
        return [[new_id[number] for number in row] for row in rows]


@dataclass(frozen=True, kw_only=True)
class VocabularyReport:
    """What a trimmed vocabulary does to text."""

    tokens: int
    """How many tokens the model has …"""
    tokens_dense: int
    """… and how many the one that it was made from."""
    counted: int
    """Sentence pairs that were counted."""
    held_out: int
    """Sentence pairs that were not counted, on which the rest is measured; 0: on the first of the counted."""
    resegmented: float
    """Share of their sentences, both sides, that are split otherwise."""
    unchanged: float
    """Share of the sample whose translations are those of the model that it was made from."""
    bleu: Mapping[str, float]
    """BLEU of each pair's sample …"""
    bleu_dense: Mapping[str, float]
    """… and of the model that it was made from."""
    signature: str

    def __str__(self) -> str:
        """Say it in two lines."""
        scores = ", ".join(
            f"{pair} {value:.2f} ({self.bleu_dense[pair]:.2f} before)" for pair, value in self.bleu.items()
        )
        where = f"{self.held_out} held-out" if self.held_out else "counted"
        return (
            f"{self.tokens:,} of {self.tokens_dense:,} tokens, counted on {self.counted:,} sentence pairs; "
            f"{self.resegmented:.2%} of the sentences of {where} pairs are split otherwise\n"
            f"{self.unchanged:.1%} of the sample's translations are as before; BLEU {scores}"
        )


def trim(
    model: PreTrainedModel, tags: LanguageTags, counted: Sequence[PairText], least: int, folder: Path
) -> Trimmed:
    """Choose the tokens that stay, and cut the tokenizer in the folder that it was saved to.

    Args:
        model: The model, which stays as it is; `cut_vocabulary` cuts it or a copy.
        tags: Its tokenizer.
        counted: Text whose subwords stay.
        least: How often a subword must occur in it.
        folder: What the tokenizer's `save_pretrained` wrote; cut in place.

    Raises:
        UnsupportedModelError: If the tokenizer cannot be cut.
    """
    size = token_count(model)
    kept = kept_tokens(model, tags, counted, least, folder)
    smaller = cut_tokenizer(folder, tags.tokenizer, kept)
    return Trimmed(tags, LanguageTags(smaller, tags.codes), kept, size)


def share_resegmented(trimmed: Trimmed, texts: Sequence[PairText]) -> float:
    """Return the share of sentences that are split otherwise than before.

    Raises:
        ExportError: If one is whose tokens are all kept.
    """
    kept, changed, count = set(trimmed.kept), 0, 0
    for text in texts:
        for side, sentences in (("source", text.sources), ("target", text.targets)):
            before = getattr(trimmed.before, f"encode_{side}")(sentences, text.pair)
            after = trimmed.old(getattr(trimmed.after, f"encode_{side}")(sentences, text.pair))
            for number, (old, new) in enumerate(zip(before, after, strict=True)):
                if old != new and kept.issuperset(old):
                    raise ExportError(
                        f"the trimmed tokenizer splits {sentences[number]!r} otherwise, although all of its "
                        "tokens are kept, so it was not written"
                    )
                changed += old != new
            count += len(before)
    return changed / count if count else 0.0


def expected_tokens(
    trimmed: Trimmed, rows: Tokens, before: Tokens, written: Tokens, decode: Callable[[Tokens], Tokens]
) -> Tokens:
    """Return what the trimmed model must write, in old ids.

    Greedy decoding that may not write some tokens differs only where it would have written one.

    Args:
        trimmed: What is kept.
        rows: Sentences as the trimmed tokenizer splits them, in old ids.
        before: The same sentences as they were split before.
        written: What the model wrote for those.
        decode: Translates encoded sentences with the model, without tokens that are gone.
    """
    kept, expected = set(trimmed.kept), dict[Pair, list[list[int]]]()
    for pair, each in rows.items():
        sides = enumerate(zip(each, before[pair], written[pair], strict=True))
        places = [place for place, (row, old, said) in sides if row != old or not kept.issuperset(said)]
        found = decode({pair: [each[place] for place in places]})[pair]
        again = dict(zip(places, found, strict=True))
        expected[pair] = [again.get(place, said) for place, said in enumerate(written[pair])]
    return expected


def measure(
    trimmed: Trimmed,
    counted: Sequence[PairText],
    held_out: Sequence[PairText],
    sample: int,
    found: Tokens,
    written: Tokens,
) -> VocabularyReport:
    """Say what a trimmed vocabulary does to text.

    Args:
        trimmed: What is kept.
        counted: Text whose subwords were counted.
        held_out: Text that was not counted; without it the first of the counted stands in.
        sample: How many sentences a pair were translated.
        found: Their translations by the trimmed model, in its ids …
        written: … and by the model that it was made from, in that one's ids.
    """
    texts = held_out or counted
    first = [PairText(text.pair, text.sources[:sample], text.targets[:sample]) for text in texts]
    same = [
        ours == theirs
        for pair, rows in found.items()
        for ours, theirs in zip(trimmed.old(rows), written[pair], strict=True)
    ]
    after, before = (_bleu(*each, first) for each in ((trimmed.after, found), (trimmed.before, written)))
    return VocabularyReport(
        tokens=len(trimmed.kept),
        tokens_dense=trimmed.size,
        counted=sum(map(len, counted)),
        held_out=sum(map(len, held_out)),
        resegmented=share_resegmented(trimmed, held_out or first),
        unchanged=sum(same) / len(same),
        bleu={pair: result.value for pair, result in after.items()},
        bleu_dense={pair: result.value for pair, result in before.items()},
        signature=next((result.signature for result in after.values()), ""),
    )


def _bleu(tags: LanguageTags, tokens: Tokens, texts: Sequence[PairText]) -> dict[str, Score]:
    written = {
        pair: tags.tokenizer.batch_decode(own, skip_special_tokens=True) for pair, own in tokens.items()
    }
    return {
        str(text.pair): score(
            [tags.text.after(line, text.pair.target) for line in written[text.pair]],
            text.targets,
            "bleu",
            text.pair,
        )
        for text in texts
    }
