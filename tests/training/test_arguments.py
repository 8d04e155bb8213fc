"""The Trainer's arguments: each is followed, refused or warned about; wrong ones are told before any work."""

from dataclasses import fields
from itertools import combinations

import pytest
from transformers import Seq2SeqTrainingArguments

from nspec_hf.core import ConfigError, TrainingSetupError
from nspec_hf.data import BatchConfig
from nspec_hf.training import TrainConfig, training_arguments
from nspec_hf.training.arguments import (
    FOR_SCRIPTS,
    HONOURED,
    NOT_THE_RESULT,
    NOT_USED,
    REFUSED,
    check_arguments,
    minimize_losses,
    result_settings,
)

BATCHES = BatchConfig(max_tokens=64, max_length=32)


def given(folder, **arguments):
    return Seq2SeqTrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **arguments)


def test_every_argument_of_the_library_stands_in_one_table():
    tables = [set(table) for table in (HONOURED, FOR_SCRIPTS, NOT_USED, REFUSED)]
    assert set().union(*tables) == {each.name for each in fields(Seq2SeqTrainingArguments)}
    assert not any(one & other for one, other in combinations(tables, 2))
    assert NOT_THE_RESULT < HONOURED


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"per_device_train_batch_size": 3}, r"BatchConfig\(max_tokens=64\)"),
        ({"train_sampling_strategy": "group_by_length"}, "drawn by a plan"),
        ({"dataloader_drop_last": True}, "none is lost"),
        ({"accelerator_config": {"split_batches": True}}, "shared out before accelerate"),
    ],
)
def test_what_an_encoded_corpus_has_no_use_for_is_warned_about(tmp_path, argument, says):
    with pytest.warns(UserWarning, match=f"{next(iter(argument))} is not used: .*{says}"):
        check_arguments(given(tmp_path, **argument), BATCHES)


@pytest.mark.parametrize(
    "argument", [{"data_seed": 7}, {"auto_find_batch_size": True}, {"bf16_full_eval": True}]
)
def test_what_would_give_another_training_is_refused(tmp_path, argument):
    with pytest.raises(TrainingSetupError, match=f"{next(iter(argument))} is not used"):
        check_arguments(given(tmp_path, **argument), BATCHES)


def test_usual_arguments_pass_without_a_word(tmp_path, recwarn):
    check_arguments(given(tmp_path, learning_rate=1.0, bf16=True, max_steps=3), BATCHES)
    assert not [each for each in recwarn if "is not used" in str(each.message)]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"max_steps": "1e3"}, "max_steps is no text, got '1e3'"),
        ({"learning_rate": "fast"}, "learning_rate is no text"),
        ({"optim": "nope"}, "nope is not a valid OptimizerNames"),
        ({"report_to": "nope"}, "nope is not supported"),
        ({"lr_scheduler_type": "nope"}, "nope is not a valid SchedulerType"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"load_best_model_at_end": True, "save_steps": 3, "eval_steps": 2}, "multiple"),
        ({"bf16": True, "fp16": True}, "not both"),
        ({"generation_config": "no/such/folder"}, "no/such/folder"),
        ({"deepspeed": "nope.json"}, "deepspeed"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"resume_from_checkpoint": "x"}, "resume_from_checkpoint is chosen by the run"),
    ],
)
def test_wrong_arguments_are_one_line_before_any_work(tmp_path, argument, says):
    with pytest.raises(ConfigError, match=says) as caught:
        training_arguments(TrainConfig(arguments=argument), tmp_path / "new", evaluates=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_token_is_not_taken_into_settings_which_result_files_hold():
    with pytest.raises(ConfigError, match="hf auth login") as caught:
        TrainConfig(arguments={"hub_token": "hf_secret"})
    assert "hf_secret" not in str(caught.value)


def test_a_loss_with_a_pair_behind_its_name_is_minimized(tmp_path):
    """The library looks at the name's end: `eval_loss_en-de` does not end in "loss"."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    for name, is_loss in (("eval_loss_eng_Latn-deu_Latn", True), ("eval_bleu_en-de", False)):
        args = given(tmp_path, metric_for_best_model=name, **settings)
        assert args.greater_is_better
        if is_loss:
            with pytest.warns(UserWarning, match="is a loss"):
                minimize_losses(args)
        else:
            minimize_losses(args)
        assert args.greater_is_better is not is_loss


@pytest.mark.parametrize("patience", [None, 3])
def test_the_best_is_chosen_by_the_loss_of_the_text(tmp_path, patience):
    settings = {"save_steps": 1, "eval_steps": 1, **({} if patience else {"load_best_model_at_end": True})}
    args = training_arguments(TrainConfig(arguments=settings, patience=patience), tmp_path, evaluates=True)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_text_loss", False)


def test_what_decides_the_weights_has_no_secret_and_nothing_that_only_shows(tmp_path):
    args = given(tmp_path, hub_token="hf_secret", logging_steps=3, max_steps=9, learning_rate=0.5)
    assert result_settings(args) == {"learning_rate": 0.5}
