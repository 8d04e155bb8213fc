"""The web service: what it answers, what it refuses and how, and that it ends clean."""

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from fastapi.testclient import TestClient
from torch.utils.data import DataLoader

from nspec_hf import serving
from nspec_hf.cli.main import main
from nspec_hf.data import PairCollator
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.export import pruned
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, record
from nspec_hf.serving import BatchingConfig, ServeConfig, make_app
from tests.helpers.fresh_python import NSPEC, Started, run_python
from tests.helpers.tiny_text import PAIRS, corpus, masks, texts, tokenizer
from tests.serving.test_batching import Held

SHORT = TranslateConfig(num_beams=2, length_ratio=1.0, length_extra=3, progress=False)
pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")
LIMITS = ServeConfig(max_body=3000, max_texts=4, max_characters=60)


@pytest.fixture
def client(loaded):
    with TestClient(make_app(loaded, LIMITS)) as client:
        yield client


def test_texts_of_several_pairs_are_answered_as_offline(client, network):
    offline = Translator(network, tokenizer(), masks(network), SHORT)
    said = [each.sources[0] for each in texts(1, seed=2)]
    pairs = [str(each.pair) for each in texts(1, seed=2)]
    answer = client.post("/translate", json={"texts": said, "pair": pairs})
    assert answer.status_code == 200
    assert answer.json() == {"translations": offline.translate(said, pairs)}
    body = {
        "texts": ["one two three", ""],
        "pair": "en-de",
        "settings": {"num_beams": 1, "max_new_tokens": 3},
    }
    expected = offline.translate(["one two three", ""], "en-de", num_beams=1, max_new_tokens=3)
    assert client.post("/translate", json=body).json()["translations"] == expected


def test_the_command_serves_the_level_that_is_asked_for(network, tmp_path, monkeypatch):
    """Its app, beside a copy of the model that has the pair's neurons of that level alone."""
    loader = DataLoader(corpus(12), batch_size=6, collate_fn=PairCollator(tokenizer(), PAIRS))
    stats = record(network, loader, PAIRS, RecordConfig(progress=False))
    chosen = NeuronMasks.from_coverage(stats, 0.9, levels=(0.4,))
    network.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    chosen.save_pretrained(tmp_path / "masks")
    answers = {}

    def ask(app, config, ready):
        with TestClient(app) as client:
            body = {"texts": ["one two three", "eight"], "pair": "en-de", "settings": {"max_new_tokens": 5}}
            answers[coverage] = client.post("/translate", json=body).json()["translations"]

    monkeypatch.setattr(serving, "run_server", ask)
    line = ["serve", "--model", str(tmp_path / "base"), "--masks", str(tmp_path / "masks")]
    line += ["--serve.port", "0"]
    for coverage in (0.9, 0.4):
        assert main([*line, "--translate.num_beams", "1", "--coverage", str(coverage)]) == 0
        alone = Translator(pruned(network, chosen.at(coverage), "en-de")[0], tokenizer(), None)
        right = alone.translate(["one two three", "eight"], "en-de", num_beams=1, max_new_tokens=5)
        assert answers[coverage] == right
    assert answers[0.9] != answers[0.4]


def test_pairs_and_health_say_what_is_served(client, loaded):
    assert client.get("/pairs").json() == {
        "pairs": ["en-de", "de-en", "en-fr", "fr-en"],
        "others_are_composed": False,
    }
    client.post("/translate", json={"texts": ["one", "two"], "pair": "en-de"})
    said = client.get("/health").json()
    assert said["status"] == "ok"
    assert said["masks"] == loaded.masks.fingerprint()
    assert (said["requests"], said["texts"], said["refused"], said["waiting"]) == (1, 2, 0, 0)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"texts": ["one"], "pair": "en-xx"}, 422, "'en-xx'"),
        ({"texts": ["one"], "pair": "ende"}, 422, "'ende'"),
        ({"texts": ["one", "two"], "pair": ["en-de"]}, 422, "2 texts but 1 pairs"),
        ({"texts": ["one"] * 5, "pair": "en-de"}, 422, "5 texts, at most 4"),
        ({"texts": ["one", "x" * 61], "pair": "en-de"}, 422, "text 1 has 61 characters, at most 60"),
        ({"texts": ["q" * 50], "pair": "en-de"}, 422, "text 0 has 5"),  # tokens: a letter each
        ({"texts": ["one"], "pair": "en-de", "settings": {"do_sample": True}}, 422, "settings.do_sample"),
        ({"texts": ["one"], "pair": "en-de", "settings": {"num_beams": 99}}, 422, "num_beams"),
        ({"texts": ["one"], "pair": "en-de", "settings": {"num_beams": "4"}}, 422, "settings.num_beams"),
        ({"texts": ["one"]}, 422, "pair: Field required"),
        ({"texts": [1], "pair": "en-de"}, 422, "texts.0"),
        ({"texts": "one", "pair": "en-de"}, 422, "texts"),
        ({"texts": ["one"], "pair": "en-de", "beams": 4}, 422, "beams"),
        ([], 422, ""),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_by_name(client, body, status, named):
    answer = client.post("/translate", json=body)
    assert answer.status_code == status
    assert named in answer.json()["detail"]
    assert client.get("/health").json()["texts"] == 0


