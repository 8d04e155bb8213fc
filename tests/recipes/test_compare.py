"""compare.py as it is started: to the end, killed in the middle, with failures, in part, tables alone."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from nspec_hf.comparison import planned_rows
from nspec_hf.core import ConfigError, plain
from nspec_hf.systems import RowPlan
from tests.helpers.finished_runs import experiment, finish
from tests.helpers.tiny_experiment import experiment as trainable, recipe

COMPARE = Path(__file__).resolve().parents[2] / "recipes" / "compare.py"

# Stands for specialize.py: takes a result that lies ready, or fails as a real run would.
STAND_IN = """
import shutil, sys
from pathlib import Path
ready, results = Path({ready!r}), Path({results!r})
row, seed = (sys.argv[sys.argv.index(name) + 1] for name in ("--row", "--seed"))
print("arguments:", *sys.argv[1:])
if row == "random":
    raise SystemExit("no luck today")
results.mkdir(exist_ok=True)
shutil.copy(ready / f"tiny.{{row}}.s{{seed}}.json", results)
"""
PLAN = {
    "baseline": RowPlan(seeds=[1]),
    "finetune": RowPlan(),
    "random": RowPlan(seeds=[1]),
    "ns": RowPlan(system="neuron_specialization", settings={"coverage": 0.9}),
}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Return compare.py with a stand-in for specialize.py whose results lie ready, and its settings' file."""
    return scripted(tmp_path, monkeypatch, PLAN)


