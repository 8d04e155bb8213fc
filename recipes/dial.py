"""Score one elastic model at several coverages: the dial between quality and speed.

    python recipes/specialize.py EXPERIMENT.yaml --system elastic --settings.teacher 0.5
    python recipes/dial.py EXPERIMENT.yaml --row elastic --settings.teacher 0.5 --levels 1.0 0.8 0.6 0.4

Reads the model that `specialize.py` (or `compare.py`) left in `work/ROW/sSEED`, and writes
`recipes/results/NAME.ROW.sSEED.dial.json`: at each coverage the share of neurons kept, the validation loss of
the text and the scores of every direction; and of the first direction the time of decoding, slices of the one
model, and the weights of an export, both as a share of the dense model's. Times are processor time, medians
of rounds in which all coverages and the dense model take turns. A model that was trained for one coverage has
the same masks, and so the same size and work in a decoder pass; how many passes beam search makes, which is
in these times too, depends on what it writes.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from transformers import PreTrainedModel

from nspec_hf.core import ConfigError, exit_status, write_result
from nspec_hf.data import PairText
from nspec_hf.evaluation import Translator
from nspec_hf.export import pruned
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
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
        timed={"type": int, "default": 200, "help": "Sentences whose decoding is timed."},
        rounds={"type": int, "default": 5, "help": "How often."},
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
    by_coverage = {coverage: system.at(coverage, stats, run) for coverage in extra.levels}
    for coverage, masks in by_coverage.items():
        # A gate of its own for each level: the one before holds composed masks of zero-shot pairs too.
        settings = gate.config
        gate.detach()
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
    gate.detach()
    if run.tests:
        first = run.tests[0]
        text = PairText(first.pair, first.sources[: extra.timed], first.targets[: extra.timed])
        seconds = shares_of_time(model, run, by_coverage, text, extra.rounds)
        whole = model.get_memory_footprint(return_buffers=False)
        for level, masks in zip(levels, by_coverage.values(), strict=True):
            level["time"] = seconds[level["coverage"]]
            level["bytes"] = pruned(model, masks, text.pair)[0].get_memory_footprint(False) / whole
            print(
                f"coverage {level['coverage']:g}, beside the dense model: {level['time']:.3f} of the time of "
                f"decoding {text.pair}, {level['bytes']:.3f} of the bytes of its export"
            )
    path = Path(config.results) / f"{config.name}.{extra.row}.s{extra.seed}.dial.json"
    outcome = {"system": system.name, "settings": dict(extra.settings), "seed": extra.seed, "levels": levels}
    write_result(path, outcome, without_places(config))
    print(f"kept in {path}")


def shares_of_time(
    model: PreTrainedModel, run: Run, masks: Mapping[float, NeuronMasks], text: PairText, rounds: int
) -> dict[float, float]:
    """Return the median share of the dense model's time that decoding a text takes at each coverage."""
    settings = dataclasses.replace(run.config.translate, progress=False)
    gates: dict[float | None, NeuronGate | None] = {None: None}
    gates |= {coverage: NeuronGate(model, own, GateConfig(mode="slice")) for coverage, own in masks.items()}
    shares: dict[float, list[float]] = {coverage: [] for coverage in masks}
    for number in range(rounds + 1):
        times = {}
        for coverage, gate in gates.items():
            begun = time.process_time()
            with gate or nullcontext():
                Translator(model, run.tags, gate, settings).translate(text.sources, text.pair)
            times[coverage] = time.process_time() - begun
        for coverage, own in shares.items() if number else ():  # the first round warms up
            own.append(times[coverage] / times[None])
    return {coverage: statistics.median(own) for coverage, own in shares.items()}


if __name__ == "__main__":
    sys.exit(exit_status("dial.py", main))
