"""One training run, from encoded text to a saved model: resumable, with its log beside it.

The recipes, the command line and the demo all train through `train`, so that a base, a specialized model
and every control differ in nothing but what they are meant to differ in.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

from nspec_hf.core import EmptyPairError, rank, world_size, write_json
from nspec_hf.data import BatchConfig, EncodedCorpus, PairBatchSampler, PairCollator, as_tags
from nspec_hf.gating import Attachment, attachment_of
from nspec_hf.recording import ActivationStats, RecordConfig, record
from nspec_hf.training.arguments import training_arguments
from nspec_hf.training.checkpoints import RunClock, last_checkpoint
from nspec_hf.training.config import TrainConfig
from nspec_hf.training.trainer import SpecializationTrainer

_FINISHED_FILE = "finished.json"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    updates: int
    """Optimizer steps in all, those before a resumption included."""
    seconds: float
    """Wall time of training, over all sittings."""
    log: Sequence[Mapping[str, float]]
    """The Trainer's log."""

    def facts(self) -> dict[str, Any]:
        """Return what a results file says about the run; the validation loss of the text by update."""
        name = "eval_text_loss"
        validation = {str(line["step"]): line[name] for line in self.log if name in line}
        return {
            "updates": self.updates,
            "training_seconds": round(self.seconds, 1),
            "validation_loss": validation,
        }


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: TrainConfig,
    output: str | Path,
    validation: EncodedCorpus | None = None,
    gate: Attachment | None = None,
    codes: Mapping[str, str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    shows_progress: bool = True,
) -> TrainResult:
    """Train to the end, or go on where a stopped run stood; `output/model` then holds model and tokenizer.

    A run that has ended is not trained again: its weights are loaded. One whose `max_steps` (or epochs, or
    patience) was raised since goes on.

    Args:
        model: What is trained, in place.
        tokenizer: Its tokenizer, saved with it.
        corpus: Encoded training text.
        config: The run.
        output: Folder of checkpoints, log and the trained model.
        validation: Text whose loss is looked at by the Trainer's `eval_strategy`; None or empty: none is.
        gate: The gate, or what else makes each row run as its pair does; None trains the bare model.
        codes: Your language codes → the tokenizer's, where they differ.
        callbacks: Further callbacks of the Trainer.
        shows_progress: Whether the Trainer's own bar or printed log is shown.

    Raises:
        ConfigError: If an argument is unknown to the Trainer, or patience has no validation text.
        TrainingSetupError: If the set-up would silently train another model; see `SpecializationCallback`.
    """
    output, validation = Path(output), validation if validation is not None and len(validation) else None
    arguments = training_arguments(config, output, evaluates=validation is not None)
    until = {
        "max_steps": arguments.max_steps,
        "num_train_epochs": arguments.num_train_epochs,
        "patience": config.patience,
    }
    finished = _read_json(output / _FINISHED_FILE)
    if finished.get("until") == until:
        load_weights(model, output / "model")
        log = _read_json(output / "trainer_state.json").get("log_history", [])
        return TrainResult(updates=finished["updates"], seconds=finished["seconds"], log=log)
    set_seed(arguments.seed)
    trainer = _trainer(model, tokenizer, corpus, config, arguments, gate, codes, validation, shows_progress)
    patience = [EarlyStoppingCallback(config.patience)] if config.patience else []
    for callback in (*callbacks, *patience, RunClock()):
        trainer.add_callback(callback)
    seconds = _fit(trainer, last_checkpoint(output))
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(output / "trainer_state.json"))
        # Last, so that it says that all the rest is there.
        done = {"until": until, "updates": trainer.state.global_step, "seconds": seconds}
        write_json(output / _FINISHED_FILE, done)
    return TrainResult(updates=trainer.state.global_step, seconds=seconds, log=trainer.state.log_history)


def text_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: TrainConfig,
    output: str | Path,
    gate: Attachment | None = None,
    codes: Mapping[str, str] | None = None,
) -> float:
    """Return the mean loss in nats a target token, language tags left out; arguments as in `train`."""
    arguments = training_arguments(config, Path(output))
    # Its log of one line is the caller's to show.
    trainer = _trainer(model, tokenizer, corpus, config, arguments, gate, codes, shown=False)
    return trainer.evaluate(corpus)["eval_text_loss"]


