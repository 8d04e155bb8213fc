"""How each tokenizer family spells its languages, and token ids with the right tags for a pair.

The trap: these tokenizers keep the language in a state (`src_lang`), accept some unknown codes without an
error (`NllbTokenizer(src_lang="zzz_Zzzz")` writes `<unk>`), and no two families agree. Here a pair's tags
are looked up once, checked, and put around plain token ids, so that nothing depends on what a tokenizer
was last set to.

| family | source | target | generation starts from |
|---|---|---|---|
| M2M-100, NLLB, mBART-50, SeamlessM4T | `[source] x </s>` | `[target] y </s>` | start, `[target]` |
| mBART-25, PLBart | `x </s> [source]` | `y </s> [target]` | `[target]` |
| Marian with several targets | `>>target<< x </s>` | `y </s>` | start |
| target tag on the source (Xie et al.) | `[target] x </s>` | `y </s>` | start |
| MADLAD | text: `<2target> x` | text: `y` | start |
| T5 | text: `translate English to German: x` | text: `y` | start |
| untagged (Marian for one target, BART …) | text: `x` | text: `y` | start |

Where the table says "text", the tokenizer puts its own special tokens around it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from transformers import PreTrainedTokenizerBase

from nspec_hf.core import CorpusError, Pair, UnknownLanguageError

TARGET_ON_SOURCE = "target_on_source"
"""Value of a tokenizer's `language_style` that puts the target's tag on the source and none on the target."""

_T5_NAMES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
_COMMON = {"en", "de", "fr", "zh", "es", "ru", "ar", "hi", "eng_Latn", "en_XX"}

_DUNDER = r"__(\w[\w-]*?)__"
_LONG_CODE = r"([a-z]{3}_[A-Z][a-z]{3})"
_REGION_CODE = r"([a-z]{2}_[A-Z]{2})"

_SOURCE, _TARGET = ("source", "x", "eos"), ("target", "x", "eos")
_START, _START_AND_TARGET = ("start",), ("start", "target")


@dataclass(frozen=True)
class _Family:
    """What surrounds a sentence, as parts: "source" and "target" (tags), "x" (the sentence), "eos"."""

    name: str
    pattern: str = ""
    """Regular expression of a tag; its group is the code. Empty where the vocabulary holds no tags."""
    source: tuple[str, ...] = ("x",)
    """What the encoder reads; "x" alone leaves special tokens to the tokenizer."""
    target: tuple[str, ...] = ("x",)
    start: tuple[str, ...] = _START
    """What the decoder begins with; "start" is the model's decoder start token."""


_FAMILIES = {
    family.name: family
    for family in (
        _Family("m2m100", _DUNDER, _SOURCE, _TARGET, _START_AND_TARGET),
        _Family("nllb", _LONG_CODE, _SOURCE, _TARGET, _START_AND_TARGET),
        _Family("mbart50", _REGION_CODE, _SOURCE, _TARGET, _START_AND_TARGET),
        _Family("mbart", _REGION_CODE, ("x", "eos", "source"), ("x", "eos", "target"), ("target",)),
        _Family("plbart", _DUNDER, ("x", "eos", "source"), ("x", "eos", "target"), ("target",)),
        _Family("marian", r">>([^<>]+)<<", _TARGET, ("x", "eos")),
        _Family(TARGET_ON_SOURCE, _DUNDER, _TARGET, ("x", "eos")),
        _Family("madlad", r"<2([A-Za-z_]+)>"),
        _Family("t5"),
        _Family("untagged"),
    )
}


