"""Text from end to end, with a few thousand lines: stopped in the middle, gone on with, the same batches."""

import json
from types import SimpleNamespace

import pytest

from recipes.bench import text_scale
from tests.helpers.fresh_python import run_python


@pytest.fixture(autouse=True)
def forked_starts(monkeypatch):
    """Starts in processes of their own, which need not import the libraries first."""

    def forked(command, **how):
        ended = run_python("from recipes.bench.text_scale import main; main()", *command[3:])
        assert ended.returncode == 0, ended.stderr
        return ended

    monkeypatch.setattr(text_scale, "subprocess", SimpleNamespace(run=forked))


def run(folder, *arguments):
    path = folder / "scale.json"
    assert (
        text_scale.main(
            ["--work", str(folder / "work"), "--million", "1000", "--json", str(path), *arguments]
        )
        == 0
    )
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.medium
def test_what_was_encoded_before_a_stop_stays_and_both_starts_have_the_same_batches(tmp_path):
    stopped = run(tmp_path, "--millions", "1")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.arrow")}
    assert stopped["encoded"]["sentence_pairs"] == 1000
    whole = run(tmp_path, "--millions", "3")
    assert whole["encoded"]["sentence_pairs"] == whole["second_start"]["sentence_pairs"] == 3000
    assert whole["encoded"]["complete"]
    assert whole["same_batches"]
    assert whole["second_start"]["digest_of_plan"] != stopped["second_start"]["digest_of_plan"]
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())
    assert whole["recipe"]["config"]["work"] == "work"


def test_a_run_without_time_says_that_it_has_done_nothing(tmp_path, capsys):
    assert text_scale.main(["--work", str(tmp_path), "--minutes", "0"]) == 1
    assert "no pair was encoded" in capsys.readouterr().err


def test_more_pairs_than_the_languages_have_are_refused(tmp_path):
    with pytest.raises(SystemExit):
        text_scale.main(["--work", str(tmp_path), "--millions", "57"])
