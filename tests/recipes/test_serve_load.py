"""The load test of the server: what is wrong or lost is counted, and a small run of the whole script."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nspec_hf.core import Pair
from nspec_hf.masks import NeuronMasks, Recipe
from tests.helpers import tiny_text
from tests.helpers.tiny_experiment import RECIPES

sys.path.insert(0, str(RECIPES))
import serve_load

sys.path.remove(str(RECIPES))


class Faulty(BaseHTTPRequestHandler):
    """Answers by the text: rightly, wrongly, with 429, with 500, or not at all."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["texts"][0]
        if text == "dropped":
            self.close_connection = True
            return
        status = {"busy": 429, "broken": 500}.get(text, 200)
        body = json.dumps({"translations": ["other" if text == "wrong" else text.upper()]}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def faulty():
    with ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("right", {"wrong": False, "refused": False, "lost": False, "sentences": True}),
        ("wrong", {"wrong": True, "refused": False, "lost": False, "sentences": True}),
        ("busy", {"wrong": False, "refused": True, "lost": False, "sentences": False}),
        ("broken", {"wrong": False, "refused": False, "lost": True, "sentences": False}),
        ("dropped", {"wrong": False, "refused": False, "lost": True, "sentences": False}),
    ],
)
def test_what_is_wrong_refused_or_lost_is_counted_as_that(faulty, text, facts):
    pair = Pair("en-de")
    found = serve_load.send(faulty, {pair: [(text, text.upper())]}, [pair] * 2, 0.3).facts()
    assert {name: bool(found[name]) for name in facts} == facts


def test_where_nothing_listens_every_stream_is_lost():
    pair = Pair("en-de")
    found = serve_load.send("http://127.0.0.1:9", {pair: [("a", "b")]}, [pair] * 3, 1.0)
    assert found.facts()["lost"] == 3


def test_percentiles_are_of_the_requests_in_order():
    load = serve_load.Load(waited=[0.004, 0.001, 0.003, 0.002])
    assert (load.percentile(0.5), load.percentile(0.99)) == (3.0, 4.0)


@pytest.mark.slow
def test_a_short_load_has_no_wrong_and_no_lost_answer(tmp_path, capsys):
    model = tiny_text.model()
    model.save_pretrained(tmp_path / "model")
    tiny_text.tokenizer().save_pretrained(tmp_path / "model")
    drawn = tiny_text.masks(model)
    recipe = Recipe(base_model=str(tmp_path / "model"))
    NeuronMasks(drawn.pairs, drawn.keep, recipe=recipe).save_pretrained(tmp_path / "masks")
    tiny_text.write_text(tmp_path / "data", test=6)
    folders = [f"--model={tmp_path / 'masks'}", f"--data={tmp_path / 'data'}", "--split=test"]
    size = ["--pairs=en-de,de-en,en-fr", "--clients=8", "--sentences=4", "--seconds=3"]
    path = tmp_path / "serve.json"
    assert serve_load.main([*folders, *size, f"--json={path}"]) == 0
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["streams"] == 24
    assert found["exit_status"] == 0
    assert all(each["wrong"] == each["lost"] == 0 for each in found["loads"].values())
    assert all(each["sentences"] > 0 for each in found["loads"].values())
    assert found["loads"]["more than may wait"]["refused"] > 0
    assert found["health"]["mixed_batches"] > 0
    assert str(tmp_path) not in json.dumps(found["recipe"])
    assert "mixed to one pair at a time" in capsys.readouterr().out
