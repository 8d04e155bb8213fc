"""How each tokenizer family spells its languages, and token ids with the right tags for a pair.

The trap: these tokenizers keep the language in a state (`src_lang`), accept some unknown codes without an
error (`NllbTokenizer(src_lang="zzz_Zzzz")` writes `<unk>`), and no two families agree. Here a pair's tags
are looked up once, checked, and put around plain token ids, so that nothing depends on what a tokenizer
was last set to.

| family | source | target | generation starts from |
|---|---|---|---|
| M2M-100, NLLB, mBART-50 | `[source] x </s>` | `[target] y </s>` | start, `[target]` |
| mBART-25 | `x </s> [source]` | `y </s> [target]` | `[target]` |
| Marian (one to many) | `>>target<< x </s>` | `y </s>` | start |
| MADLAD | `<2target> x </s>` | `y </s>` | start |
| target tag on the source (Xie et al.) | `[target] x </s>` | `y </s>` | start |
| T5 | `translate English to German: x </s>` | `y </s>` | start |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from transformers import PreTrainedTokenizerBase

from nspec_hf.errors import UnknownLanguageError
from nspec_hf.pairs import Pair

TARGET_ON_SOURCE = "target_on_source"
"""Value of a tokenizer's `language_style` that puts the target's tag on the source and none on the target."""

_T5_NAMES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
_PROBES = ("en", "de", "fr", "zh", "es", "ru", "ar", "hi")


@dataclass(frozen=True)
class _Family:
    """What surrounds a sentence. Each item is "source", "target" (a tag) or "eos"; `tag` spells a code."""

    name: str
    tag: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    start: tuple[str, ...]
    """What the decoder begins with; "start" is the model's decoder start token."""


_FAMILIES = {
    family.name: family
    for family in (
        _Family("m2m100", "__{}__", ("source", "x", "eos"), ("target", "x", "eos"), ("start", "target")),
        _Family("nllb", "{}", ("source", "x", "eos"), ("target", "x", "eos"), ("start", "target")),
        _Family("mbart50", "{}", ("source", "x", "eos"), ("target", "x", "eos"), ("start", "target")),
        _Family("mbart", "{}", ("x", "eos", "source"), ("x", "eos", "target"), ("target",)),
        _Family("marian", ">>{}<<", ("target", "x", "eos"), ("x", "eos"), ("start",)),
        _Family("madlad", "<2{}>", ("target", "x", "eos"), ("x", "eos"), ("start",)),
        _Family(TARGET_ON_SOURCE, "__{}__", ("target", "x", "eos"), ("x", "eos"), ("start",)),
        _Family("t5", "", ("x", "eos"), ("x", "eos"), ("start",)),
        _Family("one pair", "", ("x", "eos"), ("x", "eos"), ("start",)),
    )
}