def record_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: RecordConfig | None = None,
    max_tokens: int = 4096,
    description: Mapping[str, Any] | None = None,
    codes: Mapping[str, str] | None = None,
) -> ActivationStats:
    """Record all sentences of a corpus once, in batches by length; several processes share them out.

    Args:
        model: The model, on the device that it is to run on.
        tokenizer: Its tokenizer.
        corpus: Encoded text.
        config: What to count.
        max_tokens: Token budget of a batch.
        description: What text it is, kept with the statistics.
        codes: Your language codes → the tokenizer's, where they differ.

    Raises:
        EmptyPairError: If there is no sentence, or none of a pair.
    """
    if not len(corpus):
        raise EmptyPairError(f"the corpus holds no sentence of {', '.join(corpus.pairs)}")
    longest = int(corpus.lengths.max())
    settings = BatchConfig(max_tokens=max(max_tokens, longest), max_length=longest)
    sampler = PairBatchSampler(corpus.lengths, corpus.pair_ids, settings, rank(), world_size(), shuffle=False)
    collate = PairCollator(as_tags(tokenizer, codes), corpus.pairs, model.config.decoder_start_token_id)
    # A generator of its own, so that the pass draws nothing from the global random numbers.
    batches = DataLoader(corpus, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
    return record(model, batches, corpus.pairs, config, description)


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: TrainConfig,
    arguments: Seq2SeqTrainingArguments,
    gate: Attachment | None,
    codes: Mapping[str, str] | None,
    validation: EncodedCorpus | None = None,
    shown: bool = True,
) -> SpecializationTrainer:
    if gate is not None:
        # Before the Trainer is made: it moves the model, and all that is on it, to its device.
        gate.attach()
        if gate.leaves_parameters_unused:
            arguments.ddp_find_unused_parameters = True
    trainer = SpecializationTrainer(
        model=model,
        args=arguments,
        train_dataset=corpus,
        eval_dataset=validation,
        data_collator=PairCollator(
            as_tags(tokenizer, codes), corpus.pairs, model.config.decoder_start_token_id
        ),
        processing_class=tokenizer,
        gate=gate,
        batch_config=config.batches,
    )
    if not shown:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    return trainer


def _fit(trainer: SpecializationTrainer, checkpoint: str | None) -> float:
    """Train, from a checkpoint where there is one; return the seconds over all sittings."""
    state = _read_json(Path(checkpoint) / "trainer_state.json") if checkpoint else {}
    if 0 < trainer.args.max_steps <= state.get("global_step", 0):
        # Killed after its last checkpoint: the Trainer would make one more update.
        best = trainer.args.load_best_model_at_end and state["best_model_checkpoint"]
        load_weights(trainer.model, Path(best or checkpoint))
        trainer.state = trainer.state.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        return state["stateful_callbacks"].get("RunClock", {}).get("args", {}).get("before", 0.0)
    trainer.train(resume_from_checkpoint=checkpoint)
    # Resuming puts another clock in the place of the one that was added.
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, RunClock)).seconds


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load what `save_model` wrote: the model's weights, and those of an attachment that is on it.

    Args:
        model: With the attachment on it whose weights were saved, if there was one.
        folder: The model's folder.

    Raises:
        RuntimeError: If weights are missing, or there are some that the model has no place for.
    """
    attachment = attachment_of(model)
    if attachment is not None:
        attachment.shape_as(folder)
    saved: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        saved |= load_file(path)
    # Not by from_pretrained, which makes up weights that are missing and knows none of an attachment.
    found = model.load_state_dict(saved, strict=False)
    state = model.state_dict(keep_vars=True)
    there = {id(state[name]) for name in saved.keys() & state.keys()}
    # Tied weights are saved once.
    missing = [name for name in found.missing_keys if id(state[name]) not in there]
    if missing or found.unexpected_keys:
        raise RuntimeError(
            f"{folder} holds the weights of another model: {len(missing)} are missing "
            f"({', '.join(missing[:3]) or 'none'}), {len(found.unexpected_keys)} are not this model's "
            f"({', '.join(found.unexpected_keys[:3]) or 'none'})"
        )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
