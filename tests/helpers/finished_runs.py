"""Finished runs of made-up systems: translations and results as `specialize.py` leaves them, untrained."""

import dataclasses
import random

from nspec_hf.core import write_lines
from nspec_hf.data import CorpusConfig
from nspec_hf.evaluation import score_system
from nspec_hf.systems import DataConfig, ExperimentConfig
from nspec_hf.systems.plan import ComparisonPlan
from nspec_hf.systems.result import write_scores
from nspec_hf.training import TrainConfig
from tests.helpers.tiny_text import WORDS, write_text

TRIALS = 200


def experiment(folder, rows, **data):
    """Write test text of 60 sentences a language; return an experiment that compares these rows."""
    write_text(folder / "text", train=1, valid=1, test=60)
    return ExperimentConfig(
        name="tiny",
        work=str(folder / "work"),
        results=str(folder / "results"),
        data=DataConfig(
            corpus=CorpusConfig(path=str(folder / "text")), **{"languages": ["en", "de", "fr"], **data}
        ),
        specialize=TrainConfig(arguments={"max_steps": 3}),
        compare=ComparisonPlan(rows=rows, seeds=(1, 2), n_samples=TRIALS),
    )


def spoil(lines, share, seed, language):
    """Return sentences with a share of their words replaced by others of the language."""
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(WORDS[language]) if draw.random() < share else word for word in line.split())
        for line in lines
    ]


def finish(run, share, pairs=None, **facts):
    """Leave translations with a share of wrong words, and the result; return the translations."""
    config, data = run.config, run.config.data
    texts = data.read(data.test_split, pairs or data.tested_pairs())
    outputs = {
        text.pair: spoil(text.targets, share, f"{run.name} {text.pair}", text.pair.target) for text in texts
    }
    for pair, lines in outputs.items():
        write_lines(run.folder / "outputs" / f"{pair.file_name}.txt", lines)
    scores = score_system(
        run.row,
        outputs,
        {text.pair: text.targets for text in texts},
        config.metrics,
        generation={"num_beams": 5},
        pivot=data.pivot,
        tiers=data.tiers,
    )
    budget = dataclasses.replace(
        config.specialize,
        batches=dataclasses.replace(config.specialize.batches, seed=run.seed),
        arguments={**config.specialize.arguments, "seed": run.seed},
    )
    result = {
        "name": run.row,
        "system": run.system.name,
        "settings": dataclasses.asdict(run.system),
        "seed": run.seed,
        "extra_parameters": 0,
        "extra_bytes": 0,
        "updates": 3,
        "training_seconds": 10.0 * run.seed,
        **facts,
    }
    write_scores(run.result_file, result, scores, dataclasses.replace(config, specialize=budget))
    return outputs
