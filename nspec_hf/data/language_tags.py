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
| MADLAD | `<2target> x`, as text | `y` | start |
| T5 | `translate English to German: x`, as text | `y` | start |
| untagged (Marian for one target, BART …) | `x` | `y` | start |

In the last three, what surrounds a sentence is what the tokenizer puts around text. A tag or another special
token that a sentence quotes is spelled out in letters, in every family.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from nspec_hf.core import ConfigError, CorpusError, Pair, UnknownLanguageError
from nspec_hf.data.config import TARGET_ON_SOURCE
from nspec_hf.data.moses import Moses
from nspec_hf.data.tokenizer import subword_ids

_T5_NAMES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
_COMMON = {"en", "de", "fr", "zh", "es", "ru", "ar", "hi", "eng_Latn", "en_XX"}

_HALF = re.compile("[\ud800-\udfff]")  # of a character; JSON can spell it, and no tokenizer takes it
_TAGS = re.compile(
    r"__(?P<dunder>\w[\w-]*?)__|(?P<long>[a-z]{3}_[A-Z][a-z]{3})|(?P<region>[a-z]{2}_[A-Z]{2})"
    r"|>>(?P<marian>[^<>]+)<<|<2(?P<madlad>[A-Za-z_]+)>"
)
"""How tags are spelled; the group that matches is the spelling, its text the code."""

_SOURCE, _TARGET = ("source", "x", "eos"), ("target", "x", "eos")
_START, _START_AND_TARGET = ("start",), ("start", "target")


@dataclass(frozen=True)
class _Family:
    """What surrounds a sentence, as parts: "source" and "target" (tags), "x" (the sentence), "eos"."""

    name: str
    spelling: str = ""
    """Which group of `_TAGS` its tags match. Empty where the vocabulary holds no tags."""
    source: tuple[str, ...] = ("x",)
    """What the encoder reads; "x" alone leaves special tokens to the tokenizer."""
    target: tuple[str, ...] = ("x",)
    start: tuple[str, ...] = _START
    """What the decoder begins with; "start" is the model's decoder start token."""
    marks: tuple[str, ...] = ()
    """One of them is part of a class's name, or a token, where its tags do not tell it from those below."""


_FAMILIES = (
    _Family("plbart", "dunder", ("x", "eos", "source"), ("x", "eos", "target"), ("target",), ("PLBart",)),
    _Family("m2m100", "dunder", _SOURCE, _TARGET, _START_AND_TARGET),
    _Family("marian", "marian", _TARGET, ("x", "eos")),
    _Family("mbart50", "region", _SOURCE, _TARGET, _START_AND_TARGET, ("MBart50", "sl_SI")),
    _Family("mbart", "region", ("x", "eos", "source"), ("x", "eos", "target"), ("target",)),
    _Family("madlad", "madlad"),
    _Family("nllb", "long", _SOURCE, _TARGET, _START_AND_TARGET),
    _Family("t5", marks=("T5Tokenizer", "<extra_id_0>")),
    _Family("untagged"),
)
_TARGET_ON_SOURCE = _Family(TARGET_ON_SOURCE, "dunder", _TARGET, ("x", "eos"))


def half_a_character(texts: Sequence[str]) -> int | None:
    """Return the number of the first text that holds half a character, or None."""
    return next((n for n, text in enumerate(texts) if not text.isascii() and _HALF.search(text)), None)


