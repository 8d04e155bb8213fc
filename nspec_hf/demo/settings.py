"""The demo as an experiment: `demo.yaml`, with the languages, places and budgets of a run of the demo."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from nspec_hf.data import CorpusConfig, LanguageFamilies
from nspec_hf.systems import DataConfig, ExperimentConfig, read_settings
from nspec_hf.training import TrainConfig

_FILE = Path(__file__).with_name("demo.yaml")


def demo_experiment(
    world: LanguageFamilies, output: str | Path, updates: int = 1000, more_updates: int = 250
) -> ExperimentConfig:
    """Return the demo as an experiment, whose text is in `output/data`.

    Args:
        world: The languages.
        output: Folder of the demo.
        updates: Training steps of the base.
        more_updates: Further steps of each compared system.
    """
    config, _ = read_settings(ExperimentConfig, [str(_FILE)])
    seed, decay = world.config.seed, config.pretrain.arguments["lr_scheduler_kwargs"]

    def budget(planned: TrainConfig, updates: int, **more: Any) -> TrainConfig:
        more["warmup_steps"] = min(planned.arguments["warmup_steps"], max(1, updates // 10))
        planned = planned.changed(max_steps=updates, seed=seed)
        return replace(planned, arguments={**planned.arguments, **more})

    return replace(
        config,
        work=str(output),
        results=str(Path(output) / "scores"),
        data=DataConfig(
            corpus=CorpusConfig(path=str(Path(output) / "data")),
            languages=world.languages,
            pivot=world.pivot,
            zero_shot=_unseen(world),
            families={code: world.family_of(code) for code in world.languages if code != world.pivot},
        ),
        pretrain=budget(
            config.pretrain, updates, lr_scheduler_kwargs={**decay, "num_decay_steps": updates // 5}
        ),
        specialize=budget(config.specialize, more_updates),
    )


def _unseen(world: LanguageFamilies) -> list[str]:
    """Return a few directions that are tested without training: in each family, and into the next one."""
    firsts = world.languages[1 :: world.config.languages]
    seconds = world.languages[2 :: world.config.languages]
    nexts = [*firsts[1:], firsts[0]]
    within = [f"{one}-{other}" for one, other in zip(firsts, seconds, strict=True)]
    return [*within, *(f"{one}-{other}" for one, other in zip(firsts, nexts, strict=True))]
