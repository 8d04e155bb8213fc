"""Checks of a training run's settings: what the Trainer would refuse, misread, or do wrongly in silence."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from nspec_hf.core import NspecError
from nspec_hf.doctor.setup import Finding, Setup, note, one_line
from nspec_hf.recording import longest_text
from nspec_hf.training import check_arguments, training_arguments


def check_config(setup: Setup) -> Iterator[Finding]:
    """Look at the training arguments; `plain_trainer` says which Trainer they are for."""
    yield from _training(setup)
    if setup.pretrain is not None:
        for finding in _training(replace(setup, train=setup.pretrain)):
            yield replace(finding, what=f"pretrain: {finding.what}")


def _training(setup: Setup) -> Iterator[Finding]:
    given = setup.train.arguments
    try:
        with tempfile.TemporaryDirectory() as folder:
            arguments = training_arguments(setup.train, Path(folder), evaluates="valid" in setup.splits)
        if not setup.plain_trainer:
            check_arguments(arguments, setup.train.batches)
    except (NspecError, ValueError, TypeError, ImportError) as error:
        yield Finding(
            what=f"the training arguments are refused: {one_line(error)[:300]}",
            why="training does not begin",
            mend="see the message; `nspec train --help` and the documentation of Seq2SeqTrainingArguments "
            "say which values there are",
        )
        return
    yield from _schedule(arguments)
    yield from _precision(arguments)
    yield from _best(given)
    yield from _lengths(setup)
    if setup.plain_trainer:
        yield from _plain_trainer(arguments, given)


def _schedule(arguments: Seq2SeqTrainingArguments) -> Iterator[Finding]:
    if 0 < arguments.max_steps <= arguments.warmup_steps:
        yield Finding(
            what=f"{arguments.warmup_steps:g} warm-up updates of {arguments.max_steps} in all",
            why=f"training ends before the learning rate of {arguments.learning_rate:g} is reached",
            mend="set warmup_steps to about a tenth of max_steps",
        )
    saves = str(arguments.save_strategy) in ("steps", "SaveStrategy.STEPS")
    if saves and 0 < arguments.max_steps < arguments.save_steps:
        yield note(
            what=f"a checkpoint every {arguments.save_steps:g} updates, and {arguments.max_steps} updates in "
            "all",
            why="a run that is stopped begins anew, and the best model is the last one",
            mend="set save_steps (and eval_steps) to a tenth of max_steps",
        )


def _precision(arguments: Seq2SeqTrainingArguments) -> Iterator[Finding]:
    if arguments.fp16 and not torch.accelerator.is_available():
        yield Finding(
            what="fp16=True without a GPU",
            why="float16 is slower than float32 on a processor, or refused",
            mend="leave fp16 out; bf16=True where the processor has it",
        )
    elif arguments.fp16:
        yield note(
            what="fp16=True",
            why="M2M-100, NLLB and T5 were trained in bfloat16 or float32; in float16 their activations "
            "overflow and updates are skipped",
            mend="bf16=True, where the GPU has it (Ampere and later)",
        )


def _best(given: Mapping[str, Any]) -> Iterator[Finding]:
    metric = str(given.get("metric_for_best_model") or "")
    greater = given.get("greater_is_better")
    if "loss" in metric and not metric.endswith("loss") and greater is None:
        yield Finding(
            what=f"metric_for_best_model is {metric!r}, without greater_is_better",
            why="the Trainer looks at the name's end alone and keeps the checkpoint with the largest loss",
            mend="set greater_is_better: false",
        )
    if "loss" in metric and greater is True:
        yield Finding(
            what=f"greater_is_better is true for {metric!r}",
            why="the checkpoint with the largest loss is kept",
            mend="set greater_is_better: false",
        )
    if metric.removeprefix("eval_") == "loss":
        yield note(
            what="the best checkpoint is chosen by eval_loss",
            why="it contains the language tag, which a pair's own neurons give away: masks look better "
            "than they are",
            mend="metric_for_best_model: eval_text_loss, greater_is_better: false",
        )


def _lengths(setup: Setup) -> Iterator[Finding]:
    try:
        positions = longest_text(setup.network)
    except (NspecError, OSError):
        return  # the model's check says why
    longest = setup.train.batches.max_length
    if positions and longest and longest > positions:
        yield note(
            what=f"sentences of up to {longest} tokens, but the model has {positions} positions",
            why="longer sentences are cut, or stop training with an index error",
            mend=f"--train.batches.max_length {positions}",
        )


def _plain_trainer(arguments: Seq2SeqTrainingArguments, given: Mapping[str, Any]) -> Iterator[Finding]:
    """What is right under `nspec train` and SpecializationTrainer, and wrong under a plain Seq2SeqTrainer."""
    # Without the defaults of `nspec train`.
    factor = arguments.gradient_accumulation_steps * max(arguments.world_size, 1)
    if factor > 1:
        yield Finding(
            what=f"{arguments.gradient_accumulation_steps} micro-batches an update × "
            f"{arguments.world_size} processes",
            why=f"for M2M-100, mBART, Marian and T5 the plain Trainer's loss and gradients are {factor} "
            "times too large",
            mend="compute_loss_func=callback.loss, or SpecializationTrainer",
        )
    if given.get("label_smoothing_factor"):
        yield Finding(
            what=f"label_smoothing_factor is {given['label_smoothing_factor']}",
            why="M2M-100 and NLLB crash with DataCollatorForSeq2Seq, and mBART trains on wrong decoder "
            "inputs",
            mend="data_collator=PairCollator(tokenizer, pairs) and compute_loss_func=callback.loss",
        )
    if given.get("remove_unused_columns", True):
        yield Finding(
            what="remove_unused_columns is on",
            why="the Trainer takes the column of pairs out before the collator sees it, without a word",
            mend="remove_unused_columns: false",
        )
    if given.get("predict_with_generate"):
        yield Finding(
            what="predict_with_generate is on",
            why="the plain Trainer gives all rows of an evaluation one target language, and generate "
            "refuses the pair's column",
            mend="SpecializationTrainer, which gives each row its own; or leave it off and use Translator",
        )
