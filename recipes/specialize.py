"""Continue a trained base with each pair's own neurons, or with any other compared system, and score it.

    python recipes/specialize.py recipes/configs/multi30k.yaml --system neuron_specialization
    python recipes/specialize.py recipes/configs/multi30k.yaml --system random --settings.density 0.7 --seed 2
    python recipes/specialize.py recipes/configs/m2m100.yaml --system finetune --data.corpus.path DIR

load → record → select → gate → train → evaluate → save. The systems and their settings are the classes of
`nspec_hf/systems/`; `recipes/compare.py` runs many of them. A stopped run goes on where it stood. Scores and
the whole recipe go to `recipes/results/NAME.SYSTEM.sSEED.json`.
"""

import sys

from nspec_hf.core import ConfigError, exit_status
from nspec_hf.masks import NeuronMasks
from nspec_hf.systems import SYSTEMS, ExperimentConfig, Masked, Run, make_system, read_settings, run_system
from nspec_hf.training import join_processes


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, extra = read_settings(
        ExperimentConfig,
        argv,
        description=__doc__,
        system={"choices": tuple(SYSTEMS), "default": "neuron_specialization", "help": "What to train."},
        settings={"type": dict, "default": {}, "help": "Its settings, where they are not its defaults."},
        seed={"type": int, "default": None, "help": "Seed of the run; else the file's for specialize, or 1."},
        row={"type": str, "default": "", "help": "What tables call it; empty: the system's name."},
        push={"type": str, "default": "", "help": "Hub repository that the masks are pushed to."},
    )
    system = make_system(extra.system, extra.settings)
    if extra.push and not isinstance(system, Masked):
        raise ConfigError(f"--push uploads masks, and {extra.system} has none")
    run = Run.of(config, extra.row or extra.system, extra.seed)
    scores = run_system(run, system)
    if scores is not None:
        print(scores.table())
    if extra.push and join_processes().is_main_process:
        NeuronMasks.from_pretrained(run.folder / "masks").push_to_hub(extra.push)


if __name__ == "__main__":
    sys.exit(exit_status("specialize.py", main))
