"""One score of one direction, with the signature that says how it was computed.

Metrics are named by a string:

    bleu             sacreBLEU: 13a, or the tokenizer that the target language needs (zh, ja-mecab, ko-mecab)
    bleu:<tokenizer> another tokenizer of sacreBLEU. `bleu:none` counts the words between spaces: on text
                     that was tokenized before, this is the tokenized BLEU of Tan et al. (2024), Table 1
    spbleu           BLEU over the pieces of the FLORES-200 tokenizer, which is downloaded at first use
    chrf, chrf++     character n-grams; ++ adds words and word pairs (word order 2)
    ter              translation edit rate: lower is better
    evaluate:<name>  a metric of the `evaluate` library, by name or local path, whose script is run;
                     `evaluate:<name>#<key>` picks one of the numbers that it returns

sacreBLEU's metrics run from 0 to 100 (ter may exceed it); those of `evaluate` keep the scale of their
authors.
"""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from nspec_hf.core import ConfigError, Pair, digest, main_language, optional, warn
from nspec_hf.data import require_parallel

# By the first part of a code, so that zh, zh-CN, zh_CN and zho_Hans are all Chinese.
_TOKENIZER_OF: dict[str, str] = dict.fromkeys(("zh", "zho", "cmn", "yue"), "zh")
_TOKENIZER_OF |= dict.fromkeys(("ja", "jpn"), "ja-mecab") | dict.fromkeys(("ko", "kor"), "ko-mecab")
_EXTRA_OF = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
_UNSPACED = frozenset(("th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bo", "bod", "dz", "dzo"))
# Thai to Tibetan and Burmese, Khmer, Kana, and Chinese characters.
_UNSPACED_LETTER = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_BLIND_TO_LANGUAGE = ("bleu", "google_bleu", "sacrebleu", "ter")
_SACREBLEU = ("bleu", "spbleu", "chrf", "chrf++", "ter")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value and what is needed to compute it again."""

    metric: str
    """The name as it was asked for."""
    value: float
    signature: str
    """sacreBLEU's signature; for other metrics the same kind of text."""
    sentences: int
    tokenizer: str | None = None
    """BLEU's tokenizer; None where the metric has none."""
    lower_is_better: bool = False
    detail: str = ""
    """What the metric says besides: for BLEU its precisions, brevity penalty and lengths."""

    def __str__(self) -> str:
        """Return `bleu = 34.33 (nrefs:1|case:mixed|…)`."""
        return f"{self.metric} = {self.value:.2f} ({self.signature})"


