"""Programs in processes of their own that need not load torch and transformers: forked from one that has.

What waits to be forked has loaded the libraries, whose import takes seconds, and nothing of this package. A
program gets its own environment, the Hub's variables in it too, its own folder, arguments and output.
"""

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOADED = """
    accelerate huggingface_hub.hf_api jinja2 matplotlib.backends.backend_agg matplotlib.figure pandas
    rich.console sacrebleu safetensors.torch scipy.cluster.hierarchy sentencepiece torch
    torch.distributed transformers transformers.trainer_seq2seq
    transformers.models.auto.modeling_auto transformers.models.auto.tokenization_auto
    transformers.models.m2m_100.modeling_m2m_100 transformers.generation.utils
""".split()


def run_python(
    program: str, *arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program; its folder comes first among those that modules are looked for in.

    Args:
        program: Source text.
        arguments: Behind `sys.argv[0]`.
        cwd: Where it runs.
        env: Its whole environment; None: this process's.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [f"{folder}/{name}" for name in ("stdout", "stderr")]
        asked = {"program": program, "arguments": list(map(str, arguments)), "cwd": str(cwd)}
        asked |= {"env": dict(os.environ if env is None else env), "streams": streams}
        waiting = _waiting()
        waiting.stdin.write(json.dumps(asked) + "\n")
        waiting.stdin.flush()
        status = int(waiting.stdout.readline())
        said = [Path(stream).read_text(encoding="utf-8") for stream in streams]
    return subprocess.CompletedProcess(["python", "-c", program], status, *said)


@cache
def _waiting() -> subprocess.Popen[str]:
    """Start what is forked from; one a test process, which ends with it."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(process.kill)
    return process


def _wait() -> None:
    for module in LOADED:
        with contextlib.suppress(ImportError):  # an extra that is not here
            importlib.import_module(module)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _become(asked: dict) -> None:
    """Run what was asked for in this forked process, which ends with it."""
    status = 1
    try:
        for number, path in enumerate(asked["streams"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
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


if __name__ == "__main__":
    _wait()
