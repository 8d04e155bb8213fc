"""compare.py and kill -9: what is started again leaves the tables of a plan that nothing stopped."""

import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter

import pytest
import yaml

from nspec_hf.comparison import planned_rows
from nspec_hf.core import plain
from nspec_hf.systems import RowPlan
from tests.helpers.finished_runs import experiment, finish
from tests.helpers.kills import killed_at
from tests.helpers.tiny_experiment import recipe

# Stands for specialize.py: takes its time, and leaves a result in one step, as a real run does.
STAND_IN = """
import os, shutil, sys, time
row, seed = (sys.argv[sys.argv.index(name) + 1] for name in ("--row", "--seed"))
name = f"tiny.{{row}}.s{{seed}}.json"
time.sleep(0.1)
os.makedirs({results!r}, exist_ok=True)
shutil.copy(os.path.join({ready!r}, name), os.path.join({results!r}, "." + name))
os.replace(os.path.join({results!r}, "." + name), os.path.join({results!r}, name))
"""
ROWS = {"finetune": RowPlan(), "ns": RowPlan(system="neuron_specialization"), "baseline": RowPlan(seeds=[1])}
TABLES = ("tiny.comparison.json", "tiny.comparison.md")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Plan:
    """A plan of five runs, with its tables as nothing stopped it, and how long that took."""

    def __init__(self, folder):
        config = experiment(folder, ROWS, languages=["en", "de"])
        for row in planned_rows(config):
            for run in row.runs:
                finish(run, 0.3)
        self.folder, self.results = folder, folder / "results"
        self.results.rename(folder / "ready")
        (folder / "work" / "base" / "model").mkdir(parents=True)
        stand_in = folder / "stand_in.py"
        places = {name: str(folder / name) for name in ("ready", "results")}
        stand_in.write_text(STAND_IN.format(**places), encoding="utf-8")
        self.file = folder / "tiny.yaml"
        self.file.write_text(yaml.safe_dump(plain(config), sort_keys=False), encoding="utf-8")
        self.main = recipe("compare")
        self.main.__globals__["SPECIALIZE"] = stand_in
        since = time.monotonic()
        assert self.wait(self.start()) == 0
        self.seconds, self.tables = time.monotonic() - since, self.left()

    def left(self):
        return [(self.results / name).read_bytes() for name in TABLES]

    def run(self):
        self.main([str(self.file), "--jobs", "2"])

    def start(self):
        """Start it in a group of processes of its own; return the number."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # forking with threads: none computes here
            number = os.fork()
        if number == 0:
            status = 3
            try:
                os.setsid()
                silent = os.open(self.folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(silent, 1)
                os.dup2(silent, 2)
                sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)
                self.run()
                status = 0
            finally:
                os._exit(status)
        return number

    @staticmethod
    def wait(number):
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

    def forget(self):
        shutil.rmtree(self.results, ignore_errors=True)
        shutil.rmtree(self.folder / "work" / "compare", ignore_errors=True)

    def kill(self, way, draw):
        """Start it and kill it in one of three ways; return whether it was killed before its end."""
        if way == "at a change of files":
            return killed_at(draw.randrange(30), self.folder, self.run)
        number = self.start()
        time.sleep(draw.uniform(0, self.seconds))
        (os.killpg if way == "with its runs" else os.kill)(number, signal.SIGKILL)
        return self.wait(number) == -signal.SIGKILL


WAYS = ("with its runs", "alone", "at a change of files")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Plan(tmp_path_factory.mktemp("plan"))


def survive(plan, seed):
    """Kill a plan three times, once in each way, and let it end; return how often it was killed in which."""
    draw = random.Random(seed)
    plan.forget()
    tally = Counter({way: int(plan.kill(way, draw)) for way in draw.sample(WAYS, len(WAYS))})
    assert plan.wait(plan.start()) == 0, (plan.folder / "said.txt").read_text(encoding="utf-8")
    assert plan.left() == plan.tables
    return tally


@pytest.mark.medium
def test_a_plan_that_was_killed_has_the_tables_of_one_that_was_not(whole):
    assert survive(whole, 0).total() > 0


@pytest.mark.slow
def test_twenty_five_kills_of_a_plan(whole, capsys):
    total, seed = Counter(), 0
    while total.total() < 25:
        seed += 1
        total += survive(whole, seed)
    with capsys.disabled():
        sys.stdout.write(
            f"\nkilled and started again, the same tables: {dict(total)}, {total.total()} in all\n"
        )