@dataclass(frozen=True, kw_only=True)
class SacrebleuMetric:
    """A metric of sacreBLEU with everything decided, so that any process builds the same one."""

    name: str
    family: str
    tokenizer: str | None = None
    asian: bool = False

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is a better translation."""
        return self.family == "ter"

    def build(self, references: Sequence[str] | None = None) -> Metric:
        """Return sacreBLEU's object, its references' n-grams counted if they are given.

        Raises:
            ConfigError: If the tokenizer is unknown or cannot be loaded.
        """
        cached = None if references is None else [references]
        if self.family == "chrf":
            return CHRF(word_order=2 if self.name.lower() == "chrf++" else 0, references=cached)
        if self.family == "ter":
            return TER(normalized=self.asian, asian_support=self.asian, references=cached)
        # force: `bleu:none` is meant for tokenized text, so sacreBLEU need not warn that it is tokenized.
        try:
            return BLEU(tokenize=self.tokenizer, force=self.tokenizer == "none", references=cached)
        except KeyError:
            known = ", ".join(BLEU.TOKENIZERS)
            raise ConfigError(
                f"{self.name}: sacreBLEU has no tokenizer {self.tokenizer!r}; it has: {known}"
            ) from None
        # SystemExit: sacreBLEU ends the program where a certificate is wrong.
        except (OSError, ImportError, RuntimeError, SystemExit) as error:
            raise ConfigError(_tokenizer_help(self.name, self.tokenizer, error)) from error


def sacrebleu_metric(
    name: str, pair: str | None = None, references: Sequence[str] = ()
) -> SacrebleuMetric | None:
    """Decide what a metric's name means for a direction; None if it is no metric of sacreBLEU.

    Args:
        name: `bleu`, `bleu:<tokenizer>`, `spbleu`, `chrf`, `chrf++` or `ter`, in any case.
        pair: The direction, whose target language chooses the tokenizer of `bleu`.
        references: Text that is to be scored against, by which a code that stands for another language than
            it looks like (`cn`, `jp`), or for none, is noticed.

    Warns:
        UserWarning: If `bleu` needs a tokenizer that is not installed (it then counts characters, and the
            signature says so), or the target language is written without spaces and `bleu` or `ter` cannot
            see its words.
    """
    family, _, tokenizer = name.partition(":")
    family = family.lower()
    language = _language(pair)
    if family == "bleu":
        chosen = tokenizer or _choose_tokenizer(language, references)
        return SacrebleuMetric(name=name, family="bleu", tokenizer=chosen)
    if tokenizer or family not in _SACREBLEU:
        return None
    if family == "ter":
        _warn_of_unspaced(language, references, "TER's tokenizer", "")
    if family == "spbleu":
        return SacrebleuMetric(name=name, family="bleu", tokenizer="flores200")
    return SacrebleuMetric(name=name, family=family.removesuffix("++"), asian=language in _TOKENIZER_OF)


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metric: str = "bleu",
    pair: str | None = None,
    sources: Sequence[str] | None = None,
) -> Score:
    """Score translations against one reference each.

    Args:
        hypotheses: What the system wrote, detokenized (but for `bleu:none`).
        references: As many sentences.
        metric: See the module's text.
        pair: The direction. Its target language chooses the tokenizer; without it, `bleu` uses 13a.
        sources: What was translated, for metrics of `evaluate` that look at it.

    Raises:
        CorpusError: If there is no sentence, or the counts differ.
        ConfigError: If the metric is unknown, its tokenizer or library is missing, or it returns no number.
    """
    require_parallel(str(pair or metric), hypotheses, references)
    settings = sacrebleu_metric(metric, pair, references)
    if settings is None:
        return _evaluate_score(hypotheses, references, metric, pair, sources)
    built = settings.build()
    result = built.corpus_score(list(hypotheses), [list(references)])
    return Score(
        metric=metric,
        value=float(result.score),
        signature=str(built.get_signature()),
        sentences=len(references),
        tokenizer=settings.tokenizer,
        lower_is_better=settings.lower_is_better,
        detail=" ".join(str(result).split(" ")[3:]),  # behind "BLEU = 34.33"
    )


def _language(pair: str | None) -> str:
    """Return the target language, without script and region; empty if there is no pair."""
    return main_language(Pair(pair).target) if pair else ""


def _choose_tokenizer(language: str, references: Sequence[str]) -> str:
    chosen = _TOKENIZER_OF.get(language, "13a")
    _warn_of_unspaced(language, references, "BLEU's 13a tokenizer", "bleu:zh, bleu:ja-mecab, ")
    try:
        BLEU(tokenize=chosen)
    except (RuntimeError, ImportError):
        warn(
            f"BLEU of {language} needs the tokenizer {chosen} (pip install '{_EXTRA_OF[chosen]}'); it is not "
            "installed, so characters are counted as words and the signature says tok:char"
        )
        return "char"
    return chosen


def _warn_of_unspaced(language: str, references: Sequence[str], tokenizer: str, others: str) -> None:
    sees = f"written without spaces, so {tokenizer} sees a phrase as one word"
    if language in _UNSPACED:
        warn(f"{language} is {sees}; trust chrf++ or spbleu instead")
    elif language not in _TOKENIZER_OF:
        sample = "".join(references[:100])
        if 2 * len(_UNSPACED_LETTER.findall(sample)) > sum(map(str.isalpha, sample)):
            named = f"{language!r} is no such language's code" if language else "no pair names the language"
            better = f"name it (zh, ja …), or take {others}chrf++ or spbleu"
            warn(f"the references are {sees}, and {named}; {better}")


def _tokenizer_help(name: str, tokenizer: str | None, error: BaseException) -> str:
    if tokenizer in _EXTRA_OF:
        return f"{name} needs the tokenizer {tokenizer}: pip install '{_EXTRA_OF[tokenizer]}'"
    return (
        f"{name} needs sacreBLEU's tokenizer {tokenizer}, which is downloaded at first use to the folder "
        f"models of $SACREBLEU (by default ~/.sacrebleu), and that failed: {error}. Run once with a "
        "network, or copy that folder from a machine where it ran"
    )


def _evaluate_score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    metric: str,
    pair: str | None,
    sources: Sequence[str] | None,
) -> Score:
    name, _, key = metric.removeprefix("evaluate:").partition("#")
    if not metric.startswith("evaluate:") or not name:
        known = ", ".join(_SACREBLEU)
        raise ConfigError(
            f"unknown metric {metric!r}; metrics are: {known}, bleu:<tokenizer>, evaluate:<name or path>"
        )
    evaluate = optional("evaluate", f"the metric evaluate:{name}", ConfigError)
    try:
        module = evaluate.load(name, keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(
            f"evaluate cannot load {name!r}: {error}. A name is fetched from the Hub, which needs a "
            "network; a local path of the metric's .py file needs none"
        ) from error
    language, version = _language(pair), evaluate.__version__
    if Path(name).stem in _BLIND_TO_LANGUAGE and (language in _TOKENIZER_OF or language in _UNSPACED):
        warn(
            f"{metric} cuts every language at spaces and punctuation, {language} too; name bleu, chrf or ter "
            "without `evaluate:`, which choose the tokenizer by the language"
        )
    inputs: dict[str, Any] = {"predictions": list(hypotheses), "references": list(references)}
    features = module.features if isinstance(module.features, list) else [module.features]
    if any("sources" in each for each in features):
        if sources is None:
            raise ConfigError(f"{metric} looks at the source sentences too; pass sources=")
        inputs["sources"] = list(sources)
    key, value = _pick_number(module.compute(**inputs), key, metric, Path(name).stem)
    # The Hub may serve another script under the same name.
    script = digest(Path(inspect.getfile(type(module))).read_bytes())
    return Score(
        metric=metric,
        value=value,
        signature=f"evaluate:{name}|key:{key}|nrefs:1|version:{version}|script:{script}",
        sentences=len(references),
    )


def _pick_number(result: Mapping[str, Any] | None, key: str, metric: str, stem: str) -> tuple[str, float]:
    """Return the one number that counts and its name; a list with a number a sentence is averaged."""
    numbers = {name: _as_number(value) for name, value in (result or {}).items()}
    numbers = {name: value for name, value in numbers.items() if value is not None}
    only = list(numbers) if len(numbers) == 1 else []
    chosen = key or next((name for name in ("score", stem, *only) if name in numbers), "")
    if chosen not in numbers:
        asked = f"no number {key!r}" if key else "several numbers"
        raise ConfigError(
            f"{metric} returned {asked}; choose one with evaluate:<name>#<key> from: "
            f"{', '.join(numbers) or 'none'}"
        )
    return chosen, numbers[chosen]


def _as_number(value: Any) -> float | None:
    if isinstance(value, (list, tuple)) and value:
        numbers = [number for part in value if (number := _as_number(part)) is not None]
        return math.fsum(numbers) / len(numbers) if len(numbers) == len(value) else None
    try:
        return None if isinstance(value, (str, bool, list, tuple)) else float(value)
    except (TypeError, ValueError):
        return None
