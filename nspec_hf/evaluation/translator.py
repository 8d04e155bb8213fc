"""Translator: any mix of pairs, each row with its own neurons and its own target language.

Shape letters: B = samples, N = beams, S = source tokens, T = tokens written so far.

The traps that it takes care of: a list as `forced_bos_token_id` gives every row one language without a word,
so the target's tag travels as the decoder's prompt; tokenizers keep a language in their state, so text is
encoded pair by pair; and a bound on the output that depends on the longest sentence of a batch would make a
translation depend on its neighbours, so every row has its own.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from nspec_hf.core import ConfigError, Pair
from nspec_hf.data import LanguageTags
from nspec_hf.evaluation.config import TranslateConfig
from nspec_hf.gating import Attachment, GateConfig, NeuronGate, attachment_of
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import decoder_start_token, eval_mode, plain_model


@dataclass(frozen=True)
class _Row:
    """One text to translate."""

    number: int
    """Its place in the list."""
    pair: Pair
    ids: list[int]
    """Source tokens, tags included."""


class Translator:
    """Translate with each pair's own neurons.

        translator = Translator(model, tokenizer, masks)
        translator.translate(["A man sleeps."], "en-de")
        translator.translate(["A man sleeps.", "Ein Hund."], ["en-de", "de-en"])

    The model is left as it was: its train or eval mode, and a gate that is on it.

    Args:
        model: A sequence-to-sequence model; wrappers of DDP, `torch.compile` and PEFT are looked through.
        tokenizer: Its tokenizer, or `LanguageTags` of it where your language codes differ from its own.
        masks: Masks, or a gate (or other attachment) that has them. None takes what is on the model when
            text is translated, and all neurons where there is none.
        config: Beams, batch size, longest output.
        gate_config: How masks act; `GateConfig(zero_shot="compose")` also takes pairs without masks of
            their own.

    Raises:
        SiteMismatchError: If the masks are for another model.
        ConfigError: If `gate_config` is given without masks, or masks are something else.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | LanguageTags,
        masks: NeuronMasks | Attachment | None = None,
        config: TranslateConfig | None = None,
        gate_config: GateConfig | None = None,
    ) -> None:
        self.model = plain_model(model)
        self.tags = tokenizer if isinstance(tokenizer, LanguageTags) else LanguageTags(tokenizer)
        self.tokenizer = self.tags.tokenizer
        if isinstance(masks, NeuronMasks):
            masks = self._gate_for(masks, gate_config)
        elif gate_config is not None:
            raise ConfigError(
                "gate_config goes with masks; a gate has its own, and without masks there is none"
            )
        if not isinstance(masks, Attachment | None):
            raise ConfigError(
                "a translator takes NeuronMasks (NeuronMasks.from_pretrained reads saved ones) or a gate, "
                f"got {type(masks).__name__}"
            )
        self.gate = masks
        self.config = config or TranslateConfig()

    @property
    def acting_gate(self) -> Attachment | None:
        """The gate that text is translated with now; None where all neurons run."""
        return self.gate or attachment_of(self.model)

    @overload
    def translate(self, texts: str, pair: str, **generation: Any) -> str: ...
    @overload
    def translate(self, texts: Sequence[str], pair: str | Sequence[str], **generation: Any) -> list[str]: ...
    def translate(
        self, texts: str | Sequence[str], pair: str | Sequence[str], **generation: Any
    ) -> str | list[str]:
        """Return the translations, in the order of the texts; an empty text's is empty.

        Args:
            texts: A sentence or a list of sentences.
            pair: One pair for all, or one for each text.
            generation: Passed on to `model.generate`; overrules the settings. With `max_new_tokens` or
                `max_length` all texts have that bound.

        Raises:
            UnknownPairError: If masks hold no such pair and are not to be composed.
            UnknownLanguageError: If the tokenizer has no tag for a language.
            ConfigError: If there are not as many pairs as texts, a text is no string, or a setting asks for
                several translations of one text.

        Warns:
            UserWarning: If a source is cut, or a translation reached its longest length without an end.
        """
        if isinstance(texts, str):
            return self.translate([texts], pair, **generation)[0]
        texts = list(texts)
        pairs = _checked_pairs(texts, pair, generation)
        gate = self.acting_gate
        pair_ids = {each: gate.include(each) if gate else 0 for each in dict.fromkeys(pairs)}
        rows = self._shortened(self._encode(texts, pairs))
        results, unfinished = [""] * len(texts), 0
        hidden = None if self.config.progress else True
        bar = tqdm(total=len(rows), desc="translate", unit="sentence", disable=hidden)
        with gate or nullcontext(), eval_mode(self.model), bar:
            for batch in self._batches(rows, one_pair=gate is not None and gate.one_pair_a_batch):
                settings = self._settings(batch, generation)
                if gate is not None:
                    ids = [pair_ids[row.pair] for row in batch]
                    settings["pair_ids"] = torch.tensor(ids, device=self.model.device)
                outputs, ended = self._generate(batch, settings)
                for row, text in zip(batch, outputs, strict=True):
                    results[row.number] = text
                unfinished += len(batch) - ended
                bar.update(len(batch))
        if unfinished:
            warnings.warn(
                f"{unfinished} of {len(texts)} translations reached their longest length without an end of "
                "sentence; raise length_ratio or max_new_tokens if their ends are missing",
                stacklevel=2,
            )
        return results

    def _gate_for(self, masks: NeuronMasks, config: GateConfig | None) -> NeuronGate:
        """Return the gate on the model if it does what is asked for, as after training; else a new one."""
        there = attachment_of(self.model)
        if isinstance(there, NeuronGate) and there.masks == masks and config in (None, there.config):
            return there
        return NeuronGate(self.model, masks, config)

    def _encode(self, texts: Sequence[str], pairs: Sequence[Pair]) -> list[_Row]:
        """Return a row for every text that is not blank."""
        numbers: dict[Pair, list[int]] = {}
        for number, pair in enumerate(pairs):
            numbers.setdefault(pair, []).extend([number] if texts[number].strip() else [])
        rows: list[_Row] = []
        for pair, of_pair in numbers.items():
            self.tags.check(pair)
            encoded = self.tags.encode_source([texts[number] for number in of_pair], pair)
            rows += [_Row(number, pair, ids) for number, ids in zip(of_pair, encoded, strict=True)]
        return rows

    def _shortened(self, rows: list[_Row]) -> list[_Row]:
        """Cut sources that are too long, between the tags around them, and warn about it."""
        limit = min(filter(None, (self.config.max_source, self._positions)), default=None)
        long = [row for row in rows if limit is not None and len(row.ids) > limit]
        if limit is None or not long:
            return rows
        worst = max(long, key=lambda row: len(row.ids))
        warnings.warn(
            f"{len(long)} texts are longer than {limit} tokens and their ends are not translated (the "
            f"longest is text {worst.number} with {len(worst.ids)} tokens); split them into sentences",
            stacklevel=3,
        )
        return [self._cut(row, limit) if len(row.ids) > limit else row for row in rows]

    def _cut(self, row: _Row, limit: int) -> _Row:
        bare = self.tags.encode_source([""], row.pair)[0]
        behind = next(i for i, token in enumerate([*bare[::-1], None]) if token != row.ids[-1 - i])
        return replace(row, ids=row.ids[: limit - behind] + row.ids[len(row.ids) - behind :])

    @property
    def _positions(self) -> int | None:
        """How many positions the model was made for; None where it counts distances instead (T5)."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def _batches(self, rows: list[_Row], one_pair: bool) -> list[list[_Row]]:
        """Return batches by length, longest first, so that memory runs out at once or never."""
        order = sorted(rows, key=lambda row: (row.pair if one_pair else "", -len(row.ids), row.number))
        batches: list[list[_Row]] = []
        for row in order:
            last = batches[-1] if batches else []
            tokens = (len(last) + 1) * len(last[0].ids) * self.config.num_beams if last else 0
            if last and tokens <= self.config.max_tokens and not (one_pair and last[0].pair != row.pair):
                last.append(row)
            else:
                batches.append([row])
        return batches

    def _settings(self, batch: list[_Row], generation: Mapping[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "num_beams": self.config.num_beams,
            "length_penalty": self.config.length_penalty,
            "do_sample": False,
            "return_dict_in_generate": False,
            "forced_bos_token_id": None,
            **generation,
        }
        if not {"max_new_tokens", "max_length"} & generation.keys():
            prompt = len(self.tags.decoder_prefix(batch[0].pair, 0))
            longest = [self._longest_output(row, prompt) for row in batch]
            row_length = _RowLength(torch.tensor(longest, device=self.model.device) + prompt)
            given = settings.get("stopping_criteria") or []
            settings |= {"max_new_tokens": max(longest), "max_length": None}
            settings["stopping_criteria"] = StoppingCriteriaList([*given, row_length])
        return settings

    def _longest_output(self, row: _Row, prompt: int) -> int:
        longest = int(self.config.length_ratio * len(row.ids)) + self.config.length_extra
        return longest if self._positions is None else max(1, min(longest, self._positions - prompt))

    def _generate(self, batch: list[_Row], settings: Mapping[str, Any]) -> tuple[list[str], int]:
        """Return the translations of a batch, and how many of them have an end."""
        device, start = self.model.device, decoder_start_token(self.model)
        prompts = [self.tags.decoder_prefix(row.pair, start) for row in batch]
        width = max(len(row.ids) for row in batch)
        padding = [self.tokenizer.pad_token_id] * width
        input_ids_BS = torch.tensor([(row.ids + padding)[:width] for row in batch], device=device)
        lengths_B = torch.tensor([len(row.ids) for row in batch], device=device)
        generate = cast("Callable[..., Tensor]", self.model.generate)
        with torch.no_grad():
            outputs_BT = generate(
                input_ids=input_ids_BS,
                attention_mask=(torch.arange(width, device=device) < lengths_B[:, None]).long(),
                decoder_input_ids=torch.tensor(prompts, device=device),
                # Else generate puts its own before a prompt that begins with a language (mBART-25).
                decoder_start_token_id=prompts[0][0],
                **settings,
            )
        written_BT = outputs_BT[:, len(prompts[0]) :]
        ended = int(written_BT.eq(self.tokenizer.eos_token_id).any(dim=1).sum())
        return self.tokenizer.batch_decode(written_BT, skip_special_tokens=True), ended


def _checked_pairs(
    texts: Sequence[str], pair: str | Sequence[str], generation: Mapping[str, Any]
) -> list[Pair]:
    """Return the pair of each text, once the request is one that can be answered."""
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ConfigError(f"texts are strings, but text {wrong} is {texts[wrong]!r}")
    pairs = [Pair(pair)] * len(texts) if isinstance(pair, str) else list(map(Pair, pair))
    if len(pairs) != len(texts):
        raise ConfigError(f"{len(texts)} texts but {len(pairs)} pairs; give one pair, or one for each text")
    if generation.get("num_return_sequences", 1) != 1:
        raise ConfigError("num_return_sequences is 1: a translator returns one translation a text")
    if generation.get("return_dict_in_generate"):
        raise ConfigError("a translator returns text; call model.generate for scores and hidden states")
    return pairs


class _RowLength(StoppingCriteria):
    """Ends each row at its own longest length; `longest_B` counts the prompt."""

    def __init__(self, longest_B: Tensor) -> None:
        self.longest_B = longest_B

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return which rows of `input_ids` [B·N, T] have reached it; a sample's beams are adjacent."""
        beams = input_ids.shape[0] // self.longest_B.shape[0]
        return input_ids.shape[1] >= self.longest_B.repeat_interleave(beams)