class LanguageTags:
    """Encode text of a pair with the tags that its tokenizer's family uses.

    Args:
        tokenizer: Any Hugging Face tokenizer of a translation model.
        codes: Your codes → the tokenizer's, where they differ: `{"en": "eng_Latn", "de": "deu_Latn"}`. For
            T5, whose languages are words, codes → names: `{"es": "Spanish"}`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codes: Mapping[str, str] | None = None) -> None:
        self.tokenizer = tokenizer
        self.codes = dict(codes or {})
        vocabulary = _vocabulary(tokenizer)
        self._family = _FAMILIES[_family_name(tokenizer, vocabulary)]
        self._tags = _tags(self._family.pattern, vocabulary)
        self._codes_by_id = {number: code for code, number in self._tags.items()}

    @property
    def family(self) -> str:
        """Name of the family.

        One of m2m100, nllb, mbart50, mbart, plbart, marian, target_on_source, madlad, t5, untagged.
        """
        return self._family.name

    @property
    def shows_both(self) -> bool:
        """Whether both languages can be read from the token ids (a source tag there, a target tag here)."""
        return "source" in self._family.source and "target" in self._family.target

    def tag_id(self, code: str) -> int:
        """Return the token id of a language's tag.

        Raises:
            UnknownLanguageError: If the tokenizer has none; the message suggests codes that it has.
        """
        return self._tags[self._spell(code)]

    def target_tag_id(self, pair: str) -> int | None:
        """Return the id of the tag among a pair's labels, which decoding is given; None if they have none."""
        return self.tag_id(Pair(pair).target) if "target" in self._family.target else None

    def check(self, pair: str) -> None:
        """Raise `UnknownLanguageError` unless the tokenizer can write this pair."""
        pair = Pair(pair)
        self._text_prefix(pair)
        self._around(self._family.source, pair)
        self._around(self._family.target, pair)

    def encode_source(self, texts: Sequence[str], pair: str) -> list[list[int]]:
        """Return the encoder's token ids of each text, tags and end of sentence included."""
        pair = Pair(pair)
        prefix = self._text_prefix(pair)
        return self._encode([prefix + text for text in texts], self._family.source, pair)

    def encode_target(self, texts: Sequence[str], pair: str) -> list[list[int]]:
        """Return the labels of each text, tags and end of sentence included."""
        return self._encode(list(texts), self._family.target, Pair(pair), target=True)

    def check_row(self, source_ids: Sequence[int], label_ids: Sequence[int], pair: str) -> None:
        """Check that encoded text has no other language's tag where the pair's should be.

        The trap: a tokenizer that was set to one pair has encoded another one. Ids without any tag pass.

        Raises:
            CorpusError: If a side has tags, and none of them is the one that the pair has there.
        """
        pair = Pair(pair)
        for ids, parts, side in (
            (source_ids, self._family.source, "source"),
            (label_ids, self._family.target, "target"),
        ):
            expected = next((getattr(pair, part) for part in parts if part in ("source", "target")), None)
            found = self._codes_by_id.keys() & set(ids) if expected is not None else set()
            if found and self.tag_id(expected) not in found:
                other = ", ".join(sorted(self._codes_by_id[each] for each in found))
                raise CorpusError(
                    f"the {side} of a row of {pair} has the tag of {other}, not of {expected!r}: the "
                    "tokenizer was set to another pair when it was encoded; encode text pair by pair, as "
                    "encode_corpus does, or give the collator text"
                )

    def decoder_prefix(self, pair: str, decoder_start_token_id: int) -> list[int]:
        """Return the ids that generation begins with, so that the model writes the pair's target language."""
        pair = Pair(pair)
        return [
            decoder_start_token_id if part == "start" else self.tag_id(pair.target)
            for part in self._family.start
        ]

    def decoder_inputs(self, labels: Sequence[int], pair: str, decoder_start_token_id: int) -> list[int]:
        """Return the decoder's inputs for teacher forcing: the labels moved one to the right."""
        return [self.decoder_prefix(pair, decoder_start_token_id)[0], *labels[:-1]]

    def _encode(
        self, texts: list[str], parts: tuple[str, ...], pair: Pair, target: bool = False
    ) -> list[list[int]]:
        before, after = self._around(parts, pair)
        if not texts:
            return []
        # Families whose tokenizer keeps a target language would ask for it (M2M-100 with a KeyError); only
        # the others may split a target differently from a source.
        side = "text_target" if target and "target" not in parts else "text"
        by_tokenizer = parts == ("x",)
        rows = self.tokenizer(
            **{side: texts},
            add_special_tokens=by_tokenizer,
            # Else a sentence that quotes a tag, or </s>, would be read as being one.
            split_special_tokens=not by_tokenizer,
            truncation=False,
            verbose=False,
        )["input_ids"]
        return [[*before, *ids, *after] for ids in rows]

    def _around(self, parts: tuple[str, ...], pair: Pair) -> tuple[list[int], list[int]]:
        codes = {"source": pair.source, "target": pair.target}

        def ids(names: tuple[str, ...]) -> list[int]:
            return [
                self.tokenizer.eos_token_id if name == "eos" else self.tag_id(codes[name]) for name in names
            ]

        middle = parts.index("x")
        return ids(parts[:middle]), ids(parts[middle + 1 :])

    def _spell(self, code: str) -> str:
        """Return the tokenizer's code: as mapped, as given, or the only one that goes on `code_`."""
        code = self.codes.get(code, code)
        if code in self._tags:
            return code
        longer = [known for known in sorted(self._tags) if known.startswith(f"{code}_")]
        if len(longer) == 1:
            return longer[0]
        # The same first letters, then the same letters anywhere: "en" → eng_Latn, "eng_Lat" → eng_Latn.
        near = longer or [known for known in sorted(self._tags) if known.startswith(code[:2])]
        near += get_close_matches(code, [known for known in sorted(self._tags) if known not in near])
        raise UnknownLanguageError(
            f"the {self.family} tokenizer has no tag for language {code!r}; near ones: "
            f"{', '.join((near or sorted(self._tags))[:5]) or 'none, it has no tags'}. Use the tokenizer's "
            f"own code in the pair, or map yours to it: codes={{{code!r}: {(near or ['eng_Latn'])[0]!r}}}"
        )

    def _text_prefix(self, pair: Pair) -> str:
        if self.family == "madlad":
            return f"<2{self._spell(pair.target)}> "
        if self.family != "t5":
            return ""
        names = {**_T5_NAMES, **self.codes}
        for code in (pair.source, pair.target):
            if code not in names:
                raise UnknownLanguageError(
                    f"T5 names languages in words and has none for {code!r} (it has: "
                    f"{', '.join(sorted(names))}); map it: codes={{{code!r}: 'Language'}}"
                )
        return f"translate {names[pair.source]} to {names[pair.target]}: "


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    # M2M100Tokenizer knows its tags, but leaves them out of get_vocab().
    return {**tokenizer.get_vocab(), **getattr(tokenizer, "lang_token_to_id", {})}


