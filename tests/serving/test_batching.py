"""Requests of many threads: each has its own answer, is let in or refused at once, and shares batches."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from nspec_hf.core import ConfigError, OverloadError, UnknownLanguageError, UnknownPairError
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.gating import GateConfig
from nspec_hf.serving import BatchingConfig, BatchingTranslator, load
from tests.helpers.tiny_text import PAIRS, masks, texts, tokenizer

SHORT = TranslateConfig(num_beams=2, length_ratio=1.0, length_extra=3, progress=False)
pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


@pytest.fixture(scope="module")
def offline(network):
    return Translator(network, tokenizer(), masks(network), SHORT)


class Held:
    """Holds the translator until `go` is set, and notes what it is asked for."""

    def __init__(self, loaded, monkeypatch):
        self.go, self.entered, self.calls = threading.Event(), threading.Event(), []
        plain = loaded.translator.translate

        def translate(texts, pairs, **settings):
            self.calls.append((list(texts), list(map(str, pairs)), settings))
            self.entered.set()
            assert self.go.wait(60)
            return plain(texts, pairs, **settings)

        monkeypatch.setattr(loaded.translator, "translate", translate)

    def first(self, service):
        """Put a request in the worker's hands, where it stays; return its answer."""
        answer = service.submit(["one"], "en-de")
        assert self.entered.wait(60)
        return answer


def test_requests_of_eight_threads_get_the_translations_that_they_get_alone(loaded, offline):
    said = [(each.sources[i], each.pair) for i in range(8) for each in texts(8, seed=2)]
    expected = {row: offline.translate(row[0], row[1]) for row in said}
    assert len(set(expected.values())) > 10
    with BatchingTranslator(loaded, BatchingConfig(max_wait=0.05)) as service, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: service.translate([row[0]], row[1]), said))
    assert found == [[expected[row]] for row in said]
    assert service.counts.texts == service.counts.requests == len(said)
    assert service.counts.batches < len(said)
    assert service.counts.mixed_batches > 0


def test_what_waits_becomes_one_batch_of_mixed_pairs_in_its_order(loaded, monkeypatch):
    held = Held(loaded, monkeypatch)
    with BatchingTranslator(loaded, BatchingConfig(max_batch=4)) as service:
        held.first(service)
        answers = [
            service.submit(["eins", "un"], ["de-en", "fr-en"]),
            service.submit(["two"], "en-fr"),
            service.submit(["one", "two"], "en-de"),
            service.submit(["three"], "en-de"),
        ]
        held.go.set()
        assert [len(answer.result()) for answer in answers] == [2, 1, 2, 1]
    assert [call[:2] for call in held.calls] == [
        (["one"], ["en-de"]),
        (["eins", "un", "two", "three"], ["de-en", "fr-en", "en-fr", "en-de"]),
        (["one", "two"], ["en-de"] * 2),
    ]


def test_settings_of_a_request_go_for_it_alone(loaded, offline, monkeypatch):
    held = Held(loaded, monkeypatch)
    with BatchingTranslator(loaded) as service:
        held.first(service)
        short = service.submit(["one two three"], "en-de", max_new_tokens=2, num_beams=None)
        plain = service.submit(["one two three"], "en-fr")
        also_short = service.submit(["two"], "en-fr", max_new_tokens=2)
        held.go.set()
        assert short.result() == offline.translate(["one two three"], "en-de", max_new_tokens=2)
        assert plain.result() == offline.translate(["one two three"], "en-fr")
        also_short.result()
    assert [(call[0], call[2]) for call in held.calls[1:]] == [
        (["one two three", "two"], {"max_new_tokens": 2}),
        (["one two three"], {}),
    ]


def test_pairs_are_kept_apart_where_that_is_asked_for(loaded, monkeypatch):
    held = Held(loaded, monkeypatch)
    with BatchingTranslator(loaded, BatchingConfig(mix_pairs=False)) as service:
        held.first(service)
        answers = [service.submit(["one"], pair) for pair in ("en-fr", "en-de", "en-fr")]
        held.go.set()
        assert all(answer.result() for answer in answers)
    assert [call[1] for call in held.calls] == [["en-de"], ["en-fr"] * 2, ["en-de"]]
    assert service.counts.mixed_batches == 0


