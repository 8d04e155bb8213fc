"""COMET through files: what is written can be scored elsewhere, and only its own scores are taken back."""

import json
import os
import subprocess

import pytest

from nspec_hf.core import ConfigError, CorpusError, UnknownPairError
from nspec_hf.evaluation import read_comet, write_comet

HYPOTHESES = {"en-de": ["ein Hund", "zwei Katzen "], "zh-CN->en": ["tea"]}
REFERENCES = {"en-de": ["der Hund", "zwei Kater"], "zh-CN->en": ["the tea"]}
SOURCES = {"en-de": ["a dog", "two cats"], "zh-CN->en": ["茶"]}

# Stands in for comet-score: reads the files that it is told, writes what the real one writes with --to_json.
STAND_IN = """#!/usr/bin/env python3
import json, sys
args = [a for a in sys.argv[1:] if a != "--quiet"]
# As argparse does, the last of two takes all.
arguments = dict(zip(args[::2], args[1::2]))
assert arguments["--model"] == "some/model" and arguments["--gpus"] == "0", arguments
sides = [[line.strip() for line in open(arguments[flag], encoding="utf-8")] for flag in ("-s", "-t", "-r")]
segments = [{"src": s, "mt": t, "ref": r, "COMET": len(t) / 10} for s, t, r in zip(*sides)]
json.dump({arguments["-t"]: segments}, open(arguments["--to_json"], "w"), ensure_ascii=False)
"""


def scored(folder, values=(0.8, 0.6), wrap=True):
    segments = [
        {"src": s, "mt": t.strip(), "ref": r, "COMET": value}
        for s, t, r, value in zip(
            SOURCES["en-de"], HYPOTHESES["en-de"], REFERENCES["en-de"], values, strict=False
        )
    ]
    content = {"en-de.hyp": segments} if wrap else segments
    (folder / "en-de.scores.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    write_comet(tmp_path, *({"en-de": texts["en-de"]} for texts in (HYPOTHESES, REFERENCES, SOURCES)))
    return tmp_path


def test_the_script_runs_and_its_scores_are_read(tmp_path):
    program = tmp_path / "bin" / "comet-score"
    program.parent.mkdir()
    program.write_text(STAND_IN, encoding="utf-8")
    program.chmod(0o755)
    script = write_comet(tmp_path / "a folder", HYPOTHESES, REFERENCES, SOURCES, model="some/model")
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    subprocess.run(
        ["sh", str(script), "--gpus", "0", "--model", "another/model"], check=True, env=environment, cwd="/"
    )
    found = read_comet(tmp_path / "a folder")
    assert set(found) == set(HYPOTHESES)
    # What Windows allows in a name.
    assert not [path.name for path in (tmp_path / "a folder").iterdir() if set(path.name) & set('<>:"|?*')]
    assert found["zh-CN->en"].value == pytest.approx(100 * 0.3)
    assert found["en-de"].value == pytest.approx(100 * (0.8 + 1.1) / 2)
    assert found["en-de"].signature == "comet|model:some/model|scale:100"
    assert (found["en-de"].metric, found["en-de"].sentences) == ("comet", 2)


@pytest.mark.parametrize("wrap", [True, False])
def test_both_shapes_of_its_json_are_read(folder, wrap):
    scored(folder, wrap=wrap)
    assert read_comet(folder)["en-de"].value == pytest.approx(70)


def test_a_model_without_references_gets_none(tmp_path):
    script = write_comet(tmp_path, HYPOTHESES, None, SOURCES).read_text()
    assert "-r " not in script
    assert not list(tmp_path.glob("*.ref"))


def test_scores_of_other_translations_are_refused(folder):
    scored(folder)
    (folder / "en-de.hyp").write_text("ein Hund\ndrei Katzen\n", encoding="utf-8")
    with pytest.raises(CorpusError, match="en-de, sentence 2: COMET scored 'zwei Katzen'"):
        read_comet(folder)


def test_scores_are_not_taken_for_those_of_translations_that_were_made_since(folder):
    scored(folder)
    kept = {"en-de": HYPOTHESES["en-de"]}
    assert read_comet(folder, kept) == read_comet(folder)
    for newer in (["ein Hund", "drei Katzen"], ["ein Hund"]):
        with pytest.raises(CorpusError, match="is of other translations than these"):
            read_comet(folder, {"en-de": newer})


def test_writing_again_forgets_old_scores(folder):
    scored(folder)
    write_comet(folder, *({"en-de": texts["en-de"]} for texts in (HYPOTHESES, REFERENCES, SOURCES)))
    with pytest.raises(ConfigError, match="en-de is not scored yet"):
        read_comet(folder)


def test_missing_scores_are_counted(folder):
    scored(folder, values=(0.8,))
    with pytest.raises(CorpusError, match="1 COMET scores for 2 translations"):
        read_comet(folder)


@pytest.mark.parametrize("text", ["[1, 2]", '{"a": [], "b": []}', '{"en-de.hyp": [{"mt": "x"}]}', "{"])
def test_what_comet_did_not_write_is_refused(folder, text):
    (folder / "en-de.scores.json").write_text(text, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"en-de\.scores\.json"):
        read_comet(folder)


def test_a_folder_that_was_not_written_for_comet_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"comet\.json"):
        read_comet(tmp_path)


def test_unparallel_text_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="en-de"):
        write_comet(tmp_path, {"en-de": ["a", "b"]}, {"en-de": ["a"]}, {"en-de": ["a", "b"]})
    with pytest.raises(UnknownPairError, match=r"de-en has no sentences for \.src"):
        write_comet(tmp_path, {"de-en": ["a"]}, {"de-en": ["a"]}, {"en-de": ["a"]})
    with pytest.raises(CorpusError, match="line break"):
        write_comet(tmp_path, {"en-de": ["a\nb"]}, {"en-de": ["a"]}, {"en-de": ["a"]})


def test_a_pair_may_be_spelled_in_any_way(tmp_path):
    write_comet(tmp_path, {"en->de": HYPOTHESES["en-de"]}, {"en--de": REFERENCES["en-de"]}, SOURCES)
    scored(tmp_path)
    assert read_comet(tmp_path, {"en->de": HYPOTHESES["en-de"]})["en-de"].value == pytest.approx(70)
    with pytest.raises(CorpusError, match="of other translations"):
        read_comet(tmp_path, {"en->de": ["noch ein Hund", "zwei Katzen "]})
