"""What `nspec doctor` does."""

import sys
from collections.abc import Mapping, Sequence

from nspec_hf import data, doctor as doctor_room, training
from nspec_hf.cli.pipeline import directions


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
    or, with the file of a training run: nspec doctor --config mine.yaml

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
    splits = {"train": train_split, "valid": valid_split, "test": test_split}
    report = doctor_room.examine(
        doctor_room.Setup(
            model=model,
            masks=masks,
            corpus=corpus,
            pairs=directions(pairs),
            splits={use: split for use, split in splits.items() if split},
            train=train,
            plain_trainer=plain_trainer,
            codes=codes or {},
            trust_remote_code=trust_remote_code,
        )
    )
    sys.stdout.write(f"{report}\n")
    return report.exit_status
