"""Translators of exported models, which have the neurons of some pairs alone and refuse all others."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nspec_hf.core import ConfigError, Pair, as_pairs, pair_index
from nspec_hf.data import LanguageTags, is_blank
from nspec_hf.evaluation import TranslateConfig, Translator, check_texts, shortened, warn_of_no_end
from nspec_hf.export import Decoder, folder_of_pair

# What `generate` calls it → what CTranslate2 calls it.
_OPTIONS = {
    "num_beams": "beam_size",
    "length_penalty": "length_penalty",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
}
_STEP = 32  # bounds of the output are rounded up to a multiple, so that texts share batches


class _OfPairs:
    """Knows the pairs that a model was exported for."""

    pairs: list[Pair]

    def check(self, pair: str) -> None:
        """Raise an UnknownPairError where the model was not exported for a pair."""
        pair_index(self.pairs, pair, "exported model")


class ExportedTranslator(_OfPairs, Translator):
    """A translator for a model that was exported for some pairs and runs all its neurons: no other pairs."""

    def __init__(
        self, model: Any, tags: LanguageTags, pairs: Sequence[str], config: TranslateConfig | None = None
    ) -> None:
        super().__init__(model, tags, None, config)
        self.pairs = as_pairs(pairs)

    def _translate(self, texts: list[str], pairs: list[Pair], asked: Any) -> tuple[list[str], int]:
        for pair in dict.fromkeys(pairs):
            self.check(pair)
        return super()._translate(texts, pairs, asked)


class ConvertedTranslator(_OfPairs):
    """A translator for a model that was exported for CTranslate2.

    Threads may share it; CTranslate2 keeps them apart.

    Args:
        folder: What `nspec export` wrote.
        tags: How its tokenizer spells languages.
        pairs: The pairs whose neurons it has, or that have a model each in it.
        config: Decoding.
        positions: Longest text in tokens that the model was made for; None: any.

    Raises:
        ConfigError: If ctranslate2 is not installed.
        ExportError: If CTranslate2 cannot read the folder.
    """

    def __init__(
        self,
        folder: Path,
        tags: LanguageTags,
        pairs: Sequence[str],
        config: TranslateConfig | None = None,
        positions: int | None = None,
    ) -> None:
        self.tags, self.tokenizer = tags, tags.tokenizer
        self.pairs = as_pairs(pairs)
        self.config = config or TranslateConfig()
        places = {pair: folder_of_pair(folder, pair) for pair in self.pairs}
        # As many threads as CTranslate2 takes by itself.
        loaded = {place: Decoder(place, tags.tokenizer, 0) for place in dict.fromkeys(places.values())}
        self.decoders = {pair: loaded[place] for pair, place in places.items()}
        """The model of each pair; they may be one."""
        self._positions = positions

    def translate(
        self, texts: str | Sequence[str], pair: str | Sequence[str], **generation: Any
    ) -> str | list[str]:
        """Return the translations, in the order of the texts; an empty text's is empty.

        Args:
            texts: A sentence or a list of sentences.
            pair: One pair for all, or one for each text.
            generation: `num_beams`, `length_penalty`, `repetition_penalty`, `no_repeat_ngram_size`, and
                `max_new_tokens` as the bound of all texts.

        Raises:
            UnknownPairError: If the model was not exported for a pair.
            ConfigError: If there are not as many pairs as texts, or CTranslate2 has no such setting.

        Warns:
            UserWarning: If a source is cut, or a translation reached its longest length without an end.
        """
        if isinstance(texts, str):
            return self.translate([texts], pair, **generation)[0]
        texts = list(texts)
        pairs = check_texts(texts, pair)
        for each in dict.fromkeys(pairs):
            self.check(each)
        longest, options = self._options(generation)
        results, groups, unfinished = [""] * len(texts), {}, 0
        rows = [
            (number, each, self.tags.encode_source([text], each)[0])
            for number, (text, each) in enumerate(zip(texts, pairs, strict=True))
            if not is_blank(text)
        ]
        for (number, each, _), ids in zip(rows, shortened(rows, self.limit, self.tags), strict=True):
            decoder = self.decoders[each]
            prompt = self.tags.decoder_prefix(each, -1 if decoder.start is None else decoder.start)
            prefix = prompt[1:] if prompt[0] == decoder.start else prompt
            room = (self._positions or sys.maxsize) - len(prefix) - 1  # of the decoder
            bound = min(longest or int(self.config.length_ratio * len(ids)) + self.config.length_extra, room)
            # A bound that depended on other texts would make a translation depend on them.
            rounded = min(longest or -(-bound // _STEP) * _STEP, room)
            groups.setdefault((rounded, decoder), []).append((number, ids, prefix, bound))
        for (rounded, decoder), group in groups.items():
            found = decoder.decode(
                [ids for _, ids, _, _ in group], [prefix for _, _, prefix, _ in group], rounded, **options
            )
            for (number, _, _, bound), ids in zip(group, found, strict=True):
                written = str(
                    self.tokenizer.decode(
                        ids[:bound], skip_special_tokens=True, clean_up_tokenization_spaces=False
                    )
                )
                unfinished += len(ids) > bound or len(ids) == rounded
                results[number] = self.tags.text.after(written, pairs[number].target)
        warn_of_no_end(unfinished, len(texts))
        return results

    @property
    def limit(self) -> int | None:
        """Tokens of a source beyond which it is cut; None: any number."""
        return min(filter(None, (self.config.max_source, self._positions)), default=None)

    def _options(self, generation: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
        asked = {"num_beams": self.config.num_beams, "length_penalty": self.config.length_penalty}
        asked |= {name: value for name, value in generation.items() if value is not None}  # as not asked for
        longest = asked.pop("max_new_tokens", None)
        unknown = sorted(asked.keys() - _OPTIONS.keys())
        if unknown:
            raise ConfigError(
                f"CTranslate2 is not told {', '.join(unknown)}; settings are: "
                f"{', '.join([*_OPTIONS, 'max_new_tokens'])}"
            )
        options = {_OPTIONS[name]: value for name, value in asked.items()}
        return longest, {**options, "max_batch_size": self.config.max_tokens, "batch_type": "tokens"}
