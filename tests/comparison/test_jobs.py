"""Jobs: each once, side by side, also after the process that started them was killed."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from nspec_hf.comparison import Job, places, run_jobs

ROOT = Path(__file__).resolve().parents[2]


def job(folder, name, program, done=None):
    made = folder / f"{name}.made"
    return Job(
        name=name,
        command=[sys.executable, "-c", program, str(folder / name)],
        log=folder / "logs" / f"{name}.log",
        lock=folder / f"{name}.lock",
        is_done=made.is_file if done is None else done,
    )


MAKE = "import sys; open(sys.argv[1] + '.starts', 'a').write('x'); open(sys.argv[1] + '.made', 'w')"
# Makes its result only when it is allowed to.
WAIT = textwrap.dedent("""
    import os, sys, time
    open(sys.argv[1] + '.starts', 'a').write('x')
    while not os.path.exists(sys.argv[1] + '.go'):
        time.sleep(0.02)
    open(sys.argv[1] + '.made', 'w')
""")
RUNNER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from tests.comparison.test_jobs import WAIT, job
    from nspec_hf.comparison import run_jobs
    folder = Path(sys.argv[2])
    show = lambda line, ended: print(line, flush=True)
    run_jobs([job(folder, "slow", WAIT)], [dict(os.environ)], show, 0.02)
""")


def run(jobs, count=1, environments=None):
    said = []
    failures = run_jobs(
        jobs, environments or [dict(os.environ)] * count, lambda line, ended: said.append((line, ended)), 0.01
    )
    return failures, said


def until(condition, seconds=60):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_every_job_is_run_and_one_that_is_done_is_not(tmp_path):
    jobs = [job(tmp_path, name, MAKE) for name in "abc"]
    (tmp_path / "b.made").touch()
    failures, said = run(jobs, 2)
    assert not failures
    assert [(tmp_path / f"{name}.made").is_file() for name in "abc"] == [True] * 3
    assert not (tmp_path / "b.starts").exists()
    assert sum(ended for _, ended in said) == 3
    assert ("b: done already", True) in said
    run(jobs, 2)
    assert [(tmp_path / f"{name}.starts").read_text() for name in "ac"] == ["x", "x"]


def test_a_job_that_fails_stops_no_other_and_is_named_with_its_last_words(tmp_path):
    bad = job(tmp_path, "bad", "raise SystemExit('out of paper')")
    lazy = job(tmp_path, "lazy", "pass")
    failures, said = run([bad, lazy, job(tmp_path, "good", MAKE)])
    assert [(f.job.name, f.reason) for f in failures] == [
        ("bad", "exit code 1: out of paper"),
        ("lazy", "it ended without its result"),
    ]
    assert (tmp_path / "good.made").is_file()
    assert any("FAILED" in line and "bad.log" in line for line, _ in said)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (
            "SIGKILL",
            "killed by signal 9, as the system does where memory is short (fewer jobs at a time need less)",
        ),
        ("SIGSEGV", "killed by signal 11"),
    ],
)
def test_a_job_that_is_killed_says_by_what(number, reason, tmp_path):
    kill = "import os, signal; {}os.kill(os.getpid(), signal.{})"
    silent = job(tmp_path, "silent", kill.format("", number))
    loud = job(tmp_path, "loud", kill.format("print('half way', flush=True); ", number))
    failures, _ = run([silent, loud])
    assert [failure.reason for failure in failures] == [reason, f"{reason}: half way"]


def test_each_place_has_its_own_environment(tmp_path):
    show = (
        "import os, sys, time; open(sys.argv[1] + '.made', 'w').write(os.environ['PLACE']); time.sleep(0.3)"
    )
    environments = [{**os.environ, "PLACE": place} for place in "pq"]
    run([job(tmp_path, name, show) for name in "ab"], environments=environments)
    assert {(tmp_path / f"{name}.made").read_text() for name in "ab"} == {"p", "q"}


def start_runner(folder):
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(ROOT), str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_what_a_killed_starter_left_running_is_waited_for_and_not_repeated(tmp_path):
    first = start_runner(tmp_path)
    until((tmp_path / "slow.starts").exists)
    first.kill()
    first.wait()
    second = start_runner(tmp_path)
    assert "waiting for it" in second.stdout.readline()
    (tmp_path / "slow.go").touch()
    assert second.wait(60) == 0
    assert "done already" in second.stdout.read()
    assert (tmp_path / "slow.starts").read_text() == "x"


def test_a_job_that_was_killed_itself_is_run_again(tmp_path):
    first = start_runner(tmp_path)
    until((tmp_path / "slow.starts").exists)
    number = int(first.stdout.readline().split("process ")[1].split(",")[0])
    first.kill()
    first.wait()
    os.kill(number, signal.SIGKILL)
    (tmp_path / "slow.go").touch()
    second = start_runner(tmp_path)
    assert second.wait(60) == 0
    assert (tmp_path / "slow.starts").read_text() == "xx"


def test_two_starters_at_once_run_a_job_once(tmp_path):
    both = [start_runner(tmp_path) for _ in range(2)]
    until((tmp_path / "slow.starts").exists)
    time.sleep(0.5)
    (tmp_path / "slow.go").touch()
    assert [each.wait(60) for each in both] == [0, 0]
    assert (tmp_path / "slow.starts").read_text() == "x"


def test_an_interrupted_starter_stops_its_jobs(tmp_path):
    def interrupt(line, ended):
        until((tmp_path / "slow.starts").exists)
        numbers.append(int(line.split("process ")[1].split(",")[0]))
        raise KeyboardInterrupt

    numbers = []
    slow = job(tmp_path, "slow", WAIT)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([slow], [dict(os.environ)], interrupt, 0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[0], 0)


def test_cores_are_shared_out_and_the_users_environment_stays():
    one, other = places(2, 8, [], {"PATH": "p", "TOKENIZERS_PARALLELISM": "true"})
    assert one == other
    assert one["OMP_NUM_THREADS"] == "4"
    assert (one["PATH"], one["TOKENIZERS_PARALLELISM"]) == ("p", "true")
    assert len(places(None, 8, [], {})) == 1
    assert places(3, 2, [], {"OMP_NUM_THREADS": "5"})[0]["OMP_NUM_THREADS"] == "5"


def test_each_gpu_has_one_job_unless_more_are_asked_for():
    assert [each["CUDA_VISIBLE_DEVICES"] for each in places(None, 8, ["2", "5"], {})] == ["2", "5"]
    more = places(3, 8, ["2", "5"], {"CUDA_VISIBLE_DEVICES": "2,5"})
    assert [each["CUDA_VISIBLE_DEVICES"] for each in more] == ["2", "5", "2"]
