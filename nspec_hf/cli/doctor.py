"""What `nspec doctor` does."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from nspec_hf import data, doctor as doctor_room, systems, training
from nspec_hf.cli.pipeline import directions
from nspec_hf.core import needs


@needs(test_split="corpus", train_split="corpus")
def doctor(
    model: str,
    masks: str | None = None,
    corpus: data.CorpusConfig | None = None,
    pairs: str | Sequence[str] = (),
    train: training.TrainConfig = training.TrainConfig(),
    train_split: str | None = "train",
    valid_split: str | None = None,
    test_split: str | None = None,
    plain_trainer: bool = False,
    codes: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Look at a set-up before any work: what will go wrong, why, and how to mend it.

    Example: nspec doctor MODEL --masks masks --corpus.path data --test_split test
    or, with the file of a training run, or of an experiment (nspec run): nspec doctor --config mine.yaml

    It looks at as much as is given. Exit status: 0 clean, 1 something will go wrong, 2 a check could not be
    done.

    Args:
        model: Hub id or folder of the model.
        masks: Folder or Hub repository of masks.
        corpus: Where the text lies.
        pairs: The directions, where there are no masks to name them: `en-de,de-en`.
        train: The training run.
        train_split: Text to train on.
        valid_split: Text whose loss is watched.
        test_split: Text that is tested on; looked for among the training text.
        plain_trainer: Whether the arguments are for a `Seq2SeqTrainer` of yours, and not for `nspec train`.
        codes: Your language codes → the tokenizer's, where they differ.
        trust_remote_code: Whether code in the model's repository may run.
    """
    return _say(
        doctor_room.Setup(
            model=model,
            masks=masks,
            corpus=corpus,
            pairs=directions(pairs),
            splits=_given(train=train_split, valid=valid_split, test=test_split),
            train=train,
            plain_trainer=plain_trainer,
            codes=codes or {},
            trust_remote_code=trust_remote_code,
        )
    )


def doctor_of_experiment(
    model: Mapping[str, Any] | str | None = None,
    masks: str | None = None,
    trust_remote_code: bool = False,
    **experiment: Any,
) -> int:
    """Look at an experiment, as `nspec run` and the recipes read it, before any work.

    Its base, text and both trainings; a base that is not made yet cannot be looked at. Exit status: 0 clean,
    1 something will go wrong, 2 a check could not be done.

    Args:
        model: Hub id or folder of the trained model to start from, in the place of `base`; or fields of
            `M2M100Config` for one that is trained.
        masks: Folder or Hub repository of masks.
        trust_remote_code: Whether code in the model's repository may run.
        **experiment: The experiment.
    """
    shape = model if isinstance(model, Mapping) else {}
    config = systems.ExperimentConfig(model=shape, **experiment)
    text, base = config.data, model if isinstance(model, str) else config.base
    return _say(
        doctor_room.Setup(
            model=base if base and base != config.base else config.base_model,
            masks=masks,
            corpus=text.corpus,
            pairs=text.trained_pairs(),
            splits=_given(train=text.train_split, valid=text.valid_split, test=text.test_split),
            train=config.specialize,
            pretrain=None if base else config.pretrain,
            codes=text.codes,
            trust_remote_code=trust_remote_code,
        )
    )


OF_EXPERIMENTS = doctor_of_experiment
"""What is run where the settings' file is an experiment's, which has a part `data`."""


def _given(**splits: str | None) -> dict[str, str]:
    return {use: split for use, split in splits.items() if split}


def _say(setup: "doctor_room.Setup") -> int:
    report = doctor_room.examine(setup)
    sys.stdout.write(f"{report}\n")
    return report.exit_status