def scripted(tmp_path, monkeypatch, plan):
    """Return the same for any plan."""
    config = experiment(tmp_path, plan, languages=["en", "de"])
    for row in planned_rows(config):
        for run in row.runs:
            finish(run, 0.3)
    (tmp_path / "results").rename(tmp_path / "ready")
    (tmp_path / "work" / "base" / "model").mkdir(parents=True)
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        STAND_IN.format(ready=str(tmp_path / "ready"), results=str(tmp_path / "results")), encoding="utf-8"
    )
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain(config), sort_keys=False), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("compare", COMPARE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SPECIALIZE", stand_in)
    return module.main, str(path), tmp_path


def test_a_row_that_goes_on_from_another_waits_for_it_however_many_run_at_a_time(
    tmp_path, monkeypatch, capsys
):
    plan = {
        "ns_shallow": RowPlan(system="neuron_specialization", base="shallow", seeds=[1]),
        "baseline": RowPlan(seeds=[1]),
        "shallow": RowPlan(seeds=[1]),
    }
    main, file, _ = scripted(tmp_path, monkeypatch, plan)
    main([file, "--jobs", "3"])
    said = capsys.readouterr().out
    assert said.index("shallow s1: done") < said.index("ns_shallow s1: started")
    assert "--base @shallow/s1" in (tmp_path / "work/compare/ns_shallow.s1.log").read_text()


def starts(folder):
    """Return how often each run was started, from the logs."""
    logs = sorted((folder / "work" / "compare").glob("*.log"))
    return {path.stem: len(re.findall(r"^\$ ", path.read_text(), re.M)) for path in logs}


def test_a_run_that_fails_stops_no_other_and_is_told_at_the_end(script, capsys):
    main, file, folder = script
    with pytest.raises(SystemExit) as end:
        main([file, "--jobs", "2"])
    assert end.value.code == 1
    shown = capsys.readouterr()
    assert "failed: random s1: exit code 1: no luck today" in shown.err
    assert str(folder / "work" / "compare" / "random.s1.log") in shown.err
    assert "[6/6]" in shown.out
    assert "random s1: not run (there is no result)" in shown.out
    page = (folder / "results" / "tiny.comparison.md").read_text()
    assert "| random | not run |" in page
    assert "| ns | 2 |" in page
    found = json.loads((folder / "results" / "tiny.comparison.json").read_text())
    assert list(found["seeds"].values()) == [[1], [1, 2], [], [1, 2]]
    assert len(starts(folder)) == 6


def test_what_was_run_is_not_run_again_and_the_tables_are_the_same(script, capsys):
    main, file, folder = script
    names = [folder / "results" / f"tiny.comparison.{ending}" for ending in ("json", "md")]
    with pytest.raises(SystemExit):
        main([file])
    before = [path.read_bytes() for path in names]
    with pytest.raises(SystemExit):
        main([file])
    assert [path.read_bytes() for path in names] == before
    assert starts(folder) == {
        **dict.fromkeys(["baseline.s1", "finetune.s1", "finetune.s2", "ns.s1", "ns.s2"], 1),
        "random.s1": 2,
    }
    assert "ns s1: done already" in capsys.readouterr().out


def test_a_part_can_be_run_and_each_run_is_told_which_experiment(script, capsys):
    main, file, folder = script
    main([file, "--rows", "n*", "finetune", "--seeds", "2", "--translate.num_beams", "5"])
    assert starts(folder) == {"ns.s2": 1, "finetune.s2": 1}
    log = (folder / "work" / "compare" / "ns.s2.log").read_text()
    assert (
        f"arguments: {file} --translate.num_beams 5 --system neuron_specialization --row ns --seed 2" in log
    )
    assert '--settings {"coverage": 0.9}' in log
    shown = capsys.readouterr().out
    assert "ns s1: not run" in shown
    assert "finetune s2: not run" not in shown


def test_tables_alone_run_nothing_and_need_no_base(script, capsys):
    main, file, folder = script
    (folder / "ready").rename(folder / "results")
    (folder / "work" / "base" / "model").rmdir()
    main([file, "--tables-only"])
    assert starts(folder) == {}
    page = (folder / "results" / "tiny.comparison.md").read_text()
    assert "not run" not in page
    assert "not run" not in capsys.readouterr().out


def test_places_of_this_machine_stay_out_of_the_tables(script):
    main, file, folder = script
    main([file, "--tables-only", "--work", str(folder / "work"), f"--results={folder / 'results'}"])
    page = (folder / "results" / "tiny.comparison.md").read_text()
    assert f"Made by `python recipes/compare.py {file}`." in page
    assert "--work" not in page
    assert f"specialize.py {file} --system finetune --row finetune --seed 2`" in page


def test_a_base_that_is_missing_is_missed_before_anything_runs(script):
    main, file, folder = script
    (folder / "work" / "base" / "model").rmdir()
    with pytest.raises(ConfigError, match=r"first run recipes/pretrain.py"):
        main([file])
    with pytest.raises(ConfigError, match="'nobody'"):
        main([file, "--rows", "nobody"])
    assert starts(folder) == {}


@pytest.mark.parametrize("content", ["[]", "{", '{"rows": []}', '{"tests": [1]}', '{"tests": {"a": 1}}'])
def test_an_earlier_table_of_another_shape_is_not_overwritten_and_nothing_is_run(script, content):
    main, file, folder = script
    path = folder / "results" / "tiny.comparison.json"
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tiny\.comparison\.json"):
        main([file])
    assert path.read_text(encoding="utf-8") == content
    assert starts(folder) == {}


def test_tables_that_have_no_place_are_missed_before_anything_runs(script):
    main, file, folder = script
    (folder / "results").write_text("kept", encoding="utf-8")
    with pytest.raises(OSError, match="results"):
        main([file])
    assert (folder / "results").read_text(encoding="utf-8") == "kept"
    assert starts(folder) == {}


def start(file, folder, base):
    return subprocess.Popen(
        [
            *(sys.executable, COMPARE, file, "--jobs", "2", "--base", base),
            *("--work", folder / "work", "--results", folder / "results"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def results(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "results").glob("tiny.*.s?.json")}


def until(condition):
    for _ in range(12000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def without_times(folder):
    """Return the page and the numbers without what a clock says."""
    page = (folder / "results" / "tiny.comparison.md").read_text()
    found = json.loads((folder / "results" / "tiny.comparison.json").read_text())
    return page.split("**Costs")[0], found


PUBLISHED = sorted((COMPARE.parent / "results").glob("*.comparison.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.name.partition(".")[0])
def test_published_tests_are_of_the_published_scores(path):
    """Else they are lost when the tables are made again: a test of other translations does not count."""
    content = json.loads(path.read_text(encoding="utf-8"))

    def scores(run, metric):
        row, _, seed = run.rpartition(" s")
        result = path.with_name(f"{content['name']}.{row}.s{seed}.json").read_text(encoding="utf-8")
        return {
            pair: one for own in json.loads(result)["scores"][metric].values() for pair, one in own.items()
        }

    for name, tests in content["tests"].items():
        for metric, by_pair in tests.items():
            ours, theirs = (scores(run, metric) for run in name.split(" against "))
            for pair, (delta, *_) in by_pair.items():
                assert delta == pytest.approx(ours[pair] - theirs[pair], abs=1e-6), (name, metric, pair)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_plan_that_is_killed_again_and_again_loses_and_repeats_no_run(tmp_path):
    """Against the same plan in one go: first everything is killed, then the starter alone."""
    file = trainable(tmp_path)
    recipe("pretrain")([file])
    content = yaml.safe_load(Path(file).read_text())
    rows = {"finetune": {}, "ns": {"system": "neuron_specialization"}, "random": {}}
    content["compare"] = {"seeds": [1, 2], "rows": rows, "n_samples": 200}
    Path(file).write_text(yaml.safe_dump(content), encoding="utf-8")
    base, killed, whole = tmp_path / "work" / "base" / "model", tmp_path / "killed", tmp_path / "whole"
    assert start(file, whole, base).wait(800) == 0
    assert len(results(whole)) == 6

    first = start(file, killed, base)
    # In the middle: one run is done, the next has begun to train.
    until(lambda: results(killed) and (killed / "work" / "random" / "s1" / "settings.json").is_file())
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    after_first, begun = results(killed), starts(killed)
    assert 0 < len(after_first) < 6

    second = start(file, killed, base)
    until(
        lambda: (
            len(results(killed)) > len(after_first) and sum(starts(killed).values()) > sum(begun.values()) + 1
        )
    )
    second.kill()
    second.wait()
    after_second = results(killed)
    assert after_first.items() <= after_second.items()

    third = start(file, killed, base)
    assert third.wait(800) == 0, third.stdout.read()
    assert after_second.items() <= results(killed).items()
    assert len(results(killed)) == 6
    # Nothing that had its result was started again; what the second starter left running was waited for.
    counted = starts(killed)
    for name in after_first:
        assert counted[name.removeprefix("tiny.").removesuffix(".json")] == 1
    assert all(count <= 2 for count in counted.values())
    assert without_times(killed) == without_times(whole)

    pages = [killed / "results" / f"tiny.comparison.{ending}" for ending in ("json", "md")]
    before = [path.read_bytes() for path in pages]
    fourth = start(file, killed, base)
    assert fourth.wait(800) == 0
    assert [path.read_bytes() for path in pages] == before
    assert starts(killed) == counted
