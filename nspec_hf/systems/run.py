"""One run of one system: train, translate, score, and write down all that made the numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from nspec_hf.core import claim_folder, write_result
from nspec_hf.evaluation import SystemScores, score_system
from nspec_hf.recording import find_sites, weight_fingerprint
from nspec_hf.systems.plan import ComparisonPlan
from nspec_hf.systems.system import System, Workbench, settings_of
from nspec_hf.training import join_processes


def claim(bench: Workbench, system: System) -> None:
    """Take the folder for this system; a run with other settings or on another base is not gone on with.

    Raises:
        ConfigError: If the folder holds one.
    """
    base, begun_with = bench.base(), bench.config.begun_with("base", "record", "select", "gate")
    begun_with |= {"system": system.name, "settings": settings_of(system), "seed": bench.seed}
    begun_with |= {"base_weights": weight_fingerprint(base, find_sites(base))}
    claim_folder(bench.folder, begun_with)


def run_system(name: str, system: System, bench: Workbench, result: Path) -> SystemScores | None:
    """Run a system to the end, or go on where a stopped run stood, and write its result.

    Args:
        name: What tables call this run's settings.
        system: With its settings.
        bench: Experiment, folder and seed.
        result: Where the small JSON file with scores and recipe goes.

    Returns:
        Its scores on the main process, None on the others.

    Raises:
        ConfigError: If the folder holds a run with other settings, or the system cannot work.
    """
    claim(bench, system)
    system.check(bench)
    # Read before training, so that a file that is missing is missed now.
    tests = bench.tests
    facts = system.run(bench)
    if not join_processes().is_main_process:
        return None
    outputs = system.outputs(bench)
    scores = _scores(name, outputs, bench) if tests else None
    outcome: dict[str, Any] = {
        "name": name,
        "system": system.name,
        "source": system.source,
        "settings": settings_of(system),
        "seed": bench.seed,
        **facts,
        "scores": scores and json.loads(scores.to_json()),
    }
    # The plan of a comparison says nothing of this run.
    trained = dataclasses.replace(bench.config, specialize=bench.budget(), compare=ComparisonPlan())
    write_result(result, outcome, trained)
    return scores


def _scores(name: str, outputs: dict[Any, list[str]], bench: Workbench) -> SystemScores:
    config, tests = bench.config, [text for text in bench.tests if text.pair in outputs]
    return score_system(
        name,
        outputs,
        {text.pair: text.targets for text in tests},
        config.metrics,
        sources={text.pair: text.sources for text in tests},
        generation=bench.decoding(),
        pivot=config.data.pivot,
        tiers=config.data.tiers,
    )
