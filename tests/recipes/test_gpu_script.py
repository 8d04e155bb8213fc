"""`recipes/gpu.sh`, on a machine without a GPU: what it would run, and that no part stops another."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from nspec_hf.systems import ExperimentConfig, read_settings
from recipes.bench import __main__ as bench, big_model
from tests.helpers.tiny_experiment import RECIPES

RESTARTS = ["restart_d64", "restart_d128", "restart_d192"]
SIZES = ["d64", "d128", "d192"]
PARTS = ["tests", "quick", "full", "big", "low", "low_english", *RESTARTS, "bible_low", "bible", *SIZES]
OWN = ("EXTRA", "JOBS", "ROWS", "MPS")

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash and timeout"
)


def gpu(*arguments, **environment):
    return subprocess.run(
        ["bash", str(RECIPES / "gpu.sh"), *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if name not in OWN} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def stand_in(folder, behaviour=""):
    """Return a program in the place of Python that writes its arguments down and then does `behaviour`."""
    path = folder / "python"
    path.write_text(f'#!/usr/bin/env bash\necho "$*" >> {folder}/calls\n{behaviour}\n', encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def calls(folder):
    return (folder / "calls").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "arguments", [[], ["out"], ["out", "."], ["out", ".", "ten"], ["out", ".", "0"], ["out", "nowhere", "5"]]
)
def test_arguments_that_are_missing_or_wrong_are_refused(tmp_path, arguments):
    found = gpu(*arguments, PYTHON=stand_in(tmp_path))
    assert found.returncode == 2
    assert "usage" in found.stderr or "MINUTES" in found.stderr or "no folder nowhere" in found.stderr
    assert not (tmp_path / "calls").exists()


def test_help_names_all_parts():
    found = gpu("--help")
    assert found.returncode == 0
    assert f"of: {' '.join(PARTS)};" in found.stdout


def test_a_dry_run_shows_commands_that_the_recipes_understand_and_runs_none(tmp_path):
    found = gpu("--dry", tmp_path / "out", tmp_path, 5, PYTHON=stand_in(tmp_path))
    assert found.returncode == 0
    assert not (tmp_path / "calls").exists()
    assert not (tmp_path / "out").exists()
    lines = found.stdout.splitlines()
    assert [line[3:] for line in lines if line.startswith("== ")] == PARTS
    commands = [shlex.split(line)[1:] for line in lines if not line.startswith("== ")]
    assert commands[0] == ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    for command in commands[1:3]:
        assert command[:4] == ["-m", "recipes.bench", "--json", str(tmp_path / "out" / "bench.cuda.json")]
        options = bench.read_options(command[2:])
        assert (options.size, options.resume, options.minutes) == (command[-1][2:], True, 4.0)
        assert options.plot == str(tmp_path / "out" / "bench.cuda.png")
    shapes = []
    for command in commands[3:6]:
        assert command[:2] == ["-m", "recipes.bench.big_model"]
        options = big_model.read_options(command[2:])
        assert (options.device, options.json) == (
            "cuda",
            str(tmp_path / "out" / f"big.{options.shape}.cuda.json"),
        )
        shapes.append(options.shape)
    assert shapes == ["m2m100-418m", "m2m100-1.2b", "nllb-3.3b"]
    names = []
    for script, *arguments in commands[6:]:
        placed = [str(RECIPES.parent / each) if each.startswith("recipes/") else each for each in arguments]
        config, _ = read_settings(ExperimentConfig, placed, jobs={"type": int, "default": 1})
        names.append((script, config.name))
        assert config.results == str(tmp_path / "out" / "results")
        assert config.work.startswith(str(tmp_path / "out" / "work"))
        assert config.data.corpus.path in (str(tmp_path / "multi30k"), str(tmp_path / "bible"))
    restarts = [f"m30k_{name}" for name in RESTARTS]
    sizes = [f"multi30k_all_{size}" for size in SIZES]
    experiments = ["m30k_low", "m30k_low_zs", *restarts, "bible_low", "bible", *sizes]
    assert names == [
        (f"recipes/{script}.py", name) for name in experiments for script in ("pretrain", "compare")
    ]
    assert len({command[command.index("--work") + 1] for command in commands[6:]}) == len(experiments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(("part", "program"), [("quick", bench), ("big", big_model)])
def test_without_a_gpu_a_part_that_measures_one_says_so_and_measures_nothing(
    tmp_path, monkeypatch, capsys, part, program
):
    """The part's first command, in this process; and what the script makes of how it ends."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    _, command, *_ = gpu("--dry", tmp_path / "out", tmp_path, 5, part).stdout.splitlines()
    status = program.main(shlex.split(command)[3:])
    assert "there is no CUDA device here, so nothing is measured" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    found = gpu(tmp_path / "out", tmp_path, 5, part, PYTHON=stand_in(tmp_path, f"exit {status}"))
    assert found.returncode == 1
    assert f"{part} is not done (exit {status}" in found.stderr


