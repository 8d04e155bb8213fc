"""Moses' tokenization and truecasing before subwords, and both undone after them, by sacremoses.

Xie et al. 2021 prepare text so. Text of corpora, references and translations stays as people write it: only
the subwords see words apart from punctuation, and the commonest casing of a word in the place of a
sentence's capital. What was learned of casing is kept with the tokenizer (`moses` in its
`tokenizer_config.json`), so that what loads it reads and writes text in the same way.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from nspec_hf.core import ConfigError, optional

Casing = Mapping[str, Sequence[Sequence[str]]]
"""Language → the forms of each word, the commonest first: `[["the", "The"], ["Berlin"]]`."""


class Moses:
    """Words apart from punctuation; truecased too in languages whose casing is known. None: text as it is.

    Raises:
        ConfigError: If sacremoses is not installed.
    """

    def __init__(self, casing: Casing | None) -> None:
        self.casing: dict[str, list[list[str]]] | None = None
        if casing is not None:
            self.library = optional("sacremoses", "Moses' tokenization", ConfigError)
            self.casing = {code: [list(forms) for forms in words] for code, words in casing.items()}
        self._tools: dict[tuple[str, str], Any] = {}

    def before(self, texts: Iterable[str], language: str) -> list[str]:
        """Return texts as subwords are made of them."""
        if self.casing is None:
            return list(texts)
        tokenize = self._tool("MosesTokenizer", language).tokenize
        words = [tokenize(text, return_str=True) for text in texts]
        if language not in self.casing:
            return words
        truecase = self._truecasers[language].truecase
        return [truecase(line, return_str=True, use_known=True) for line in words]

    def after(self, text: str, language: str) -> str:
        """Return what was written in subwords as people write it."""
        if self.casing is None:
            return text
        if language in self.casing:
            text = self.library.MosesDetruecaser().detruecase(text, return_str=True)
        return self._tool("MosesDetokenizer", language).detokenize(text.split())

    @cached_property
    def _truecasers(self) -> dict[str, Any]:
        made = {}
        for language, words in (self.casing or {}).items():
            made[language] = self.library.MosesTruecaser()
            made[language].model = {
                "best": {forms[0].lower(): forms[0] for forms in words},
                "known": Counter(form for forms in words for form in forms[1:]),
            }
        return made

    def _tool(self, kind: str, language: str) -> Any:
        if (kind, language) not in self._tools:
            self._tools[kind, language] = getattr(self.library, kind)(lang=language)
        return self._tools[kind, language]


def learned(kind: Literal["tokenize", "truecase"] | None, sentences: Mapping[str, Iterable[str]]) -> Moses:
    """Return what prepares text; casing is learned from what stands inside of sentences.

    As train-truecaser.perl counts, but that forms which were seen once are left out, so that the tokenizer's
    file stays small. `sentences` are each language's text.
    """
    if kind is None:
        return Moses(None)
    moses, casing = Moses({}), {}
    truecaser = moses.library.MosesTruecaser()
    for language, texts in sentences.items() if kind == "truecase" else ():
        seen: dict[str, Counter[str]] = {}
        for line in moses.before(texts, language):
            for lower, form, weight in truecaser.learn_truecase_weights(line.split()):
                seen.setdefault(lower, Counter())[form] += weight
        forms = ([form for form, count in own.most_common() if count > 1] for own in seen.values())
        casing[language] = [own for own in forms if own]
    return Moses(casing)
