"""The Trainer's arguments: each is followed, refused or warned about; wrong ones are told before any work."""

from dataclasses import fields
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from transformers import Seq2SeqTrainingArguments, get_scheduler

from nspec_hf.core import ConfigError, TrainingSetupError
from nspec_hf.data import BatchConfig
from nspec_hf.training import TrainConfig, training_arguments
from nspec_hf.training.arguments import (
    FOR_SCRIPTS,
    NOT_THE_RESULT,
    NOT_USED,
    REFUSED,
    THE_RESULT,
    check_arguments,
    minimize_losses,
    result_settings,
)

BATCHES = BatchConfig(max_tokens=64, max_length=32)


def given(folder, **arguments):
    return Seq2SeqTrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **arguments)


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_processes_without_a_gpu_are_to_use_the_cpu(name, tmp_path, monkeypatch):
    """Else each of several trains alone, as if it were the only one."""
    state = SimpleNamespace(device=torch.device(name))
    monkeypatch.setattr("nspec_hf.training.arguments.join_processes", lambda: state)
    assert training_arguments(TrainConfig(), tmp_path).use_cpu


def test_every_argument_of_the_library_stands_in_one_table():
    tables = [set(table) for table in (THE_RESULT, NOT_THE_RESULT, FOR_SCRIPTS, NOT_USED, REFUSED)]
    assert set().union(*tables) == {each.name for each in fields(Seq2SeqTrainingArguments)}
    assert not any(one & other for one, other in combinations(tables, 2))


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


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"learning_rate": -1.0}, "learning_rate is 0 or more, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate is a finite number"),
        ({"weight_decay": float("inf")}, "weight_decay is a finite number"),
        ({"label_smoothing_factor": 1.5}, "label_smoothing_factor is a share below 1"),
        ({"label_smoothing_factor": -0.1}, "label_smoothing_factor is 0 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 1 or more, got 0"),
        ({"adam_beta1": 1.5}, "cannot be used: Invalid beta"),
        ({"adam_epsilon": -1.0}, "cannot be used: Invalid epsilon"),
        ({"seed": -1}, "seed is 0 or more"),
        ({"seed": 2**32}, "seed is below 2 to the 32"),
        ({"save_steps": 0}, "save_steps is above 0"),
        ({"eval_steps": -3}, "eval_steps is above 0"),
        ({"logging_steps": 0}, "logging_steps is above 0"),
        ({"save_total_limit": -2}, "save_total_limit is 1 or more"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers is 0 or more"),
        ({"lr_scheduler_kwargs": 7}, "lr_scheduler_kwargs are names and values, got 7"),
        ({"max_steps": 0}, "max_steps is 1 or more, got 0"),
        ({"max_steps": -5}, "max_steps is 1 or more, got -5"),
        ({"num_train_epochs": 0}, "num_train_epochs is above 0"),
        ({"generation_num_beams": 0}, "generation_num_beams is 1 or more"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is 0 or more"),
    ],
)
def test_values_that_end_in_an_error_of_the_library_later_or_in_none_are_refused(tmp_path, argument, says):
    with pytest.raises(ConfigError, match=says):
        training_arguments(TrainConfig(arguments={"warmup_steps": 1, **argument}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_values_at_the_edge_are_taken(tmp_path):
    edge = {"learning_rate": 0.0, "seed": 2**32 - 1, "max_steps": -1, "save_steps": 0.1, "logging_steps": 1}
    edge |= {"dataloader_num_workers": 0, "warmup_steps": 0, "max_grad_norm": 0.0, "save_total_limit": 1}
    assert training_arguments(TrainConfig(arguments=edge), tmp_path).seed == 2**32 - 1


@pytest.mark.parametrize(("updates", "warmup"), [(500, 50), (3, 1), (7999, 799)])
def test_a_warm_up_that_no_one_chose_fits_into_few_updates(tmp_path, updates, warmup):
    with pytest.warns(UserWarning, match=rf"warmup_steps is {warmup}, a tenth of max_steps {updates}"):
        made = training_arguments(TrainConfig(arguments={"max_steps": updates}), tmp_path)
    rates = [min(step / warmup, (warmup / step) ** 0.5) for step in range(1, updates + 1)]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(made.lr_scheduler_type, optimizer, made.get_warmup_steps(updates), updates)
    for rate in rates[:200]:
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr()[0] == pytest.approx(rate)
    assert max(rates) == 1


def test_a_warm_up_that_was_chosen_or_fits_stays(tmp_path, recwarn):
    for given_, expected in (({"max_steps": 8000}, 4000), ({"max_steps": 500, "warmup_steps": 400}, 400)):
        assert training_arguments(TrainConfig(arguments=given_), tmp_path).warmup_steps == expected
    assert training_arguments(TrainConfig(), tmp_path).warmup_steps == 4000
    assert not recwarn.list


def test_a_run_that_ends_before_its_first_evaluation_is_told_and_refused_where_the_best_is_wanted(tmp_path):
    short = {"max_steps": 300, "warmup_steps": 10}
    with pytest.warns(UserWarning, match="looked at every 500 updates, and there are 300 in all"):
        training_arguments(TrainConfig(arguments=short), tmp_path, evaluates=True)
    with pytest.raises(ConfigError, match=r"no checkpoint can be the best: .* set eval_steps"):
        training_arguments(TrainConfig(arguments=short, patience=2), tmp_path, evaluates=True)
    every = {**short, "eval_steps": 100, "save_steps": 100}
    training_arguments(TrainConfig(arguments=every, patience=2), tmp_path, evaluates=True)


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