def _tags(pattern: str, vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the ids of a vocabulary's language tags by code."""
    matches = (
        ((re.fullmatch(pattern, token), number) for token, number in vocabulary.items()) if pattern else ()
    )
    return {match[1]: number for match, number in matches if match}


def _family_name(tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int]) -> str:
    """Tell the family from the tags in the vocabulary, and from class names where families share tags."""
    classes = " ".join(base.__name__ for base in type(tokenizer).__mro__)
    special = {**tokenizer.get_added_vocab(), **getattr(tokenizer, "lang_token_to_id", {})}

    def has_tags(name: str) -> bool:
        # Among 256,000 subwords some look like tags (__init__, en_US), so one must be special or well known.
        pattern = _FAMILIES[name].pattern
        return bool(_tags(pattern, special) or _COMMON & _tags(pattern, vocabulary).keys())

    if tokenizer.init_kwargs.get("language_style") == TARGET_ON_SOURCE:
        return TARGET_ON_SOURCE
    if has_tags("m2m100"):
        return "plbart" if "PLBart" in classes else "m2m100"
    if _tags(_FAMILIES["marian"].pattern, vocabulary):
        return "marian"
    if has_tags("mbart"):
        return "mbart50" if "MBart50" in classes or "sl_SI" in vocabulary else "mbart"
    untagged = "t5" if "T5Tokenizer" in classes or "<extra_id_0>" in vocabulary else "untagged"
    return next((name for name in ("madlad", "nllb") if has_tags(name)), untagged)
