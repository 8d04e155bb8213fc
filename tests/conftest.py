"""Shared fixtures: real data where it lies beside the project, and a hub that is switched off."""

import functools
import gc
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One folder a process: those that run side by side must not share it, and Python remembers where it first
# found the package of dynamic modules.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules")

import docstring_parser
import hypothesis
import pytest

from tests.helpers.fresh_python import wait_to_be_forked

# What all tests together would spend minutes on: no test pulls the plug, so none waits for the disk; the help
# texts of a command line are read out of the source of its settings once.
os.fsync = lambda descriptor: None
docstring_parser.parse_from_object = functools.cache(docstring_parser.parse_from_object)
# No timed assertions: a busy machine is not a bug.
hypothesis.settings.register_profile("nspec", deadline=None)
hypothesis.settings.load_profile("nspec")

ROOT = Path(__file__).resolve().parents[1]


ROOMS_THAT_TRAIN = {"cli", "demo", "export", "recipes", "systems"}


def pytest_configure(config: pytest.Config) -> None:
    """Load the libraries where tests are run, and not in the process that hands them out to others."""
    if not config.getoption("numprocesses", default=None):
        wait_to_be_forked()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark rooms whose tests train whole systems or start processes; `make test-fast` leaves them out."""
    for item in items:
        if item.path.relative_to(ROOT / "tests").parts[0] in ROOMS_THAT_TRAIN:
            item.add_marker(pytest.mark.medium)


def pytest_collection_finish() -> None:
    """Leave the libraries out of garbage collections: every training asks for one, of all that is there."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real parallel text in {folder.name}/ beside the project")
    return folder


@pytest.fixture(scope="session")
def trained_base(tmp_path_factory) -> Path:
    """Train the base of a tiny experiment once; return its folder, which nothing else is written into."""
    from tests.helpers.tiny_experiment import experiment, recipe

    folder = tmp_path_factory.mktemp("base")
    recipe("pretrain")([experiment(folder)])
    return folder


@pytest.fixture(scope="module")
def based(request, tmp_path_factory, trained_base) -> tuple[Path, str]:
    """Give a file of tests a tiny experiment with a trained base; return its folder and settings' file."""
    from tests.helpers.tiny_experiment import experiment

    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    file = experiment(folder)
    for part in ("work", "results"):
        shutil.copytree(trained_base / part, folder / part)
    return folder, file