class LanguageTags:
    """Encode text of a pair with the tags that its tokenizer's family uses.

    Args:
        tokenizer: Any Hugging Face tokenizer of a translation model.
        codes: Your codes → the tokenizer's, where they differ: `{"en": "eng_Latn", "de": "deu_Latn"}`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, codes: Mapping[str, str] | None = None) -> None:
        self.tokenizer = tokenizer
        self.codes = dict(codes or {})
        self._vocabulary = tokenizer.get_vocab()
        self._family = _FAMILIES[_family_name(tokenizer, self._vocabulary)]
        self._tags: dict[str, int] = {}

    @property
    def family(self) -> str:
        """Name of the family: m2m100, nllb, mbart50, mbart, marian, madlad, t5, target_on_source or "one
        pair"."""
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
        if code not in self._tags:
            self._tags[code] = self._vocabulary[self._spell(code)]
        return self._tags[code]

    def check(self, pair: str) -> None:
        """Raise `UnknownLanguageError` unless the tokenizer can write this pair."""
        pair = Pair(pair)
        self._source_parts(pair)
        self._target_parts(pair)

    def encode_source(self, texts: Sequence[str], pair: str) -> list[list[int]]:
        """Return the encoder's token ids of each text, tags and end of sentence included."""
        pair = Pair(pair)
        prefix, suffix = self._source_parts(pair)
        if self.family == "t5":
            texts = [self._t5_prefix(pair) + text for text in texts]
        return [[*prefix, *ids, *suffix] for ids in self._plain(texts)]

    def encode_target(self, texts: Sequence[str], pair: str) -> list[list[int]]:
        """Return the labels of each text, tags and end of sentence included."""
        prefix, suffix = self._target_parts(Pair(pair))
        return [[*prefix, *ids, *suffix] for ids in self._plain(texts, target=True)]

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

    def _plain(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        if not texts:
            return []
        batch = {"text_target" if target else "text": list(texts)}
        return self.tokenizer(**batch, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def _source_parts(self, pair: Pair) -> tuple[list[int], list[int]]:
        if self.family == "t5":
            self._t5_prefix(pair)
        return self._around(self._family.source, pair)

    def _target_parts(self, pair: Pair) -> tuple[list[int], list[int]]:
        return self._around(self._family.target, pair)

    def _around(self, parts: tuple[str, ...], pair: Pair) -> tuple[list[int], list[int]]:
        def ids(names: tuple[str, ...]) -> list[int]:
            codes = {"source": pair.source, "target": pair.target}
            return [
                self.tokenizer.eos_token_id if name == "eos" else self.tag_id(codes[name]) for name in names
            ]

        middle = parts.index("x")
        return ids(parts[:middle]), ids(parts[middle + 1 :])

    def _spell(self, code: str) -> str:
        """Return the token that stands for a code: as mapped, as given, or the only longer code that it
        begins."""
        code = self.codes.get(code, code)
        token = self._family.tag.format(code)
        if token in self._vocabulary:
            return token
        if self.family in ("nllb", "mbart", "mbart50"):
            longer = [tag for tag in self._vocabulary if tag.startswith(f"{code}_") and _is_long_code(tag)]
            if len(longer) == 1:
                return longer[0]
        known = sorted(tag for tag in self._vocabulary if self._is_tag(tag))
        near = get_close_matches(token, known, n=3, cutoff=0.3) or known[:5]
        raise UnknownLanguageError(
            f"the {self.family} tokenizer has no tag for language {code!r}; near ones: {', '.join(near) or 'none'}. "
            'Give the code that it uses, or map yours to it: codes={"en": "eng_Latn"}'
        )

    def _is_tag(self, token: str) -> bool:
        if self._family.tag == "{}":
            return _is_long_code(token)
        head, tail = self._family.tag.split("{}")
        return token.startswith(head) and token.endswith(tail)

    def _t5_prefix(self, pair: Pair) -> str:
        names = {**_T5_NAMES, **self.codes}
        for code in (pair.source, pair.target):
            if code not in names:
                raise UnknownLanguageError(
                    f"T5 names languages in words and has none for {code!r}; map it: codes={{{code!r}: 'Language'}}"
                )
        return f"translate {names[pair.source]} to {names[pair.target]}: "


def language_tags(tokenizer: PreTrainedTokenizerBase, codes: Mapping[str, str] | None = None) -> LanguageTags:
    """Return how this tokenizer spells languages; see `LanguageTags`."""
    return LanguageTags(tokenizer, codes)


def _family_name(tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int]) -> str:
    """Tell the family from the tags in the vocabulary; only mBART's two share theirs and need the class
    name."""
    if tokenizer.init_kwargs.get("language_style") == TARGET_ON_SOURCE:
        return TARGET_ON_SOURCE
    if any(token.startswith("__") and token.endswith("__") and len(token) > 4 for token in vocabulary):
        return "m2m100"
    if any(token.startswith(">>") and token.endswith("<<") for token in vocabulary):
        return "marian"
    if any(f"<2{code}>" in vocabulary for code in _PROBES):
        return "madlad"
    if "eng_Latn" in vocabulary:
        return "nllb"
    if "en_XX" in vocabulary:
        return "mbart50" if "MBart50" in type(tokenizer).__name__ or "sl_SI" in vocabulary else "mbart"
    return "t5" if "T5" in type(tokenizer).__name__ or "<extra_id_0>" in vocabulary else "one pair"


def _is_long_code(token: str) -> bool:
    """Whether a token looks like `deu_Latn` or `de_DE`."""
    code, _, region = token.partition("_")
    return (
        code.isalpha()
        and code.islower()
        and len(code) in (2, 3)
        and region.isalpha()
        and region[:1].isupper()
    )
