"""Translator: any mix of pairs, each row with its own neurons and its own target language.

Shape letters: B = samples, N = beams, S = source tokens, T = tokens written so far.

The traps that it takes care of: a list as `forced_bos_token_id` gives every row one language without a word,
so the target's tag travels as the decoder's prompt; tokenizers keep a language in their state, so text is
encoded pair by pair; and a bound on the output that depends on the longest sentence of a batch would make a
translation depend on its neighbours, so every row has its own.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast, overload
from weakref import WeakKeyDictionary

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from nspec_hf.core import ConfigError, NspecError, Pair, as_often, as_pairs, generating, is_spread, warn
from nspec_hf.data import LanguageTags, PairText, as_tags, is_blank
from nspec_hf.evaluation.config import TranslateConfig
from nspec_hf.evaluation.requests import (
    RowLength,
    ScoreCheck,
    check_generation,
    check_texts,
    sees_rows,
    shortened,
    warn_of_no_end,
)
from nspec_hf.gating import Attachment, GateConfig, NeuronGate, attachment_of, generation_setting
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import SIDES, decoder_prompt, eval_mode, longest_text, plain_model

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


class _Row(NamedTuple):
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

    The model is left as it was: its train or eval mode, and a gate that is on it. Threads may share a
    translator, or have several of one model: they wait for each other, call by call. Where processes have
    parts of the model's weights (FSDP2, ZeRO-3), all call this together, each with texts of its own.

    Args:
        model: A sequence-to-sequence model; wrappers of DDP, `torch.compile` and PEFT are looked through.
        tokenizer: Its tokenizer, or `LanguageTags` of it where your language codes differ from its own.
        masks: Masks, or a gate (or other attachment) that has them. None takes what is on the model when
            text is translated, and all neurons where there is none.
        config: Beams, batch size, longest output.
        gate_config: How masks act; `GateConfig(zero_shot="compose")` also takes pairs without masks of
            their own.
        coverage: Of masks that hold several levels, which one runs: the dial between quality and speed of a
            model that was trained for it. None: the masks as they are.

    Raises:
        SiteMismatchError: If the masks are for another model.
        UnsupportedModelError: If PEFT tunes a prompt or prefix of it, which is not in the model itself.
        ConfigError: If `gate_config` or `coverage` is given without masks, these hold no such level, or masks
            are something else.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | LanguageTags,
        masks: NeuronMasks | Attachment | None = None,
        config: TranslateConfig | None = None,
        gate_config: GateConfig | None = None,
        coverage: float | None = None,
    ) -> None:
        self.model = plain_model(model)
        self.tags = as_tags(tokenizer)
        self.tokenizer = self.tags.tokenizer
        if isinstance(masks, NeuronMasks):
            chosen = masks if coverage is None else masks.at(coverage)
            masks = self._gate_for(chosen, gate_config)
        elif coverage is not None:
            raise ConfigError("coverage chooses among the levels of masks; give the masks: gate.masks, say")
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
        self._fits: float = self.config.max_tokens
        # What the model was made for; None where it counts distances instead (T5).
        self._source_positions, self._positions = (longest_text(self.model, side) for side in SIDES)

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
                `max_length` all texts have that bound, as far as the model has positions.
                `prefix_allowed_tokens_fn` is told the text's number in the list; a `logits_processor` or
                `stopping_criteria` of your own sees all texts as the rows of one batch, in their order.

        Raises:
            UnknownPairError: If masks hold no such pair and are not to be composed.
            UnknownLanguageError: If the tokenizer has no tag for a language.
            ConfigError: If there are not as many pairs as texts, a text is no string, or `generate` cannot
                follow the settings.
            NotFiniteError: If the model's scores are NaN or infinite.

        Warns:
            UserWarning: If a source is cut, a translation reached its longest length without an end, or
                memory ran out and batches had to be smaller.
        """
        if isinstance(texts, str):
            return self.translate([texts], pair, **generation)[0]
        texts = list(texts)
        pairs, asked = check_texts(texts, pair), check_generation(self.model, generation)
        with _LOCKS_LOCK:
            lock = _LOCKS.setdefault(self.model, threading.RLock())
        with lock:  # which calls of all translators of a model take in turn
            fits = self._fits
            results, unfinished = self._translate(texts, pairs, asked)
        if self._fits < fits:
            warn(
                "memory ran out, and texts were translated in smaller batches; set max_tokens to what this "
                f"took, {self._fits} (now {self.config.max_tokens})"
            )
        warn_of_no_end(unfinished, len(texts))
        return results

    def translate_corpus(self, texts: Sequence[PairText]) -> dict[Pair, list[str]]:
        """Return the translations of several pairs, each named once, in common batches; see `translate`."""
        as_pairs(text.pair for text in texts)
        sources = [source for text in texts for source in text.sources]
        translated = iter(self.translate(sources, [text.pair for text in texts for _ in text.sources]))
        return {text.pair: [next(translated) for _ in text.sources] for text in texts}

    def _translate(
        self, texts: list[str], pairs: list[Pair], asked: Mapping[str, Any]
    ) -> tuple[list[str], int]:
        """Return the translations, and how many of them have no end."""
        gate = self.acting_gate
        different = list(dict.fromkeys(pairs))
        numbers = gate.include_all(different) if gate else [0] * len(different)
        pair_ids = dict(zip(different, numbers, strict=True))
        rows = self._shortened(self._encode(texts, pairs, blank=bool(sees_rows(asked))))
        batches = self._batches(rows, asked, one_pair=gate is not None and gate.one_pair_a_batch)
        results, unfinished, check = [""] * len(texts), 0, ScoreCheck()
        asked = {**asked, "logits_processor": [check, *(asked.get("logits_processor") or ())]}
        hidden = None if self.config.progress else True
        bar = tqdm(total=len(rows), desc="translate", unit="sentence", disable=hidden)
        with gate or nullcontext(), eval_mode(self.model), bar:
            for batch, counts in as_often(self.model, batches):
                outputs, ended = self._translated(batch, asked, pair_ids if gate else None)
                if not is_spread(self.model):  # else the other processes would wait for it
                    check.refuse()
                if not counts:
                    continue
                for row, text in zip(batch, outputs, strict=True):
                    written = self.tags.text.after(text, row.pair.target)
                    results[row.number] = "" if is_blank(texts[row.number]) else written
                unfinished += len(batch) - ended
                bar.update(len(batch))
        check.refuse()
        return results, unfinished

    def _gate_for(self, masks: NeuronMasks, config: GateConfig | None) -> NeuronGate:
        """Return the gate on the model if it does what is asked for, as after training; else a new one."""
        there = attachment_of(self.model)
        if isinstance(there, NeuronGate) and config in (None, there.config):
            if masks in (there.own_masks, there.masks):
                return there
        return NeuronGate(self.model, masks, config)

    def _encode(self, texts: Sequence[str], pairs: Sequence[Pair], blank: bool = False) -> list[_Row]:
        """Return a row for every text that is not blank, or for all."""
        numbers: dict[Pair, list[int]] = {}
        for number, pair in enumerate(pairs):
            numbers.setdefault(pair, []).extend([number] if blank or not is_blank(texts[number]) else [])
        rows: list[_Row] = []
        for pair, of_pair in numbers.items():
            self.tags.check(pair)
            encoded = self.tags.encode_source([texts[number] for number in of_pair], pair)
            rows += [_Row(number, pair, ids) for number, ids in zip(of_pair, encoded, strict=True)]
        return rows

    def _shortened(self, rows: list[_Row]) -> list[_Row]:
        """Cut sources that are too long, between the tags around them, and warn about it."""
        cut = shortened(rows, self.limit, self.tags)
        return [row._replace(ids=ids) for row, ids in zip(rows, cut, strict=True)]

    @property
    def limit(self) -> int | None:
        """Tokens of a source beyond which it is cut; None where nothing says so (T5 counts distances)."""
        return min(filter(None, (self.config.max_source, self._source_positions)), default=None)

    def _batches(self, rows: list[_Row], asked: Mapping[str, Any], one_pair: bool) -> list[list[_Row]]:
        """Return batches by length, longest first, so that memory runs out at once or never."""
        beams, named = asked.get("num_beams", self.config.num_beams), sees_rows(asked)
        if named and rows:
            if len(rows) > 1 and self._tokens(rows, asked) > self.config.max_tokens:
                raise ConfigError(
                    f"{', '.join(named)} may treat each row its own way, so all texts must be one batch in "
                    f"their order, and {len(rows)} texts are more than max_tokens={self.config.max_tokens}. "
                    "Translate fewer at once or raise max_tokens; or use prefix_allowed_tokens_fn, which is "
                    "told the text's number; or say same_for_all_rows = True on it"
                )
            return [sorted(rows, key=lambda row: row.number)]
        order = sorted(rows, key=lambda row: (row.pair if one_pair else "", -len(row.ids), row.number))
        batches: list[list[_Row]] = []
        for row in order:
            # The first row of a batch is its longest.
            last = batches[-1] if batches else []
            tokens = (len(last) + 1) * len(last[0].ids) * beams if last else 0
            if last and tokens <= self.config.max_tokens and not (one_pair and last[0].pair != row.pair):
                last.append(row)
            else:
                batches.append([row])
        return batches

    def _tokens(self, batch: list[_Row], asked: Mapping[str, Any]) -> int:
        """Return what `max_tokens` bounds."""
        beams = asked.get("num_beams", self.config.num_beams)
        return len(batch) * max(len(row.ids) for row in batch) * beams

    def _translated(
        self, batch: list[_Row], asked: Mapping[str, Any], pair_ids: Mapping[Pair, int] | None
    ) -> tuple[list[str], int]:
        """Return what `_generate` does; of a batch that memory does not hold, half after half."""
        tokens = self._tokens(batch, asked)
        # Processes that share weights run in step, and a function that sees all rows is to see them all.
        whole = len(batch) == 1 or is_spread(self.model) or bool(sees_rows(asked))
        if whole or tokens <= self._fits:
            settings = self._settings(batch, asked)
            if pair_ids is not None:
                ids = [pair_ids[row.pair] for row in batch]
                settings["pair_ids"] = torch.tensor(ids, device=self.model.device)
            try:
                return self._generate(batch, settings)
            except RuntimeError as error:
                if whole or not should_reduce_batch_size(error):
                    raise
            # Here and not above, where the error still holds on to what had been computed.
            clear_device_cache(garbage_collection=True)
            self._fits = tokens // 2
        middle = len(batch) // 2
        parts = [self._translated(part, asked, pair_ids) for part in (batch[:middle], batch[middle:])]
        return [text for texts, _ in parts for text in texts], sum(ended for _, ended in parts)

    def _settings(self, batch: list[_Row], asked: Mapping[str, Any]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "num_beams": self.config.num_beams,
            "length_penalty": self.config.length_penalty,
            "do_sample": False,
            "return_dict_in_generate": False,
            "forced_bos_token_id": None,
            "forced_eos_token_id": None,  # at the batch's longest length, so in some of its rows alone
            **asked,
        }
        allowed = settings.get("prefix_allowed_tokens_fn")
        if allowed is not None:  # it is told a text's number, not the row of the batch
            settings["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(batch[row].number, ids)
        prompt = len(self.tags.decoder_prefix(batch[0].pair, 0))
        if not {"max_new_tokens", "max_length"} & asked.keys():
            longest = [self._longest_output(row, prompt) for row in batch]
            row_length = RowLength(torch.tensor(longest, device=self.model.device) + prompt)
            given = settings.get("stopping_criteria") or []
            settings |= {"max_new_tokens": max(longest), "max_length": None}
            settings["stopping_criteria"] = StoppingCriteriaList([*given, row_length])
        elif self._positions is not None:  # beyond them is an index error, which no GPU recovers from
            room = {"max_new_tokens": max(1, self._positions - prompt), "max_length": self._positions}
            settings |= {name: min(asked[name], most) for name, most in room.items() if name in asked}
        return settings

    def _longest_output(self, row: _Row, prompt: int) -> int:
        longest = int(self.config.length_ratio * len(row.ids)) + self.config.length_extra
        return longest if self._positions is None else max(1, min(longest, self._positions - prompt))

    def _generate(self, batch: list[_Row], settings: Mapping[str, Any]) -> tuple[list[str], int]:
        """Return the translations of a batch, and how many of them have an end."""
        device = self.model.device
        prompts = [decoder_prompt(self.model, self.tags, row.pair) for row in batch]
        rows, pad = [torch.tensor(row.ids, dtype=torch.long) for row in batch], nn.utils.rnn.pad_sequence
        input_ids_BS = pad(rows, True, cast("int", self.tokenizer.pad_token_id or 0)).to(device)
        mask_BS = pad([torch.ones_like(ids_S) for ids_S in rows], batch_first=True).to(device)
        generate = generating(self.model, cast("Callable[..., Tensor]", self.model.generate))
        try:
            with torch.no_grad():
                outputs_BT = generate(
                    input_ids=input_ids_BS,
                    attention_mask=mask_BS,
                    decoder_input_ids=torch.tensor(prompts, device=device),
                    # Else generate puts its own before a prompt that begins with a language (mBART-25).
                    decoder_start_token_id=prompts[0][0],
                    **settings,
                )
        except ValueError as error:
            if isinstance(error, NspecError):
                raise
            raise ConfigError(f"generate cannot follow these settings: {error}") from error
        except RuntimeError:
            settings["logits_processor"][0].refuse()  # sampling stops at scores that are not finite
            raise
        written_BT = outputs_BT[:, len(prompts[0]) :]
        asked = generation_setting(self.model, settings, "eos_token_id")
        ends: Any = self.tokenizer.eos_token_id if asked is None else asked  # one or several
        ended = int(torch.isin(written_BT, torch.as_tensor(ends, device=device)).any(dim=1).sum())
        # A tokenizer's own clean-up would make "Bonjour !" into "Bonjour!", since English has no space there.
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return self.tokenizer.batch_decode(written_BT, **how), ended
