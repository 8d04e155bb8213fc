"""Train a multilingual base model from scratch: text, vocabulary, M2M-100 architecture, test scores.

    python recipes/pretrain.py recipes/configs/multi30k.yaml --data.corpus.path DIR
    accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/pretrain.py recipes/configs/bible.yaml

A stopped run goes on where it stood. The model and its tokenizer are left in `work/base/model`,
translations of the test set in `work/base/outputs`, scores and the whole recipe in
`recipes/results/NAME.base.json`.
"""

import sys

from nspec_hf.core import exit_status
from nspec_hf.systems import ExperimentConfig, pretrain, read_settings


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, _ = read_settings(ExperimentConfig, argv, description=__doc__)
    scores = pretrain(config)
    if scores is not None:
        print(scores.table())


if __name__ == "__main__":
    sys.exit(exit_status("pretrain.py", main))
