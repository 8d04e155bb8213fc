"""Programs in processes of their own that need not load torch and transformers: forked from one that has.

What waits to be forked has loaded the libraries, whose import takes seconds, and nothing of this package: it
is forked off the tests' own process, when this has come so far. A program gets its own environment, the Hub's
variables in it too, its own folder, arguments and output.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
NSPEC = "import sys; from nspec_hf.cli.main import main; sys.exit(main())"
"""The command line, whose arguments are the program's."""
LOADED = """
    accelerate huggingface_hub.hf_api jinja2 matplotlib.backends.backend_agg matplotlib.figure pandas
    rich.console sacrebleu safetensors.torch scipy.cluster.hierarchy sentencepiece torch
    torch.distributed transformers transformers.trainer_seq2seq
    transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
    transformers.models.m2m_100.modeling_m2m_100 transformers.generation.utils
""".split()


class Started:
    """A program that runs; its folder comes first among those that modules are looked for in.

    Args:
        program: Source text.
        arguments: Behind `sys.argv[0]`.
        cwd: Where it runs.
        env: Its whole environment; None: this process's.
    """

    def __init__(
        self, program: str, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._streams = [f"{self._folder.name}/{name}" for name in ("stdout", "stderr")]
        for stream in self._streams:
            Path(stream).touch()
        asked = {"program": program, "arguments": list(map(str, arguments)), "cwd": str(cwd)}
        asked |= {"env": dict(os.environ if env is None else env), "streams": self._streams}
        self.pid = int(_ask(asked))

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return _ask({"pid": self.pid, "how": os.WEXITED | os.WNOHANG | os.WNOWAIT}) != "None"

    def said(self) -> list[str]:
        """Return what it has written to its standard output and error so far."""
        return [Path(stream).read_text(encoding="utf-8") for stream in self._streams]

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Return how it ended, and all that it said."""
        status = int(_ask({"pid": self.pid, "how": os.WEXITED}))
        return subprocess.CompletedProcess(["python"], status, *self.said())


def run_python(program: str, *arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; see `Started`."""
    return Started(program, *arguments, **how).wait()


_WAITING: list[IO[str]] = []
"""Where what waits is asked, and where it answers."""


def wait_to_be_forked() -> None:
    """Load the libraries, and fork what waits; before anything of this package is loaded, once a process."""
    for module in LOADED:
        with contextlib.suppress(ImportError):  # an extra that is not here
            importlib.import_module(module)
    asked, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        try:
            os.close(asked[1])
            _answer(open(asked[0]), open(answers[1], "w"))
        finally:
            os._exit(0)
    os.close(asked[0])
    os.close(answers[1])
    _WAITING[:] = open(asked[1], "w"), open(answers[0])


def _ask(asked: dict) -> str:
    to, answers = _WAITING
    to.write(json.dumps(asked) + "\n")
    to.flush()
    return answers.readline().strip()


def _answer(lines: IO[str], answers: IO[str]) -> None:
    """Fork programs and say how they end, until the tests' process has ended."""
    for line in lines:
        asked = json.loads(line)
        if "pid" in asked:
            ended = os.waitid(os.P_PID, asked["pid"], asked["how"])
            answer = ended and (ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status)
        else:
            answer = os.fork() or _become(asked)
        answers.write(f"{answer}\n")
        answers.flush()


def _become(asked: dict) -> None:
    """Run what was asked for in this forked process, which ends with it."""
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(asked["streams"], start=1):
            os.dup2(os.open(path, os.O_WRONLY), number)
        # The tests' own are pytest's, which also keeps warnings for itself.
        importlib.reload(warnings)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, encoding="utf-8", closefd=False) for number, mode in enumerate("rww")
        )
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.path[:0] = [asked["cwd"], *filter(None, asked["env"].get("PYTHONPATH", "").split(os.pathsep))]
        sys.argv = ["-c", *asked["arguments"]]
        # The Hub's client reads its variables when it is imported.
        constants = importlib.reload(importlib.import_module("huggingface_hub.constants"))
        importlib.import_module("huggingface_hub.hf_api").api.endpoint = constants.ENDPOINT
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        exec(compile(asked["program"], "program", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
