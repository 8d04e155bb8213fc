"""The collator: rows of any pairs become one padded batch that says which pair each row belongs to.

Shape letters: B = samples, S = source tokens, T = target tokens.

The traps: without `decoder_input_ids` label smoothing crashes on M2M-100 and mBART trains on wrong decoder
inputs without a word, so they are always there; and the Trainer strips a column that the model does not
name, so a row without a pair is an error.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nspec_hf.core import (
    ConfigError,
    CorpusError,
    Pair,
    UnknownPairError,
    as_pairs,
    in_short,
    numbered,
    pair_index,
    warn,
)
from nspec_hf.data.language_tags import LanguageTags, as_tags, special_id

IGNORED = -100
"""The label of a padding position."""


class PairCollator:
    """Pad rows of any pairs into one batch, with decoder inputs and `pair_ids`.

    A row is a dict that names its pair, as `pair` (`"en-de"`) or as `pair_ids` (its index in `pairs`), and
    holds either `input_ids` and `labels` (as an `EncodedCorpus` gives them, language tags included) or text:
    `source` and `target`, or `translation` (`{"en": …, "de": …}`). Other columns are left out, and of
    these a pair, ids or a translation of None, as concatenated data sets of different columns have. Padding
    that a row of ids brings along is taken off: positions of `attention_mask` 0, labels of -100, padding at
    the end.
    A batch whose rows all have no target (to be translated) has neither `labels` nor `decoder_input_ids`.

    Args:
        tokenizer: The model's tokenizer, or its `LanguageTags` where your language codes differ from its own.
        pairs: What `pair_ids` indexes; the same as the masks' pairs, in their order.
        decoder_start_token_id: The model's (`model.config.decoder_start_token_id`). By default what the
            tokenizer's family is known to use: the end of sentence for M2M-100, NLLB and mBART-50, padding
            for Marian, T5 and Pegasus. mBART-25 and PLBart begin with the target's tag instead.
        pad_to_multiple_of: Pad lengths up to a multiple of this.

    Raises:
        UnknownLanguageError: If the tokenizer has no tag for a pair's language.
        ConfigError: If `decoder_start_token_id` is needed and nothing tells it (MADLAD).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | LanguageTags,
        pairs: Iterable[str],
        decoder_start_token_id: int | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self.tags, self.pairs = as_tags(tokenizer), as_pairs(pairs)
        self.tokenizer, self._numbers = self.tags.tokenizer, numbered(self.pairs)
        for pair in self.pairs:
            self.tags.check(pair)
        for alike in self._alike():
            untagged = self.tags.family == "untagged"
            reason = "the tokenizer has no language tags" if untagged else "codes have one spelling"
            warn(f"{reason}, so nothing tells the model which language to write: {', '.join(alike)}")
        start = decoder_start_token_id
        self.decoder_start_token_id = _usual_start(self.tags) if start is None else start
        self.pad_to_multiple_of = pad_to_multiple_of or 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch.

        Returns:
            `input_ids` and `attention_mask` [B, S], `labels` (-100 = padding) and `decoder_input_ids` [B, T],
            `pair_ids` [B].

        Raises:
            CorpusError: If there is no row, a row names no pair or two, it holds neither ids nor text, or its
                ids have the tag of another language than its pair's.
            UnknownPairError: If a row's pair is none of the collator's.
        """
        if not rows:
            raise CorpusError("a batch needs a row, got none")
        pair_ids = [self._index(row) for row in rows]
        sides = [self._encode(row, self.pairs[i]) for row, i in zip(rows, pair_ids, strict=True)]
        sources, pad = [side[0] for side in sides], special_id(self.tokenizer, "pad")
        labels = [side[1] for side in sides if side[1] is not None]
        batch = {
            "input_ids": self._pad(sources, pad),
            "attention_mask": self._pad([[1] * len(row) for row in sources], 0),
            "pair_ids": torch.tensor(pair_ids),
        }
        if not labels:
            return batch
        if len(labels) < len(rows):
            missing = next(i for i, side in enumerate(sides) if side[1] is None)
            raise _expected(rows[missing], self.pairs[pair_ids[missing]])
        decoder_inputs = [
            self.tags.decoder_inputs(row, self.pairs[i], self.decoder_start_token_id)
            for row, i in zip(labels, pair_ids, strict=True)
        ]
        batch["labels"] = self._pad(labels, IGNORED)
        return batch | {"decoder_input_ids": self._pad(decoder_inputs, pad)}

    def _alike(self) -> list[list[str]]:
        """Return the target languages that neither a source nor what decoding begins with tells apart."""
        told: dict[str, list[str]] = {}
        for target in sorted({pair.target for pair in self.pairs}):
            pair = Pair(self.pairs[0].source, target)
            source, prompt = self.tags.encode_source([""], pair)[0], self.tags.decoder_prefix(pair, -1)
            told.setdefault(str((source, prompt)), []).append(target)
        return [targets for targets in told.values() if len(targets) > 1]

    def _pad(self, rows: Sequence[Sequence[int]], filler: int) -> Tensor:
        width = -(-max(map(len, rows)) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padded = np.full((len(rows), width), filler, dtype=np.int64)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
        return torch.from_numpy(padded)

    def _index(self, row: Mapping[str, Any]) -> int:
        number = row.get("pair_ids")
        if row.get("pair") is not None:
            index = pair_index(self._numbers, row["pair"], "collator's pairs")
            if number is not None and int(number) != index:
                raise CorpusError(
                    f"a row has pair {str(row['pair'])!r}, which is number {index}, but pair_ids {number}; "
                    "leave one of them out"
                )
            return index
        if number is None:
            raise CorpusError(
                f"a row names no pair; it has: {', '.join(row) or 'nothing'}. Give each row 'pair' ('en-de') "
                "or 'pair_ids', and train with remove_unused_columns=False, since the Trainer strips columns "
                "that the model does not name"
            )
        if not 0 <= int(number) < len(self.pairs):
            known = in_short([f"{i} {pair}" for i, pair in enumerate(self.pairs)])
            raise UnknownPairError(f"pair_ids {int(number)} is none of the collator's pairs: {known}")
        return int(number)

    def _without_padding(self, row: Mapping[str, Any], pair: Pair) -> tuple[list[int], list[int]]:
        """Return the ids of a row that was padded, as by `tokenizer(…, padding="max_length")`, unpadded."""
        ids = [int(number) for number in row["input_ids"]]
        labels = [int(number) for number in row["labels"] if number != IGNORED]
        for name, numbers in {"input_ids": ids, "labels": labels}.items():
            if not numbers or min(numbers) < 0:
                held = min(numbers, default="nothing")
                raise CorpusError(f"a row of {pair}: {name} hold {held}, which is no token's id")
        if row.get("attention_mask") is not None:
            if len(row["attention_mask"]) != len(ids):
                raise CorpusError(
                    f"a row has {len(ids)} input_ids, but an attention_mask of {len(row['attention_mask'])}; "
                    "leave it out where nothing is padded"
                )
            ids = [number for number, real in zip(ids, row["attention_mask"], strict=True) if real]
        pad, end = (getattr(self.tokenizer, f"{name}_token_id", None) for name in ("pad", "eos"))
        for numbers in (ids, labels):
            # Where padding is the end of sentence too, they cannot be told apart.
            while numbers and numbers[-1] == pad != end:
                numbers.pop()
        return ids, labels

    def _encode(self, row: Mapping[str, Any], pair: Pair) -> tuple[list[int], list[int] | None]:
        """Return the ids of both sides; None where a row has no target."""
        if row.get("input_ids") is not None and row.get("labels") is not None:
            sides = self._without_padding(row, pair)
            self.tags.check_row(*sides, pair)
            return sides
        translation = row.get("translation")
        texts = row if translation is None else translation
        names = ("source", "target") if translation is None else (pair.source, pair.target)
        if not isinstance(texts, Mapping) or names[0] not in texts:
            raise _expected(row, pair)
        for name in names:
            if name in texts and not isinstance(texts[name], str):
                raise CorpusError(f"a row of {pair}: {name} is {texts[name]!r}, no text")
        source = self.tags.encode_source([texts[names[0]]], pair)[0]
        return source, self.tags.encode_target([texts[names[1]]], pair)[0] if names[1] in texts else None


def _expected(row: Mapping[str, Any], pair: Pair) -> CorpusError:
    return CorpusError(
        f"a row of {pair} has {', '.join(row)}; expected input_ids and labels, source and target, or "
        f"translation with {pair.source!r} and {pair.target!r}"
    )


def _usual_start(tags: LanguageTags) -> int:
    """Return what a family's decoder starts from; families that start with a tag never use it."""
    tokenizer, name = tags.tokenizer, type(tags.tokenizer).__name__
    if tags.family in ("marian", "t5") or name.startswith(("Marian", "Pegasus")):
        return special_id(tokenizer, "pad")
    if tags.family == "madlad":
        raise ConfigError(
            "MADLAD's tokenizer does not show what its decoder starts from; give the collator "
            "decoder_start_token_id=model.config.decoder_start_token_id"
        )
    if tags.family == "untagged":
        warn(
            f"nothing shows what the decoder starts from, so it is taken to be {tokenizer.eos_token}; give "
            "the collator decoder_start_token_id=model.config.decoder_start_token_id"
        )
    return special_id(tokenizer, "eos")
