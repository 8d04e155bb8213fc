"""Languages that are new to a model: which they are, their tags, and the subwords that they use."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

from nspec_hf.adding.added import with_tokens
from nspec_hf.adding.config import AddConfig
from nspec_hf.core import ConfigError, UnknownLanguageError, as_pairs, is_english
from nspec_hf.data import LanguageTags, PairText

_SPELLED = {
    "m2m100": "__{}__",
    "plbart": "__{}__",
    "target_on_source": "__{}__",
    "marian": ">>{}<<",
    "madlad": "<2{}>",
    "nllb": "{}",
    "mbart50": "{}",
    "mbart": "{}",
}
"""How a family spells a tag."""


@dataclass(frozen=True)
class NewWords:
    """What new pairs bring to a model's vocabulary."""

    tags: LanguageTags
    """Of the tokenizer with the new tags."""
    languages: Sequence[str]
    """The new ones."""
    ids: Sequence[int]
    """Ids that get an embedding, ascending."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """New tags → their ids."""
    begins_as: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Id → ids whose mean its embedding begins as, where that is not its own."""

    def in_words(self) -> str:
        """Return what embeddings there are, and what the tags begin as."""
        tags = [f"{token} (new, id {number})" for token, number in self.tokens.items()]
        kept = [code for code in self.languages if has_tag(self.tags, code) and not self.tokens]
        tags += [f"the tokenizer's tag of {code}" for code in kept]
        names = self.tags.tokenizer.convert_ids_to_tokens
        started = [
            f"{names(number)} begins as {'the mean of ' if len(ids) > 1 else ''}{', '.join(names(list(ids)))}"
            for number, ids in self.begins_as.items()
        ]
        return "; ".join([f"{len(self.ids)} embeddings, {', '.join(tags) or 'no tag'}", *started])


def new_languages(
    pairs: Sequence[str], named: Sequence[str] = (), codes: Mapping[str, str] | None = None
) -> list[str]:
    """Return which languages of the pairs are new.

    Those that are named; else those that are in every pair, or, where that is none, in any, other than
    English.

    Args:
        pairs: The new pairs.
        named: Languages that are said to be new.
        codes: Your language codes → the tokenizer's, which tell English however it is spelled.

    Raises:
        ConfigError: If no language is left, or all pairs share several, or a named one is in no pair.
    """
    languages = [{pair.source, pair.target} for pair in as_pairs(pairs)]
    all_ = sorted(set().union(*languages))
    unknown = [code for code in named if code not in all_]
    if unknown:
        raise ConfigError(f"no new pair has the language {', '.join(unknown)}; they have: {', '.join(all_)}")
    spelled = {code: (codes or {}).get(code, code) for code in all_}
    others = [code for code, own in spelled.items() if not is_english(own) and own.lower() != "english"]
    common = [code for code in others if all(code in own for own in languages)]
    if len(common) > 1 and not named:
        raise ConfigError(
            f"{' and '.join(common)} are in every new pair; say which is new: --add.languages '[{common[0]}]'"
        )
    found = list(named) or common or others
    if not found:
        raise ConfigError("no language of these pairs is new; name it: --add.languages '[lb]'")
    return found


def find_words(
    tags: LanguageTags,
    texts: Sequence[PairText],
    config: AddConfig,
    *,
    old: Iterable[PairText] = (),
    vocabulary: int,
    rows: int,
) -> NewWords:
    """Return the tags and the embeddings that new pairs get.

    Args:
        tags: Of the model's tokenizer.
        texts: Text of the new pairs.
        config: The settings.
        old: Text of old pairs: what it uses is not new, for `pieces="new"`.
        vocabulary: How many ids the model has, with earlier additions.
        rows: How many of them the base has embeddings for.

    Raises:
        UnknownLanguageError: If the kin has no tag, or a new tag cannot be spelled in the tokenizer's family.
    """
    languages = new_languages([text.pair for text in texts], config.languages, tags.codes)
    known = [number for number in tags.tag_ids if number < rows]
    extended, tokens = _with_new_tags(tags, languages)
    kin = [tags.tag_id(config.kin)] if config.kin else known
    own_tags = [extended.tag_id(code) for code in languages if has_tag(extended, code)]
    begins_as = {number: kin for number in own_tags if config.kin or number in tokens.values()}
    own: set[int] = set()
    others: set[int] = set()
    for text in (*texts, *old) if config.pieces != "none" else ():
        sides = (
            (text.pair.source, extended.encode_source(text.sources, text.pair)),
            (text.pair.target, extended.encode_target(text.targets, text.pair)),
        )
        for language, encoded in sides:
            (own if language in languages else others).update(chain.from_iterable(encoded))
    own -= {*extended.tokenizer.all_special_ids, *extended.tag_ids}
    ids = {*own_tags, *(own - others if config.pieces == "new" else own)}
    # Embeddings that earlier additions brought: the new pairs have ones of their own, or no logit.
    earlier = range(rows, vocabulary)
    begins_as |= {number: kin for number in earlier}
    return NewWords(extended, languages, sorted(ids | set(earlier)), tokens, begins_as)


def _with_new_tags(tags: LanguageTags, languages: Sequence[str]) -> tuple[LanguageTags, dict[str, int]]:
    """Return the tokenizer with the tags that it lacks, and these with the ids that it gives them."""
    missing = [tags.codes.get(code, code) for code in languages if not has_tag(tags, code)]
    if tags.family in ("t5", "untagged") or not missing:
        return tags, {}  # languages are words there, or nothing
    first = max([len(tags.tokenizer), *(number + 1 for number in tags.tag_ids)])
    has_tables = hasattr(tags.tokenizer, "lang_token_to_id")  # others number their tokens themselves
    tokens = {
        _SPELLED[tags.family].format(code): first + place if has_tables else None
        for place, code in enumerate(missing)
    }
    extended = LanguageTags(with_tokens(tags.tokenizer, tokens), tags.codes)
    wrong = [code for code in missing if not has_tag(extended, code)]
    if wrong:
        raise UnknownLanguageError(
            f"a {type(tags.tokenizer).__name__} cannot be given a tag for {', '.join(wrong)}; spell the code "
            f"as its own are spelled: {', '.join(tags.tokenizer.convert_ids_to_tokens(tags.tag_ids[:3]))}"
        )
    number_of = cast(Any, extended.tokenizer).convert_tokens_to_ids
    return extended, {token: int(number_of(token)) for token in tokens}


def has_tag(tags: LanguageTags, code: str) -> bool:
    """Return whether a tokenizer has a tag for a language."""
    try:
        tags.tag_id(code)
    except UnknownLanguageError:
        return False
    return True