class LanguageTags:
    """Encode text of a pair with the tags that its tokenizer's family uses.

    It reads the whole vocabulary, so make it once and hand it on; what takes a tokenizer takes it as well.

    Args:
        tokenizer: Any Hugging Face tokenizer of a translation model.
        codes: Your codes → the tokenizer's, where they differ: `{"en": "eng_Latn", "de": "deu_Latn"}`. For
            T5, whose languages are words, codes → names: `{"es": "Spanish"}`.

    Raises:
        ConfigError: If the tokenizer draws subwords at random (BPE dropout, sampling).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codes: Mapping[str, str] | None = None) -> None:
        model, extra = (getattr(tokenizer, name, None) for name in ("backend_tokenizer", "sp_model_kwargs"))
        if (extra or {}).get("enable_sampling") or getattr(getattr(model, "model", None), "dropout", None):
            raise ConfigError("the tokenizer draws subwords at random; set dropout or enable_sampling off")
        self.tokenizer = tokenizer
        self.codes = dict(codes or {})
        self._vocabulary, added = vocabularies(tokenizer)
        self._family = _family(tokenizer, self._vocabulary, added)
        self._tags = _tags(self._vocabulary, added).get(self._family.spelling, {})
        self._codes_by_id: dict[int, list[str]] = {}
        for code, number in self._tags.items():
            self._codes_by_id.setdefault(number, []).append(code)
        self.tag_ids: list[int] = sorted(self._codes_by_id)  # of all tags, ascending
        # What a sentence may only quote. Nothing tells an unknown word that was read as <unk> from one.
        self._unknown: int | None = getattr(tokenizer, "unk_token_id", None)
        self._special = {*tokenizer.all_special_ids, *self._codes_by_id} - {self._unknown}
        self._around: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        self.text = Moses(tokenizer.init_kwargs.get("moses"))

    @property
    def family(self) -> str:
        """m2m100, nllb, mbart50, mbart, plbart, marian, target_on_source, madlad, t5 or untagged."""
        return self._family.name

    @property
    def shows_both(self) -> bool:
        """Whether both languages can be read from the token ids (a source tag there, a target tag here)."""
        return "source" in self._family.source and "target" in self._family.target

    def tag_id(self, code: str) -> int:
        """Return the token id of a language's tag.

        Raises:
            UnknownLanguageError: If the tokenizer has none (the message suggests codes that it has), or has
                given its id to another language too.
        """
        number = self._tags[self._spell(code)]
        if len(self._codes_by_id[number]) > 1:
            raise UnknownLanguageError(
                f"the tokenizer gives one id, {number}, to the tags of "
                f"{', '.join(self._codes_by_id[number])}; save it again with all tags as special tokens"
            )
        return number

    def target_tag_id(self, pair: str) -> int | None:
        """Return the id of the tag among a pair's labels, which decoding is given; None if they have none."""
        return self.tag_id(Pair(pair).target) if "target" in self._family.target else None

    def check(self, pair: str) -> None:
        """Raise `UnknownLanguageError` unless the tokenizer can write this pair."""
        self.encode_source([], pair)
        self.encode_target([], pair)

    def encode_source(self, texts: Sequence[str], pair: str) -> list[list[int]]:
        """Return the encoder's token ids of each text, tags and end of sentence included."""
        texts, pair = self.text.before(texts, Pair(pair).source), Pair(pair)
        return self._encode(texts, self._family.source, pair, "text", self._text_prefix(pair))

    def encode_target(self, texts: Sequence[str], pair: str) -> list[list[int]]:
        """Return the labels of each text, tags and end of sentence included."""
        # Families whose tokenizer keeps a target language would ask for it (M2M-100 with a KeyError); only
        # the others may split a target differently from a source.
        side = "text" if "target" in self._family.target else "text_target"
        texts = self.text.before(texts, Pair(pair).target)
        return self._encode(texts, self._family.target, Pair(pair), side)

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
            others = self._codes_by_id.keys() & set(ids) if expected is not None else set()
            if expected is not None and others and self.tag_id(expected) not in others:
                other = ", ".join(sorted(code for number in others for code in self._codes_by_id[number]))
                raise CorpusError(
                    f"the {side} of a row of {pair} has the tag of {other}, not of {expected!r}: the "
                    "tokenizer was set to another pair when it was encoded; encode text pair by pair, as "
                    "encode_corpus does, or give the collator text"
                )

    def unknown_share(self, rows: Sequence[Sequence[int]]) -> float:
        """Return the share of `<unk>` among ids of encoded text, tags and other special tokens left out."""
        ids = [number for row in rows for number in row if number not in self._special]
        return ids.count(self._unknown) / len(ids) if ids and self._unknown is not None else 0.0

    def decoder_prefix(self, pair: str, decoder_start_token_id: int) -> list[int]:
        """Return the ids that generation begins with, so that the model writes the pair's target language."""
        target = Pair(pair).target
        return [
            decoder_start_token_id if part == "start" else self.tag_id(target) for part in self._family.start
        ]

    def decoder_inputs(self, labels: Sequence[int], pair: str, decoder_start_token_id: int) -> list[int]:
        """Return the decoder's inputs for teacher forcing: the labels moved one to the right."""
        return [self.decoder_prefix(pair, decoder_start_token_id)[0], *labels[:-1]]

    def _encode(
        self, texts: Sequence[str], parts: tuple[str, ...], pair: Pair, side: str, prefix: str = ""
    ) -> list[list[int]]:
        if (broken := half_a_character(texts)) is not None:
            raise CorpusError(
                f"a text of {pair} holds half a character, which is no text: {texts[broken]!r:.80}"
            )
        if parts == ("x",):
            before, after = self._put_around(prefix, side)
        else:
            eos = {"eos": special_id(self.tokenizer, "eos")} if "eos" in parts else {}
            ids = eos | {part: self.tag_id(getattr(pair, part)) for part in parts if part not in ("eos", "x")}
            middle = parts.index("x")
            before, after = ([ids[part] for part in some] for some in (parts[:middle], parts[middle + 1 :]))
        rows = subword_ids(self.tokenizer, list(texts), side) if texts else []
        return [[*before, *self._spelled_out(row), *after] for row in rows]

    def _put_around(self, prefix: str, side: str) -> tuple[list[int], list[int]]:
        """Return what the tokenizer puts before and after a text that follows a prefix."""
        if (prefix, side) in self._around:
            return self._around[prefix, side]
        bare = subword_ids(self.tokenizer, ["a"], side)[0]
        options: dict[str, Any] = {side: [f"{prefix}a"]}
        whole = self.tokenizer(truncation=False, verbose=False, **options)["input_ids"][0]
        starts = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare and bare]
        if not starts:
            raise ConfigError("the tokenizer reads a text otherwise when it puts special tokens around it")
        self._around[prefix, side] = whole[: starts[-1]], whole[starts[-1] + len(bare) :]
        return self._around[prefix, side]

    def _spelled_out(self, ids: list[int]) -> list[int]:
        """Return a sentence's ids with special tokens that it quotes as letters."""
        if self._special.isdisjoint(ids):
            return ids
        letters = {
            number: [
                self._vocabulary.get(letter, self._unknown)
                for letter in str(self.tokenizer.convert_ids_to_tokens(number))
            ]
            for number in self._special.intersection(ids)
        }
        spelled = [letter for number in ids for letter in letters.get(number, [number])]
        return [number for number in spelled if isinstance(number, int)]

    def _spell(self, code: str) -> str:
        """Return the tokenizer's code: as mapped, as given, or the only one that goes on `code_`."""
        code = self.codes.get(code, code)
        if code in self._tags:
            return code
        longer = [known for known in sorted(self._tags) if known.startswith(f"{code}_")]
        if len(longer) == 1:
            return longer[0]
        # Of one language: eng_Latin → eng_Latn. Of other spelling: en → eng_Latn, eng → en.
        language = code.split("_")[0]
        near = longer or [known for known in sorted(self._tags) if known.split("_")[0] == language]
        meant = repr(near[0]) if len(near) == 1 else f"'one of {self.family}'"
        near = near or [
            known
            for known in sorted(self._tags)
            if known.split("_")[0].startswith(language) or language.startswith(known.split("_")[0])
        ]
        raise UnknownLanguageError(
            f"the {self.family} tokenizer has no tag for language {code!r}; near ones: "
            f"{', '.join((near or sorted(self._tags))[:5]) or 'none, it has no tags'} (spelled alike, maybe "
            "of other languages). Use the tokenizer's own code in the pair, or map yours to it: "
            f"codes={{{code!r}: {meant}}}"
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


def as_tags(
    tokenizer: PreTrainedTokenizerBase | LanguageTags, codes: Mapping[str, str] | None = None
) -> LanguageTags:
    """Return tags as they are; for a tokenizer make them, with your `codes` → the tokenizer's."""
    return tokenizer if isinstance(tokenizer, LanguageTags) else LanguageTags(tokenizer, codes)


def special_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """Return the id of a special token by its name, such as `eos` or `pad`.

    Raises:
        ConfigError: If the tokenizer has none.
    """
    number = getattr(tokenizer, f"{name}_token_id", None)
    if not isinstance(number, int):
        raise ConfigError(f"the tokenizer has no {name} token; set tokenizer.{name}_token")
    return number


def vocabularies(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], dict[str, int]]:
    """Return all tokens with their ids, and those added to the subwords, M2M100Tokenizer's tags too."""
    tags: Mapping[str, int] = getattr(tokenizer, "lang_token_to_id", {})
    added: Mapping[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    return {**tokenizer.get_vocab(), **added, **tags}, {**added, **tags}


def _tags(tokens: Mapping[str, int], added: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return the ids of all that is spelled as a tag, by spelling and code."""
    tags: dict[str, dict[str, int]] = {}
    for token, number in tokens.items():
        match = _TAGS.fullmatch(token)
        if match and match.lastgroup:
            tags.setdefault(match.lastgroup, {})[match[match.lastgroup]] = number
    # New languages are spelled more freely (myv_XX, srp_Latn_RS) than subwords may be.
    new = {token: number for token, number in added.items() if re.fullmatch(r"[a-z]{2,3}(_\w+)+", token)}
    return {
        spelling: codes | (new if spelling in ("long", "region") else {}) for spelling, codes in tags.items()
    }


def _family(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int], added: Mapping[str, int]
) -> _Family:
    """Tell the family from the tags in the vocabulary, and from its marks where families share tags."""
    classes = " ".join(base.__name__ for base in type(tokenizer).__mro__)
    known, special = _tags(vocabulary, {}), _tags(added, {})
    # Among 256,000 subwords some look like tags (__init__, en_US), so one must be special or well known.
    spellings = [
        name for name, tags in known.items() if name == "marian" or name in special or _COMMON & tags.keys()
    ]
    if tokenizer.init_kwargs.get("language_style") == TARGET_ON_SOURCE:
        return _TARGET_ON_SOURCE
    family = next(
        each
        for each in _FAMILIES
        if each.spelling in ("", *spellings)
        and (not each.marks or any(mark in classes or mark in vocabulary for mark in each.marks))
    )
    if family.name == "nllb" and getattr(tokenizer, "legacy_behaviour", False):
        return replace(family, source=("x", "eos", "source"), target=("x", "eos", "target"))
    if not family.spelling and re.match("Nllb|MBart|M2M100|PLBart|Seamless", type(tokenizer).__name__):
        raise UnknownLanguageError(
            f"a {type(tokenizer).__name__} without language tags: its files are not all there; copy "
            "tokenizer.json or tokenizer_config.json too"
        )
    return family