def test_a_part_that_fails_stops_no_other_and_without_a_base_nothing_is_compared(tmp_path):
    python = stand_in(tmp_path, 'case "$*" in "-m pytest"*|*pretrain*d64*) echo broken; exit 3 ;; esac')
    found = gpu(tmp_path / "out", tmp_path, 5, "tests", "d64", "nowhere", "d128", PYTHON=python)
    assert found.returncode == 3
    for name in ("tests is not done (exit 3", "d64 is not done (exit 3", "no such part: nowhere"):
        assert name in found.stderr
    started = [line.split()[0] for line in calls(tmp_path)]
    assert started == ["-m", "recipes/pretrain.py", "recipes/pretrain.py", "recipes/compare.py"]
    assert "broken" in (tmp_path / "out" / "tests.log").read_text(encoding="utf-8")


def test_a_part_ends_with_its_time_and_the_next_one_begins(tmp_path):
    python = stand_in(tmp_path, 'case "$*" in *d64*) exec sleep 100 ;; esac')
    # A minute is the least that can be asked for; here it is gone soon.
    clock = tmp_path / "timeout"
    clock.write_text(
        f'#!/usr/bin/env bash\nexec {shutil.which("timeout")} "$1" 1 "${{@:3}}"\n', encoding="utf-8"
    )
    clock.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = gpu(tmp_path / "out", tmp_path, 1, "d64", "d128", PYTHON=python, PATH=path)
    assert found.returncode == 1
    assert "d64 is not done (exit 124" in found.stderr
    assert len(calls(tmp_path)) == 3


def test_more_arguments_reach_the_recipes(tmp_path):
    extra = "--pretrain.arguments.max_steps 2"
    found = gpu(tmp_path / "out", tmp_path, 1, "d64", PYTHON=stand_in(tmp_path), EXTRA=extra, JOBS="7")
    assert found.returncode == 0
    base, plan = calls(tmp_path)
    assert base.endswith(extra)
    assert plan.endswith(f"--jobs 7 {extra}")
    (tmp_path / "calls").unlink()
    gpu(tmp_path / "out", tmp_path, 1, "d64", PYTHON=stand_in(tmp_path), EXTRA=extra, ROWS="finetune ns*")
    base, plan = calls(tmp_path)
    assert base.endswith(extra)
    assert "--rows" not in base
    assert plan.endswith(f"--jobs 4 --rows finetune ns* {extra}")


def test_all_gpu_tests_lie_in_the_file_that_it_runs():
    """Other files need packages that a machine with a GPU may not have."""
    folder = RECIPES.parent / "tests"
    marked = [path for path in folder.rglob("*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(folder)) for path in marked if path.name != Path(__file__).name] == [
        "test_gpu.py"
    ]


def test_the_multi_process_service_runs_while_parts_do(tmp_path):
    service = tmp_path / "nvidia-cuda-mps-control"
    service.write_text(
        "#!/usr/bin/env bash\n"
        f'echo "$CUDA_MPS_PIPE_DIRECTORY: $* $([ $# -gt 0 ] || cat)" >> {tmp_path}/calls\n',
        encoding="utf-8",
    )
    service.chmod(0o755)
    python = stand_in(tmp_path, f'echo "$CUDA_MPS_PIPE_DIRECTORY" >> {tmp_path}/calls; exit 3')
    path = f"{tmp_path}:{os.environ['PATH']}"
    found = gpu(tmp_path / "out", tmp_path, 1, "tests", PYTHON=python, PATH=path, MPS="1")
    assert found.returncode == 1
    started, command, seen, ended = calls(tmp_path)
    folder = started.removesuffix(": -d ")
    assert command.startswith("-m pytest")
    assert seen == folder
    assert ended == f"{folder}:  quit"
    assert not Path(folder).exists()
    (tmp_path / "calls").unlink()
    service.write_text("#!/usr/bin/env bash\nexit 1\n", encoding="utf-8")
    found = gpu(tmp_path / "out", tmp_path, 1, "tests", PYTHON=python, PATH=path, MPS="1")
    assert found.returncode == 2
    assert "nvidia-cuda-mps-control does not start" in found.stderr
    assert not (tmp_path / "calls").exists()
