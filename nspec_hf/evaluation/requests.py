"""What a call of `translate` may ask of `generate`, and what would act on other texts than it is meant for.

A translator sorts texts by length and cuts them into batches. So a function that is told a row of the batch
must be told the text's number instead, one that is told nothing but sees all rows needs all texts in one
batch and in their order, and what a translator makes itself (the prompt, the mask) cannot be handed in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, StoppingCriteria

from nspec_hf.core import ConfigError, NotFiniteError, Pair, warn
from nspec_hf.data import LanguageTags, half_a_character

_OURS = {
    "decoder_input_ids": "the pair's tag is the prompt; prefix_allowed_tokens_fn can prescribe more",
    "decoder_start_token_id": "it is that of the model",
    "pair_ids": "they come from the pairs",
} | dict.fromkeys(
    "inputs input_ids inputs_embeds attention_mask encoder_outputs decoder_attention_mask".split(),
    "they come from the texts",
)
_FORCED = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
_COUNTS = ("num_beams", "max_new_tokens", "max_length")  # None is what is said where nothing is asked
# Of transformers' own processors, those that hold rows of a batch; the others treat all rows alike.
_WITH_ROWS = {
    "ClassifierFreeGuidanceLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor",
    "PrefixConstrainedLogitsProcessor",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
}


class ScoreCheck(LogitsProcessor):
    """Sees whether a model's scores are numbers: of NaN, `generate` makes text without a word.

    A model in memory may hold NaN, and T5 overflows in float16.
    """

    same_for_all_rows = True

    def __init__(self) -> None:
        self._broken: Tensor | None = None

    def refuse(self) -> None:
        """Raise `NotFiniteError` if a row had a score that is NaN or infinite at a step."""
        if self._broken is not None and bool(self._broken):
            raise NotFiniteError(
                "the model's scores of next tokens are NaN or infinite, so its translations mean nothing; "
                "its weights are broken, or overflow in float16; load it with dtype=torch.float32 or bfloat16"
            )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Look at the scores [R, V]; they stay as they are, and are not waited for."""
        broken = ~(scores.amax(dim=-1) < torch.inf).all()  # NaN is not; where all is forbidden is -inf
        self._broken = broken if self._broken is None else self._broken | broken
        return scores


class RowLength(StoppingCriteria):
    """Ends each row at its own longest length; `longest_B` counts the prompt."""

    def __init__(self, longest_B: Tensor) -> None:
        self.longest_B = longest_B

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Return which rows of `input_ids` [B·N, T] have reached it; a sample's beams are adjacent."""
        beams = input_ids.shape[0] // self.longest_B.shape[0]
        return input_ids.shape[1] >= self.longest_B.repeat_interleave(beams)


def check_texts(texts: Sequence[str], pair: str | Sequence[str]) -> list[Pair]:
    """Return the pair of each text.

    Raises:
        ConfigError: If a text is no string, or holds half a character, which no tokenizer takes, or there are
            not as many pairs as texts.
    """
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ConfigError(f"texts are strings, but text {wrong} is {texts[wrong]!r}")
    broken = half_a_character(texts)
    if broken is not None:
        raise ConfigError(f"text {broken} holds half a character: {texts[broken]!r:.80}")
    pairs = [Pair(pair)] * len(texts) if isinstance(pair, str) else list(map(Pair, pair))
    if len(pairs) != len(texts):
        raise ConfigError(f"{len(texts)} texts but {len(pairs)} pairs; give one pair, or one for each text")
    return pairs


def check_generation(model: PreTrainedModel, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for `generate`, once they are some that a translation can be made with.

    Args:
        model: Whose `generation_config` holds what is not asked for.
        asked: What `translate` was given. A `generation_config` among it is taken as the settings that it
            changes, which overrule the translator's as others do.

    Raises:
        ConfigError: If a setting asks for several translations of a text, is the translator's own to make, or
            the settings contradict each other.
    """
    asked = {name: value for name, value in asked.items() if value is not None or name not in _COUNTS}
    given = asked.pop("generation_config", None)
    if given is not None:
        held = given.to_diff_dict()
        for name in _FORCED:  # a changed copy of the model's own has them as that has
            if held.get(name) == getattr(model.generation_config, name):
                held.pop(name, None)
        asked = {**held, **asked}
        asked.pop("transformers_version", None)
    for name in sorted(_OURS.keys() & asked.keys()):
        raise ConfigError(f"a translator makes {name} itself: {_OURS[name]}; model.generate takes it")
    if asked.get("return_dict_in_generate"):
        raise ConfigError("a translator returns text; call model.generate for scores and hidden states")
    for where, held in (("", asked), ("model.generation_config.", vars(model.generation_config))):
        several = held.get("num_return_sequences")
        if several not in (None, 1):
            raise ConfigError(
                f"{where}num_return_sequences is 1 for a translator, which returns one translation a text; "
                f"it is {several}"
            )
    settings = {name: value for name, value in asked.items() if hasattr(model.generation_config, name)}
    try:
        GenerationConfig(**{**model.generation_config.to_diff_dict(), **settings}).validate()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"generate cannot follow these settings: {error}") from None
    return asked


def sees_rows(asked: Mapping[str, Any]) -> list[str]:
    """Return the names of functions that see all rows of a batch at once, and may treat each its own way.

    Transformers' own that treat all rows alike are not among them, nor what says so of itself by an attribute
    `same_for_all_rows = True`.
    """
    functions = [*(asked.get("logits_processor") or ()), *(asked.get("stopping_criteria") or ())]
    return [
        getattr(function, "__name__", type(function).__name__)
        for function in functions
        if not getattr(function, "same_for_all_rows", False)
        and (
            type(function).__name__ in _WITH_ROWS or not type(function).__module__.startswith("transformers.")
        )
    ]


def shortened(
    texts: Sequence[tuple[int, Pair, list[int]]], limit: int | None, tags: LanguageTags
) -> list[list[int]]:
    """Return the token ids of texts; those that are too long are cut, between the tags around them.

    Args:
        texts: Number, pair and token ids of each text.
        limit: Tokens beyond which a text is cut, with a warning; None: none is.
        tags: How the tokenizer spells languages.
    """
    long = [(len(ids), number) for number, _, ids in texts if limit is not None and len(ids) > limit]
    if limit is None or not long:
        return [ids for _, _, ids in texts]
    most, worst = max(long, key=lambda each: each[0])
    warn(
        f"{len(long)} texts are longer than {limit} tokens and their ends are not translated (the "
        f"longest is text {worst} with {most} tokens); split them into sentences"
    )
    empty = {pair: tags.encode_source([""], pair)[0] for pair in {pair for _, pair, _ in texts}}
    return [ids if len(ids) <= limit else _cut(ids, limit, empty[pair]) for _, pair, ids in texts]


def warn_of_no_end(unfinished: int, total: int) -> None:
    """Say how many of the translations stopped at their longest length; nothing where none did."""
    if unfinished:
        warn(
            f"{unfinished} of {total} translations reached their longest length without an end of "
            "sentence; raise length_ratio or max_new_tokens if their ends are missing"
        )


def _cut(ids: list[int], limit: int, tags: list[int]) -> list[int]:
    """Return `limit` of a text's tokens; `tags` is what an empty text has."""
    behind = next(i for i, token in enumerate([*tags[::-1], None]) if token != ids[-1 - i])
    return ids[: limit - behind] + ids[len(ids) - behind :]
