"""Batches of a script's own collator, made to say which pair each row belongs to.

Shape letters: B = samples, T = target tokens.

The traps: a collator of the library stops at a column of text; `generate(batch["input_ids"])`, as scripts
call it, has left the pairs behind; and where labels are taken out for a loss function, M2M-100 has no decoder
inputs left.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import BatchEncoding

from nspec_hf.core import ConfigError, Pair, as_pairs, pair_index
from nspec_hf.data import IGNORED, LanguageTags, special_id

_PAIR_IDS = WeakTensorKeyDictionary()
"""`input_ids` that were taken out of a batch of ours → the pairs of their rows."""


class PairBatch(BatchEncoding):
    """A batch whose `input_ids` are known by their pairs when they go on alone."""

    def __getitem__(self, item: Any) -> Any:
        """Return a tensor of the batch."""
        value = super().__getitem__(item)
        if item == "input_ids" and "pair_ids" in self.data:
            _PAIR_IDS[value] = self.data["pair_ids"]
        return value

    def __getattr__(self, item: str) -> Any:
        """Return a tensor of the batch, as an attribute."""
        return self[item] if item == "input_ids" else super().__getattr__(item)


def pairs_of(input_ids: Any) -> Tensor | None:
    """Return the pair of each row, [B], where this very tensor was taken out of a batch of ours."""
    return _PAIR_IDS.get(input_ids) if isinstance(input_ids, Tensor) else None


class RowPairs:
    """Which pair a script's rows belong to: all to one, or each to the one that a column names.

    Args:
        tags: How the tokenizer spells languages.
        prompt_of: Returns what the decoder is given before it writes a pair's target.
        column: The rows' column that names their pair; None where all are of one.
        pairs: All pairs, in the order that `pair_ids` index; none: `learn` reads them from the data.

    Raises:
        UnknownLanguageError: If the tokenizer has no tag for a pair's target, and its family uses them.
    """

    def __init__(
        self,
        tags: LanguageTags,
        prompt_of: Callable[[Pair], list[int]],
        column: str | None,
        pairs: Iterable[str] = (),
    ) -> None:
        self.tags, self.column = tags, column
        self._prompt_of: Callable[[Pair], list[int]] | None = prompt_of
        self.pairs: list[Pair] = []
        self.prompts: list[list[int]] = []
        """What the decoder of each pair is given, in the order of the pairs."""
        self._take(as_pairs(pairs))

    def learn(self, *datasets: Any) -> None:
        """Read the pairs from the column of data sets, unless they are known.

        Raises:
            ConfigError: If a data set has no such column, or cannot be looked through.
        """
        if self.column is not None and not self.pairs:
            self._take(as_pairs(sorted({Pair(pair) for data in datasets for pair in self._named_in(data)})))

    def index(self, row: Mapping[str, Any]) -> int:
        """Return the number of a row's pair, after checking that the row has no other language's tags.

        Raises:
            ConfigError: If the row lacks the column, or pairs are not known yet.
            CorpusError: If its tags are of another pair.
            UnknownPairError: If its pair is none of those that were found.
        """
        if self.column is None:
            index = 0
        elif self.column not in row:
            raise _missing(self.column, row)
        elif not self.pairs:
            raise ConfigError("the pairs are not known yet; call specialize.record(…) before training")
        else:
            index = pair_index(self.pairs, row[self.column], "data that was recorded")
        if row.get("labels") is not None:
            self.tags.check_row(row["input_ids"], row["labels"], self.pairs[index])
        return index

    def prompt_settings(self, pair_ids_B: Tensor) -> dict[str, Any]:
        """Return the arguments of `generate` that begin each row in its target language.

        There are none where the source tells the model what to write (Marian, T5).
        """
        if all(self.tags.target_tag_id(pair) is None for pair in self.pairs):
            return {}
        prompts = [self.prompts[index] for index in pair_ids_B.tolist()]
        # The start token is what prompts begin with, or generate would put its own before a prompt; and a
        # prompt of the tag alone (mBART-25) would be followed by the config's forced token.
        return {
            "decoder_input_ids": torch.tensor(prompts, device=pair_ids_B.device),
            "decoder_start_token_id": prompts[0][0],
            "forced_bos_token_id": None,
        }

    def _take(self, pairs: list[Pair]) -> None:
        if pairs and self._prompt_of is not None:
            self.pairs, self.prompts = pairs, [self._prompt_of(pair) for pair in pairs]
            # It asks the model, which would go along with the collator to each spawned worker of a loader.
            self._prompt_of = None

    def _named_in(self, data: Any) -> Iterable[str]:
        column = str(self.column)
        if hasattr(data, "column_names") and hasattr(data, "unique"):
            if column not in data.column_names:
                raise _missing(column, data.column_names)
            return data.unique(column)
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise ConfigError(
                f"a {type(data).__name__} cannot be looked through for its pairs; name them: pairs=['en-de']"
            )
        for i in range(len(data)):
            if column not in data[i]:
                raise _missing(column, data[i])
        return {data[i][column] for i in range(len(data))}


class ScriptCollator:
    """A script's collator, whose batches get `pair_ids` [B].

    Args:
        collator: The script's.
        rows: Which pair a row belongs to.
        decoder_inputs: Whether batches get `decoder_input_ids` [B, T] where they lack them: for a Trainer,
            which takes the labels out, and takes decoder inputs out for `generate`.
    """

    def __init__(self, collator: Callable[..., Any], rows: RowPairs, decoder_inputs: bool) -> None:
        self.collator, self.rows, self.decoder_inputs = collator, rows, decoder_inputs
        # Where a script gives no processing_class, the Trainer saves its collator's tokenizer.
        self.tokenizer = getattr(collator, "tokenizer", None)

    @property
    def pairs(self) -> list[Pair]:
        """What `pair_ids` index."""
        return self.rows.pairs

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> PairBatch:
        """Return the script's batch, with the pair of each row."""
        pair_ids_B = torch.tensor([self.rows.index(row) for row in rows])
        made = self.collator([_Row(row, self.rows.column) for row in rows])
        batch = PairBatch({**made, "pair_ids": pair_ids_B})
        if len(set(pair_ids_B.tolist())) > 1:
            self._check_order(rows, batch.data.get("input_ids"), pair_ids_B)
        labels = batch.data.get("labels")
        if self.decoder_inputs and labels is not None and "decoder_input_ids" not in batch:
            batch["decoder_input_ids"] = self._shifted(labels, pair_ids_B)
        return batch

    def _check_order(self, rows: Sequence[Mapping[str, Any]], ids_BL: Any, pair_ids_B: Tensor) -> None:
        """Refuse a collator that sorts its rows: they would run as each other's pairs."""
        if not isinstance(ids_BL, Tensor) or any("input_ids" not in row for row in rows):
            return  # made of text in the collator, or of something else
        pad = special_id(self.rows.tags.tokenizer, "pad")
        given, found = (
            [[token for token in torch.as_tensor(ids).tolist() if token != pad] for ids in each]
            for each in ([row["input_ids"] for row in rows], ids_BL)
        )
        pairs = pair_ids_B.tolist()
        if found == given or sorted(found) != sorted(given):
            return  # as they came; or it changes rows, so that no order can be read
        for ids, pair in zip(found, pairs, strict=True):
            if pair not in {other for other, one in zip(pairs, given, strict=True) if one == ids}:
                raise ConfigError(
                    f"{type(self.collator).__name__} returns rows in another order than it gets them: they "
                    "would get each other's pairs; leave order to the sampler (train_sampling_strategy="
                    "'group_by_length')"
                )

    def _shifted(self, labels_BT: Tensor, pair_ids_B: Tensor) -> Tensor:
        starts_B1 = torch.tensor([self.rows.prompts[index][:1] for index in pair_ids_B.tolist()])
        pad = special_id(self.rows.tags.tokenizer, "pad")
        return torch.cat([starts_B1, labels_BT[:, :-1].masked_fill(labels_BT[:, :-1] == IGNORED, pad)], dim=1)


class _Row(dict[str, Any]):
    """A row whose pair is there for a script's collator that asks for it by its column's name.

    It is not among the row's items: the library's collators make tensors of all that they find there.
    """

    def __init__(self, row: Mapping[str, Any], column: str | None) -> None:
        super().__init__({name: value for name, value in row.items() if name != column})
        self._aside = {name: value for name, value in row.items() if name == column}

    def __missing__(self, name: str) -> Any:
        """Return the pair, if its column is asked for."""
        return self._aside[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return one value, the pair too."""
        return super().get(name, self._aside.get(name, default))

    def pop(self, name: str, *default: Any) -> Any:
        """Take one value out, the pair too."""
        return (self._aside if name in self._aside else super()).pop(name, *default)


def _missing(column: str, names: Iterable[str]) -> ConfigError:
    return ConfigError(
        f"rows have no column {column!r} that names their pair ('en-de'), only: "
        f"{', '.join(names) or 'nothing'}; let the map function return it too, as in "
        f"model_inputs[{column!r}] = examples[{column!r}]"
    )
