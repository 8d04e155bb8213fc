"""Score one elastic model at several coverages: the dial between quality and speed.

    python recipes/specialize.py EXPERIMENT.yaml --system elastic --settings.teacher 0.5
    python recipes/dial.py EXPERIMENT.yaml --row elastic --settings.teacher 0.5 --levels 1.0 0.8 0.6 0.4

Reads the model that `specialize.py` (or `compare.py`) left in `work/ROW/sSEED`, and writes
`recipes/results/NAME.ROW.sSEED.dial.json`: at each coverage the share of neurons kept, the validation loss of
the text and the scores of every direction.
"""

import sys
from pathlib import Path

from nspec_hf.core import ConfigError, exit_status, write_result
from nspec_hf.gating import NeuronGate
from nspec_hf.systems import (
    ElasticMasks,
    ExperimentConfig,
    Run,
    make_system,
    read_settings,
    signed_scores,
    without_places,
)
from nspec_hf.training import load_weights


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, extra = read_settings(
        ExperimentConfig,
        argv,
        description=__doc__,
        row={"type": str, "default": "elastic", "help": "What tables call the run."},
        settings={"type": dict, "default": {}, "help": "The settings that it was trained with."},
        seed={"type": int, "default": 1, "help": "Seed of the run."},
        levels={"type": float, "nargs": "+", "default": [1.0, 0.8, 0.6, 0.5, 0.4], "help": "Coverages."},
    )
    run, system = Run.of(config, extra.row, extra.seed), make_system("elastic", extra.settings)
    if not isinstance(system, ElasticMasks) or not (run.folder / "model").is_dir():
        raise ConfigError(f"there is no elastic model in {run.folder}; train it with recipes/specialize.py")
    model = system.model(run)
    gate = system.attach(model, run)
    if not isinstance(gate, NeuronGate):
        raise ConfigError(f"{run.folder} holds no masks")
    load_weights(model, run.folder / "model")
    stats, levels = run.recorded(model, system.record(run)), []
    for coverage in extra.levels:
        # A gate of its own for each level: the one before holds composed masks of zero-shot pairs too.
        settings = gate.config
        gate.detach()
        masks = system.at(coverage, stats, run)
        gate = NeuronGate(model, masks, settings)
        gate.attach()
        loss = run.loss(model, gate)
        scores = run.score(run.translate(model, gate, f"outputs_{coverage:g}"))
        levels.append(
            {
                "coverage": coverage,
                "density": masks.density(),
                "text_loss": loss,
                "scores": scores and signed_scores(scores),
            }
        )
        print(f"coverage {coverage:g}: {masks.density():.3f} of the neurons, text loss {loss:.4f}")
    path = Path(config.results) / f"{config.name}.{extra.row}.s{extra.seed}.dial.json"
    outcome = {"system": system.name, "settings": dict(extra.settings), "seed": extra.seed, "levels": levels}
    write_result(path, outcome, without_places(config))
    print(f"kept in {path}")


if __name__ == "__main__":
    sys.exit(exit_status("dial.py", main))
