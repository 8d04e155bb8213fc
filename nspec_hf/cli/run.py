"""What `nspec run` does: all steps from text to a report, from one file of settings."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nspec_hf import systems
from nspec_hf.core import ConfigError


def run(
    model: Mapping[str, Any] | str | None = None,
    output: str | None = None,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    batch_tokens: int | None = None,
    seed: int | None = None,
    coverage: float | None = None,
    control: bool = True,
    system: str = "neuron_specialization",
    settings: Mapping[str, Any] | None = None,
    results: str | None = None,
    **experiment: Any,
) -> None:
    """Do it all: record, select, train, translate, evaluate, report. A run that was stopped goes on.

    Example: nspec run --config mine.yaml --max_steps 500
    or, without a file: nspec run --model facebook/m2m100_418M --data.corpus.path data
    --data.pairs en-de,de-en --output runs/mine

    The file is that of the recipes (recipes/configs). Without a trained model, one is trained from the text
    first. Fine-tuning of all neurons with the same budget is run beside it, and every direction is tested
    against that.

    Args:
        model: Hub id or folder of the trained model to start from, in the place of `base`; or fields of
            `M2M100Config` for one that is trained here: `{d_model: 256, encoder_layers: 3}`.
        output: Folder that everything is written to, in the place of `work`.
        max_steps: Updates of the continued training; those of a base are `--pretrain.max_steps`.
        learning_rate: Its highest learning rate.
        batch_tokens: Its token budget of a batch.
        seed: Of its order of the text, of dropout, and of masks that are drawn; null: the file's, or 1.
        coverage: Share of a layer's activations that the kept neurons cover, in (0, 1].
        control: Whether to fine-tune all neurons too; without, the comparison is with the base.
        system: What is run: neuron_specialization, or another system of masks (allocation_te, random …).
        settings: Its settings, where they are not the file's or its defaults.
        results: Folder of scores; null: `scores` in the folder of everything else.
        **experiment: The experiment.
    """
    shape = model if isinstance(model, Mapping) else {}
    config = systems.ExperimentConfig(model=shape, results=results or "", **experiment)
    work = output or config.work
    specialize = config.specialize.changed(max_steps, learning_rate, batch_tokens, seed)
    chosen, select = systems.make_system(system, settings), config.select
    if coverage is not None:
        if not isinstance(chosen, systems.NeuronSpecialization):
            raise ConfigError(f"coverage is a setting of neuron_specialization, not of {chosen.name}")
        select = dataclasses.replace(select, coverage=coverage)
    config = dataclasses.replace(
        config,
        base=model if isinstance(model, str) else config.base,
        work=work,
        results=results or str(Path(work) / "scores"),
        specialize=specialize,
        select=select,
    )
    systems.run_to_report(config, chosen, seed, control)
