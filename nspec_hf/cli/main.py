"""The command line: `nspec COMMAND …`. A command is a function; its arguments and help are the function's.

A command's file is loaded when the command runs, so that `nspec --help` is quick and `nspec record` does not
load matplotlib. This is the one file of the package that imports inside functions.
"""

import argparse
import contextlib
import importlib
import inspect
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from nspec_hf import __version__
from nspec_hf.core import (
    ConfigError,
    check_settings_files,
    exit_status,
    quiet_libraries,
    unused,
    warn,
    with_lists,
)

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("cli.run", "do it all from one file: record, select, train, translate, evaluate, report"),
    "record": ("cli.pipeline", "count which neurons a trained model uses for which pair"),
    "select": ("cli.pipeline", "choose each pair's neurons from those counts"),
    "train": ("cli.pipeline", "continue training, each pair with its own neurons"),
    "translate": ("cli.translate", "translate, each sentence with its pair's neurons"),
    "inspect": ("cli.pipeline", "show what masks, statistics or a model hold"),
    "serve": ("cli.serve", "answer requests over HTTP, texts of different pairs together"),
    "add-pair": ("cli.adding", "add pairs to a model beside frozen weights: old pairs stay as they are"),
    "export": ("cli.pipeline", "make a smaller model of a pair's own neurons, also for CTranslate2"),
    "evaluate": ("cli.evaluate", "score translations, with signatures"),
    "compare": ("cli.evaluate", "test which directions got better or worse"),
    "analyze": ("cli.analyze", "draw and tabulate which neurons pairs share"),
    "doctor": ("cli.doctor", "check a set-up: what will go wrong, why, and how to mend it"),
    "probe": ("cli.probe", "ask a model what erasing neurons costs, and how stable its masks are"),
    "publish": ("cli.publish", "upload masks with card, scores and report to the Hub"),
    "report": ("cli.analyze", "one HTML page that shows what each pair's neurons do"),
    "demo": ("cli.demo", "run the whole method on made-up language families, in minutes"),
}
"""Command → the file that holds its function, and what it does."""

_LOUD = ("-v", "--verbose")
_WITHOUT_MODELS = ("cli.evaluate",)
_TRAININGS = ("train", "pretrain", "specialize")
_OF_USERS = ("codes", "families", "tiers", "by_setting", "lines_by_language")
"""Settings whose keys are the user's own: `--codes.pt-BR pt` is of the language pt-BR."""
_OF_A_TRAINING = ("arguments", "batches", "patience", "elastic", "teacher")  # the fields of `TrainConfig`

_EXAMPLES = """
All of it, from text to a report, and again after a stop:

  nspec run       --config mine.yaml

The pipeline, step by step:

  nspec record    --model MODEL --pairs en-de,de-en --corpus.path data --split valid
  nspec select    --stats nspec_stats.safetensors --output masks
  nspec train     --model MODEL --masks masks --corpus.path data --output runs/mine
  nspec translate --model runs/mine/model --masks masks --pair en-de < input > output

Every setting can also stand in a YAML file: nspec train --config mine.yaml
`nspec COMMAND --help` shows a command's settings; -v shows what the libraries below say.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    0: done. 2: something was asked that cannot be; one line on standard error says what. 130: interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else a table with a ρ ends in an error on some terminals
            stream.reconfigure(errors="backslashreplace")
    name, *rest = arguments or ["--help"]
    called = f"nspec {name}" if name in COMMANDS else "nspec"
    return exit_status(called, lambda: _answer(name, [underscored(argument) for argument in rest]))


def _answer(name: str, rest: list[str]) -> int:
    if name in ("-h", "--help", "help"):
        sys.stdout.write(_help())
    elif name == "--version":
        sys.stdout.write(f"nspec {__version__}\n")
    elif name in COMMANDS:
        return _run(name, rest)
    else:
        raise ConfigError(f"there is no command {name!r}; commands are: {', '.join(COMMANDS)}")
    return 0


def _run(name: str, arguments: list[str]) -> int:
    """Run a command; return its exit status, 0 where it has none to tell."""
    import jsonargparse

    loud = [each for each in arguments if each in _LOUD]
    arguments = [each for each in arguments if each not in _LOUD]
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        arguments.insert(0, "--config")  # `nspec run mine.yaml`
    parts = check_settings_files(arguments)
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    module = importlib.import_module(f"nspec_hf.{COMMANDS[name][0]}")
    function = getattr(module, name.replace("-", "_"))
    if "data" in parts:
        function = getattr(module, "OF_EXPERIMENTS", function)
    # jsonargparse looks for a function's name in every package above it, and `nspec_hf.record` loads torch.
    function.__qualname__ = f"nspec {name}"
    # It shows the first paragraph alone; the example is below it, and must not be wrapped.
    about = (inspect.getdoc(function) or "").partition("Args:")[0].strip()
    shape = type("Help", (argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter), {})
    said = {"prog": f"nspec {name}", "description": about, "formatter_class": shape}
    first = next(iter(inspect.signature(function).parameters.values()))
    arguments = spelled_out(function, arguments)
    if arguments and not arguments[0].startswith("-") and first.default is first.empty:
        arguments = [f"--{first.name}", *arguments]  # `nspec inspect masks`
    parser = jsonargparse.auto_parser(function, as_positional=False, **said)
    parsed = parser.parse_args(with_lists(parser, arguments))
    settings = parser.instantiate(parsed)
    settings.pop("config", None)
    with contextlib.nullcontext() if loud else _quiet(name):
        for sentence in unused(parsed.get, parser.get_defaults().get, getattr(function, "needs", {}), "--"):
            warn(sentence)
        status = function(**settings)
    return status if isinstance(status, int) else 0


def spelled_out(function: Callable[..., object], arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the value of a switch that was given alone: `--trim_vocabulary` is true."""
    switches = {
        f"--{each.name}"
        for each in inspect.signature(function).parameters.values()
        if each.annotation is bool
    }
    spelled: list[str] = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="--"):
        spelled.append(argument)
        if argument in switches and following.startswith("--"):
            spelled.append("true")
    return spelled


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Show only what is ours: no reminders of the libraries below, and no bars for weights that are read."""
    with quiet_libraries(f"nspec {name}"):
        if COMMANDS[name][0] in _WITHOUT_MODELS:
            yield
            return
        from transformers.utils import logging

        def hidden(make: Callable[..., Any], given: tuple[Any, ...], more: dict[str, Any]) -> Any:
            return make(*given, **{**more, "disable": True})

        # Not `disable_progress_bar`, which takes those of downloads away too.
        before = logging.set_tqdm_hook(hidden)
        try:
            yield
        finally:
            logging.set_tqdm_hook(before)


def underscored(argument: str) -> str:
    """Return an option as the functions spell it: `--comet-out` is `--comet_out`.

    An argument of the Trainer may stand without the name of what holds it: `--train.max_steps` is
    `--train.arguments.max_steps`.
    """
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    parts = name[2:].split(".")
    until = 1 + next((n for n, part in enumerate(parts) if part.replace("-", "_") in _OF_USERS), len(parts))
    name = ".".join([*(part.replace("-", "_") for part in parts[:until]), *parts[until:]])
    room, dot, rest = name.partition(".")
    if dot and room in _TRAININGS and rest.partition(".")[0] not in _OF_A_TRAINING:
        name = f"{room}.arguments.{rest}"
    return f"--{name}{equals}{value}"


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: nspec COMMAND [settings]", "", "commands:", *lines, _EXAMPLES])
