"""Translator: any mix of pairs, each row with its own neurons and its own target language.

Shape letters: B = samples, S = source tokens.

Two traps that it takes care of: a list as `forced_bos_token_id` gives every row one language without a
word, so the target's tag travels as the decoder's prompt; and tokenizers keep a language in their state,
so text is encoded pair by pair.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, overload

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nspec_hf.config import GateConfig
from nspec_hf.errors import ConfigError
from nspec_hf.gate import NeuronGate
from nspec_hf.languages import language_tags
from nspec_hf.masks import NeuronMasks
from nspec_hf.pairs import Pair


@dataclass(frozen=True, kw_only=True)
class TranslateConfig:
    """How text is decoded."""

    num_beams: int = 5
    """Beams; 1 is greedy."""

    length_penalty: float = 1.0
    """Exponent of the length that a hypothesis's score is divided by."""

    max_tokens: int = 4096
    """Source tokens of a batch times beams, padding included."""

    length_ratio: float = 2.0
    """Longest translation in tokens: this many times the source's length …"""

    length_extra: int = 20
    """… plus this many."""

    progress: bool = True
    """Show a bar where standard error is a terminal."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.num_beams < 1 or self.max_tokens < 1 or self.length_ratio <= 0 or self.length_extra < 1:
            raise ConfigError("num_beams, max_tokens, length_ratio and length_extra are positive")


class Translator:
    """Translate with each pair's own neurons.

        translator = Translator(model, tokenizer, masks)
        translator.translate(["A man sleeps."], "en-de")
        translator.translate(["A man sleeps.", "Ein Hund."], ["en-de", "de-en"])

    Args:
        model: A sequence-to-sequence model.
        tokenizer: Its tokenizer.
        masks: Masks, or a gate that has them; None translates with all neurons.
        config: Beams, batch size, longest output.
        gate_config: How masks act; `GateConfig(zero_shot="compose")` also takes pairs without masks of
            their own.
        codes: Your language codes → the tokenizer's, where they differ.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        masks: NeuronMasks | NeuronGate | None = None,
        config: TranslateConfig | None = None,
        gate_config: GateConfig | None = None,
        codes: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(masks, NeuronMasks):
            masks = NeuronGate(model, masks, gate_config)
        elif gate_config is not None:
            raise ConfigError(
                "gate_config goes with masks; a gate has its own, and without masks there is none"
            )
        self.model, self.tokenizer, self.gate = model, tokenizer, masks
        self.config = config or TranslateConfig()
        self.tags = language_tags(tokenizer, codes)

    @overload
    def translate(self, texts: str, pair: str, **generation: Any) -> str: ...
    @overload
    def translate(self, texts: Sequence[str], pair: str | Sequence[str], **generation: Any) -> list[str]: ...
    def translate(
        self, texts: str | Sequence[str], pair: str | Sequence[str], **generation: Any
    ) -> str | list[str]:
        """Return the translations, in the order of the texts.

        Args:
            texts: A sentence or a list of sentences.
            pair: One pair for all, or one for each text.
            generation: Passed on to `model.generate`; overrules the settings.

        Raises:
            UnknownPairError: If masks hold no such pair and are not to be composed.
            UnknownLanguageError: If the tokenizer has no tag for a language.
            ConfigError: If there are not as many pairs as texts.
        """
        if isinstance(texts, str):
            return self.translate([texts], pair, **generation)[0]
        pairs = [Pair(pair)] * len(texts) if isinstance(pair, str) else [Pair(each) for each in pair]
        if len(pairs) != len(texts):
            raise ConfigError(
                f"{len(texts)} texts but {len(pairs)} pairs; give one pair, or one for each text"
            )
        rows = self._encode(texts, pairs)
        results = [""] * len(texts)
        was_training = self.model.training
        self.model.eval()
        bar = tqdm(
            total=len(texts),
            desc="translate",
            unit="sentence",
            disable=None if self.config.progress else True,
        )
        try:
            with self.gate or nullcontext(), bar:
                for batch in self._batches(rows, pairs):
                    outputs = self._generate([rows[i] for i in batch], [pairs[i] for i in batch], generation)
                    for i, text in zip(batch, outputs, strict=True):
                        results[i] = text
                    bar.update(len(batch))
        finally:
            self.model.train(was_training)
        return results

    def _encode(self, texts: Sequence[str], pairs: Sequence[Pair]) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in texts]
        for pair in dict.fromkeys(pairs):
            self.tags.check(pair)
            numbers = [i for i, each in enumerate(pairs) if each == pair]
            for i, ids in zip(
                numbers, self.tags.encode_source([texts[i] for i in numbers], pair), strict=True
            ):
                rows[i] = ids
        return rows

    def _batches(self, rows: Sequence[Sequence[int]], pairs: Sequence[Pair]) -> list[list[int]]:
        """Return sentence numbers by length, longest first, so that memory runs out at once or never."""
        one_pair = self.gate is not None and self.gate.config.mode == "slice"
        order = sorted(range(len(rows)), key=lambda i: (pairs[i] if one_pair else "", -len(rows[i])))
        batches: list[list[int]] = []
        for i in order:
            last = batches[-1] if batches else []
            fits = (
                last
                and (len(last) + 1) * len(rows[last[0]]) * self.config.num_beams <= self.config.max_tokens
            )
            if fits and (not one_pair or pairs[last[0]] == pairs[i]):
                last.append(i)
            else:
                batches.append([i])
        return batches

    def _generate(
        self, rows: Sequence[Sequence[int]], pairs: Sequence[Pair], generation: Mapping[str, Any]
    ) -> list[str]:
        device, start = self.model.device, self._start_token()
        prompts = [self.tags.decoder_prefix(pair, start) for pair in pairs]
        encoded = self.tokenizer.pad({"input_ids": list(rows)}, return_tensors="pt").to(device)
        settings: dict[str, Any] = {
            "num_beams": self.config.num_beams,
            "length_penalty": self.config.length_penalty,
            "do_sample": False,
            "max_new_tokens": int(self.config.length_ratio * encoded["input_ids"].shape[1])
            + self.config.length_extra,
            "forced_bos_token_id": None,
            **generation,
        }
        if self.gate is not None:
            settings["pair_ids"] = torch.tensor([self.gate.pair_id(pair) for pair in pairs], device=device)
        with torch.no_grad():
            outputs = self.model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                decoder_input_ids=torch.tensor(prompts, device=device),
                # Else generate puts its own start token before a prompt that begins with a language
                # (mBART-25).
                decoder_start_token_id=prompts[0][0],
                **settings,
            )
        return self.tokenizer.batch_decode(outputs, skip_special_tokens=True)

    def _start_token(self) -> int:
        for config in (self.model.generation_config, self.model.config):
            if isinstance(getattr(config, "decoder_start_token_id", None), int):
                return config.decoder_start_token_id
        raise ConfigError(
            "the model says no decoder_start_token_id; set model.generation_config.decoder_start_token_id"
        )