def test_scores_that_are_not_finite_are_a_fault_of_the_server(client, loaded):
    loaded.model.model.decoder.layers[0].fc1.weight.data[:] = float("nan")
    answer = client.post("/translate", json={"texts": ["one two"], "pair": "en-de"})
    assert answer.status_code == 500
    assert "NaN" in answer.json()["detail"]


def test_what_is_no_json_or_half_a_character_is_refused_too(client):
    for body in (b"{", b'{"texts": ["\\ud800"], "pair": "en-de"}', b"\xff\xfe", b""):
        answer = client.post("/translate", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        assert isinstance(answer.json()["detail"], str)
    assert client.get("/translate").status_code == 405


def test_a_body_that_is_too_large_is_refused_whether_it_says_its_length_or_not(client):
    body = json.dumps({"texts": ["one" * 2000], "pair": "en-de"}).encode()
    head = {"Content-Type": "application/json"}
    stated = client.post("/translate", content=body, headers=head)
    streamed = client.post("/translate", content=iter([body[:2500], body[2500:]]), headers=head)
    assert "content-length" not in streamed.request.headers
    for answer in (stated, streamed):
        assert answer.status_code == 413
        assert "larger than 3000 bytes" in answer.json()["detail"]


def test_overload_is_answered_with_429_and_what_was_let_in_is_translated(loaded, monkeypatch):
    held = Held(loaded, monkeypatch)
    with TestClient(make_app(loaded, LIMITS, BatchingConfig(max_waiting=2))) as client:
        found = {}

        def ask(name, count):
            body = {"texts": ["one"] * count, "pair": "en-de"}
            found[name] = client.post("/translate", json=body)

        threads = [threading.Thread(target=ask, args=("first", 1))]
        threads[0].start()
        assert held.entered.wait(60)
        threads.append(threading.Thread(target=ask, args=("second", 2)))
        threads[1].start()
        while client.get("/health").json()["waiting"] < 2:
            pass
        ask("third", 1)
        held.go.set()
        for thread in threads:
            thread.join()
    assert found["third"].status_code == 429
    assert found["third"].headers["Retry-After"] == "1"
    assert "2 texts wait already" in found["third"].json()["detail"]
    assert [found[name].status_code for name in ("first", "second")] == [200, 200]


def served(*arguments):
    """Start `nspec serve` on a free port; return the process and its address."""
    process = Started(NSPEC, "serve", *arguments, "--serve.port", "0")
    while " at http://" not in process.said()[0]:
        assert not process.ended, process.said()
        time.sleep(0.05)
    return process, process.said()[0].split(" at ")[1].split(";")[0]


def asked(address, texts, pair):
    body = json.dumps({"texts": texts, "pair": pair}).encode()
    request = urllib.request.Request(f"{address}/translate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["translations"]


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_and_ends_clean_with_what_was_let_in_answered(folder, network, number):
    process, address = served("--model", folder, "--translate.num_beams", "1")
    try:
        offline = Translator(network, tokenizer(), masks(network), TranslateConfig(num_beams=1))
        said = texts(8, seed=5)
        expected = {each.pair: offline.translate(each.sources, each.pair) for each in said}
        found = {}

        def ask(each):
            found[each.pair] = asked(address, each.sources, str(each.pair))

        threads = [threading.Thread(target=ask, args=(each,)) for each in said]
        for thread in threads:
            thread.start()
        while True:  # until all four are let in
            with urllib.request.urlopen(f"{address}/health") as answer:
                if json.loads(answer.read())["requests"] == 4:
                    break
        os.kill(process.pid, number)
        for thread in threads:
            thread.join()
    except BaseException:
        os.kill(process.pid, signal.SIGKILL)
        raise
    ended = process.wait()
    assert found == expected
    assert ended.returncode == 0
    assert "stopped: 4 requests were let in, 4 answered" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.medium
def test_an_address_that_is_taken_is_one_line_before_a_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = run_python(NSPEC, "serve", "--model", "absent", "--serve.port", port)
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].startswith("nspec serve: ")
    assert "ddress already in use" in finished.stderr