def test_as_many_wait_as_may_and_the_next_is_refused_at_once(loaded, monkeypatch):
    held = Held(loaded, monkeypatch)
    with BatchingTranslator(loaded, BatchingConfig(max_waiting=3)) as service:
        answers = [held.first(service), service.submit(["one", "two"], "en-de")]
        with pytest.raises(OverloadError, match="2 texts wait already, 3 may"):
            service.submit(["one", "two"], "en-de")
        answers.append(service.submit(["three"], "en-de"))
        assert service.waiting == 3
        held.go.set()
        assert [len(answer.result()) for answer in answers] == [1, 2, 1]
        with pytest.raises(ConfigError, match="no more than 3 may ever wait"):
            service.submit(["one"] * 4, "en-de")
    assert (service.counts.requests, service.counts.refused) == (3, 1)


def test_closing_answers_what_was_let_in_and_takes_no_more(loaded, monkeypatch):
    held = Held(loaded, monkeypatch)
    service = BatchingTranslator(loaded)
    answers = [held.first(service), service.submit(["two"], "en-fr")]
    assert not service.close(timeout=0.01)
    with pytest.raises(OverloadError, match="told to stop"):
        service.submit(["one"], "en-de")
    held.go.set()
    assert service.close()
    assert all(len(answer.result(timeout=0)) == 1 for answer in answers)


def test_a_fault_of_one_request_is_answered_to_that_one_alone(loaded, offline, monkeypatch):
    held = Held(loaded, monkeypatch)
    plain = loaded.translator.translate

    def fails(texts, pairs, **settings):
        found = plain(texts, pairs, **settings)
        if "three" in texts:
            raise RuntimeError("out of memory")
        return found

    monkeypatch.setattr(loaded.translator, "translate", fails)
    with BatchingTranslator(loaded) as service:
        held.first(service)
        wrong, right = service.submit(["three"], "en-de"), service.submit(["two"], "en-fr")
        long = service.submit(["one two three four five six seven eight nine " * 3], "en-de")
        with pytest.raises(ConfigError, match=r"text 0 holds half a character: '\\ud800'"):
            service.submit(["\ud800"], "en-de")
        held.go.set()
        with pytest.raises(RuntimeError, match="out of memory"):
            wrong.result()
        assert right.result() == offline.translate(["two"], "en-fr")
        with pytest.raises(ConfigError, match=r"text 0 has \d+ tokens, at most 24 are translated"):
            long.result()
        assert service.translate(["one"], "en-de") == offline.translate(["one"], "en-de")


def test_a_request_that_was_withdrawn_is_not_translated(loaded, monkeypatch):
    held = Held(loaded, monkeypatch)
    with BatchingTranslator(loaded) as service:
        held.first(service)
        withdrawn, kept = service.submit(["two"], "en-de"), service.submit(["three"], "en-de")
        assert withdrawn.cancel()
        held.go.set()
        assert kept.result()
    assert [call[0] for call in held.calls] == [["one"], ["three"]]


def test_requests_that_cannot_be_answered_are_refused_by_name(loaded, folder):
    with BatchingTranslator(loaded) as service:
        with pytest.raises(UnknownPairError, match="'de-fr'"):
            service.submit(["eins"], "de-fr")
        with pytest.raises(ConfigError, match="2 texts but 1 pairs"):
            service.submit(["one", "two"], ["en-de"])
        with pytest.raises(ConfigError, match="may not set do_sample; it may set: num_beams"):
            service.submit(["one"], "en-de", do_sample=True)
        for wrong in (
            {"num_beams": 0},
            {"num_beams": 1000},
            {"max_new_tokens": 2.5},
            {"length_penalty": float("nan")},
            {"repetition_penalty": 0},
        ):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                service.submit(["one"], "en-de", **wrong)
        assert service.counts.requests == 0
    composed = load(folder, translate=SHORT, gate=GateConfig(zero_shot="compose"))
    with BatchingTranslator(composed) as service:
        assert len(service.translate(["eins"], "de-fr")) == 1
    plain = load(folder / "model", translate=SHORT)
    with BatchingTranslator(plain) as service, pytest.raises(UnknownLanguageError, match="'xx'"):
        service.submit(["one"], "en-xx")
    assert PAIRS == loaded.pairs


def test_who_has_an_answer_finds_it_counted(loaded, monkeypatch):
    held, seen = Held(loaded, monkeypatch), []
    with BatchingTranslator(loaded) as service:
        counts = service.counts
        held.first(service).add_done_callback(lambda _: seen.append((counts.answered, counts.texts)))
        held.go.set()
    assert seen == [(1, 1)]
