"""Requests of many threads, translated in batches by one thread: different pairs together, in turn, bounded.

A request that is let in is answered; one that comes while as many wait as may wait is refused at once. The
settings of a request go for a whole batch, so those with the same ones share it, and only such settings are
taken that mean the same for each row, whatever its neighbours are.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

from nspec_hf.core import ConfigError, OverloadError, Pair, is_number, require, require_count
from nspec_hf.evaluation import check_texts
from nspec_hf.serving.config import BatchingConfig
from nspec_hf.serving.loading import LoadedModel

SETTINGS = {
    "num_beams": (1, 32),
    "length_penalty": (-10, 10),
    "max_new_tokens": (1, 4096),
    "repetition_penalty": (0.01, 10),
    "no_repeat_ngram_size": (0, 100),
}
"""What a request may set, and from what to what: what a row's translation depends on in the same way in any
batch. All but the penalties are whole numbers."""


@dataclass(frozen=True)
class _Request:
    """Texts that were asked for together."""

    texts: Sequence[str]
    pairs: Sequence[Pair]
    settings: Mapping[str, Any]
    answer: "Future[list[str]]" = field(default_factory=Future)


@dataclass
class Counts:
    """What was done so far."""

    requests: int = 0
    """Let in."""
    answered: int = 0
    """Of those, with translations."""
    refused: int = 0
    """Because as many waited as may wait."""
    texts: int = 0
    """Translated."""
    batches: int = 0
    mixed_batches: int = 0
    """Batches of more than one pair."""


class BatchingTranslator:
    """Translates requests of any threads together.

        with BatchingTranslator(load("me/my-masks")) as service:
            service.translate(["A dog runs."], "en-de")     # from any thread
            service.submit(["Ein Hund."], "de-en").result()

    Raises:
        ConfigError: From both calls, if a request is none that can be answered.
        OverloadError: From both calls, if as many texts wait as may wait, or it is closed.
    """

    def __init__(self, loaded: LoadedModel, config: BatchingConfig | None = None) -> None:
        self.loaded = loaded
        self.config = config or BatchingConfig()
        self.counts = Counts()
        # None that a translator would cut off.
        limits = filter(None, (self.config.max_source, loaded.translator.limit))
        self._limit = min(limits, default=None)
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self.closed = False
        """Whether no more requests are taken."""
        self._worker = threading.Thread(target=self._work, name="nspec-batching", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """How many texts wait, those that are being translated not counted."""
        with self._changed:
            return _texts(self._waiting)

    def submit(self, texts: Sequence[str], pair: str | Sequence[str], **settings: Any) -> "Future[list[str]]":
        """Put a request in line; return at once what will hold the translations.

        Args:
            texts: Sentences.
            pair: One pair for all, or one for each text.
            settings: Any of `SETTINGS`.

        Raises:
            UnknownPairError: If there are no neurons for a pair.
            UnknownLanguageError: If the tokenizer has no tag for a language.
            ConfigError: If a text is no string, there are not as many pairs as texts, or a setting is unknown
                or out of range. Its answer has this error where a text is too long for the model.
            OverloadError: If as many texts wait as may wait, or it is closed.
        """
        texts = list(texts)
        pairs = check_texts(texts, pair)
        for each in dict.fromkeys(pairs):
            self.loaded.check(each)
        request = _Request(texts, pairs, check_settings(settings))
        require(
            len(texts) <= self.config.max_waiting,
            f"a request of {len(texts)} texts, and no more than {self.config.max_waiting} may ever wait",
        )
        with self._changed:
            if self.closed:
                raise OverloadError("no more requests are taken: it was told to stop")
            waiting, most = _texts(self._waiting), self.config.max_waiting
            if waiting + len(texts) > most:
                self.counts.refused += 1
                raise OverloadError(f"{waiting} texts wait already, {most} may; come again later")
            self.counts.requests += 1
            self._waiting.append(request)
            self._changed.notify_all()
        return request.answer

    def translate(self, texts: Sequence[str], pair: str | Sequence[str], **settings: Any) -> list[str]:
        """Return the translations, once they are there; see `submit`."""
        return self.submit(texts, pair, **settings).result()

    def close(self, timeout: float | None = None) -> bool:
        """Take no more requests, wait until those that were let in are answered; return whether all were."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        self._worker.join(timeout)
        return not self._worker.is_alive()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()

    def _work(self) -> None:
        while batch := self._next():
            self._answer(batch)

    def _next(self) -> list[_Request]:
        """Return the requests of the next batch, the one that has waited longest first; empty once closed."""
        with self._changed:
            while not self._waiting and not self.closed:
                self._changed.wait()
            if not self._waiting:
                return []
            batch = [self._waiting.popleft()]
            until = time.monotonic() + self.config.max_wait
            while True:
                self._take(batch)
                left = until - time.monotonic()
                if self.closed or left <= 0 or _texts(batch) >= self.config.max_batch:
                    return batch
                self._changed.wait(left)

    def _take(self, batch: list[_Request]) -> None:
        """Move what fits to the batch; what does not stays in line, in its order."""
        rest: deque[_Request] = deque()
        for request in self._waiting:
            fits = _texts(batch) + len(request.texts) <= self.config.max_batch
            (batch if fits and self._key(request) == self._key(batch[0]) else rest).append(request)
        self._waiting = rest

    def _key(self, request: _Request) -> tuple[Any, ...]:
        pairs = () if self.config.mix_pairs else tuple(sorted(set(request.pairs)))
        return (*sorted(request.settings.items()), pairs)

    def _answer(self, batch: Sequence[_Request]) -> None:
        """Translate those of a batch that were not withdrawn and are not too long."""
        asked = [request for request in batch if request.answer.set_running_or_notify_cancel()]
        good = [request for request in asked if self._is_short(request)]
        if good:
            self._translate(good)

    def _translate(self, batch: Sequence[_Request]) -> None:
        """Translate a batch together; where that fails each alone, so that a fault is answered to its own."""
        texts = [text for request in batch for text in request.texts]
        pairs = [pair for request in batch for pair in request.pairs]
        try:
            found = iter(self.loaded.translate(texts, pairs, **batch[0].settings))
        except BaseException as error:  # a panic of Rust is no Exception; the others are to be answered
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for request in batch:
                self._translate([request])
            return
        # Before the answers: who has one may ask for the counts at once.
        self.counts.answered += len(batch)
        self.counts.texts += len(texts)
        self.counts.batches += 1
        self.counts.mixed_batches += len(set(pairs)) > 1
        for request in batch:
            request.answer.set_result([next(found) for _ in request.texts])

    def _is_short(self, request: _Request) -> bool:
        """Return whether the model has positions for all texts, which a translator would cut; else answer."""
        encode = self.loaded.translator.tags.encode_source
        try:
            for number, (text, pair) in enumerate(zip(request.texts, request.pairs, strict=True)):
                tokens = len(encode([text], pair)[0]) if self._limit else 0
                require(
                    not self._limit or tokens <= self._limit,
                    f"text {number} has {tokens} tokens, at most {self._limit} are translated; split it into "
                    "sentences",
                )
        except BaseException as error:  # whatever a tokenizer makes of a text is answered
            request.answer.set_exception(error)
            return False
        return True


def _texts(requests: Iterable[_Request]) -> int:
    """Return how many texts requests have."""
    return sum(len(request.texts) for request in requests)


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's settings, those that are None left out.

    Raises:
        ConfigError: If one is not among `SETTINGS`, or out of range.
    """
    unknown = sorted(settings.keys() - SETTINGS.keys())
    if unknown:
        raise ConfigError(f"a request may not set {', '.join(unknown)}; it may set: {', '.join(SETTINGS)}")
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        least, most = SETTINGS[name]
        if name.endswith("_penalty"):
            within = is_number(value) and least <= value <= most
            require(within, f"{name} must lie between {least} and {most}, got {value!r}")
        else:
            require_count(name, value, least=int(least), most=most)
    return given
