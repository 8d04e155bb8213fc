"""Checks of the environment: versions, optional parts, threads, and variables that change results."""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

import torch
from packaging.requirements import Requirement

from nspec_hf.core import OPTIONAL_PARTS, usable_cores
from nspec_hf.doctor.setup import Finding, Setup, note


def check_environment(setup: Setup) -> Iterator[Finding]:
    """Look at what is installed and at what the shell says."""
    yield from _versions()
    yield from _extras()
    yield from _threads()
    if os.environ.get("SACREBLEU_SEED") == "0":
        yield Finding(
            what="SACREBLEU_SEED is 0",
            why="sacreBLEU takes 0 for no seed, while its signature says seed 0: p-values change from run "
            "to run",
            mend="set another number, or `unset SACREBLEU_SEED` (sacreBLEU then takes 12345)",
        )


def _versions() -> Iterator[Finding]:
    try:
        requirements = importlib.metadata.requires("nspec-hf") or ()
    except importlib.metadata.PackageNotFoundError:
        yield note(
            what="nspec_hf runs from its source and is not installed",
            why="which versions of other packages it needs stands in what is installed, so none was checked",
            mend="pip install -e FOLDER, with the folder of its pyproject.toml",
        )
        return
    for line in requirements:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed is None or not needed.specifier.contains(installed, prereleases=True):
            yield Finding(
                what=f"{needed.name} {installed or 'is missing'}, while {needed.specifier or 'any'} is "
                "needed",
                why="nspec_hf was tested with those versions; others load, train or count differently",
                mend=f"pip install '{needed.name}{needed.specifier}'",
            )


def _extras() -> Iterator[Finding]:
    missing = [module for module in OPTIONAL_PARTS if importlib.util.find_spec(module) is None]
    extras = sorted({OPTIONAL_PARTS[module] for module in missing})
    if missing:
        yield note(
            what=f"optional parts are missing: {', '.join(missing)}",
            why="commands that need them stop and say so",
            mend=f"pip install 'nspec-hf[{','.join(extras)}]', if you need them",
        )


def _threads() -> Iterator[Finding]:
    cores, threads = usable_cores(), torch.get_num_threads()
    if threads > cores:
        yield note(
            what=f"torch uses {threads} threads, but this process may use {cores} cores",
            why="threads that wait for each other make everything several times slower",
            mend=f"export OMP_NUM_THREADS={cores}",
        )
    if not torch.accelerator.is_available():
        yield note(
            what=f"torch sees no accelerator; {threads} threads on {cores} cores will do the work",
            why="training a model of hundreds of millions of parameters takes weeks on processor cores",
            mend="install torch for your GPU, if there is one: https://pytorch.org/get-started",
        )
