"""One training run, from encoded text to a saved model: resumable, with its log beside it.

The recipes, the command line and the demo all train through `train`, so that a base, a specialized model
and every control differ in nothing but what they are meant to differ in.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    EmptyPairError,
    claim_folder,
    keep_freed_memory,
    lock_folder,
    rank,
    read_json,
    warn,
    world_size,
    write_json,
)
from nspec_hf.data import BatchConfig, EncodedCorpus, LanguageTags, PairBatchSampler, PairCollator, as_tags
from nspec_hf.gating import MADE_BY_FILE, Attachment, NeuronGate
from nspec_hf.recording import ActivationStats, RecordConfig, record
from nspec_hf.training.arguments import result_settings, training_arguments
from nspec_hf.training.checkpoints import (
    STATE_FILE,
    RunClock,
    base_facts,
    best_checkpoint,
    last_checkpoint,
    load_weights,
    warn_of_other_processes,
)
from nspec_hf.training.config import TrainConfig
from nspec_hf.training.elastic import ElasticTrainer
from nspec_hf.training.trainer import SpecializationTrainer

_FINISHED_FILE = "finished.json"
# Until when a run goes on, and which of its checkpoints it ends with; other values make it go on.
_UNTIL = (
    "max_steps",
    "num_train_epochs",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
)


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    updates: int
    """Optimizer steps in all, those before a resumption included."""
    seconds: float
    """Wall time of training, over all sittings."""
    log: Sequence[Mapping[str, float]]
    """The Trainer's log."""
    had_ended: bool = False
    """Whether nothing was left to do: the same run had ended before, and was loaded."""

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
    tags: LanguageTags | PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: TrainConfig,
    output: str | Path,
    validation: EncodedCorpus | None = None,
    gate: Attachment | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    shows_progress: bool = True,
    make_trainer: Callable[..., SpecializationTrainer] = SpecializationTrainer,
) -> TrainResult:
    """Train to the end, or go on where a stopped run stood; `output/model` then holds model and tokenizer.

    A run that has ended is not trained again: its weights are loaded. One whose `max_steps` (or epochs, or
    patience) was raised since goes on. A folder with weights that other settings made, or more updates, is
    refused.

    Args:
        model: What is trained, in place.
        tags: How its tokenizer, which is saved with it, spells languages; or the tokenizer.
        corpus: Encoded training text.
        config: The run.
        output: Folder of checkpoints, log and the trained model.
        validation: Text whose loss is looked at by the Trainer's `eval_strategy`; None or empty: none is.
        gate: The gate, or what else makes each row run as its pair does; None trains the bare model.
        callbacks: Further callbacks of the Trainer.
        shows_progress: Whether the Trainer's own bar or printed log is shown.
        make_trainer: The class of the Trainer, or what makes one of the same arguments.

    Raises:
        ConfigError: If an argument is unknown to the Trainer, patience has no validation text, or the folder
            holds a run of another base, text, gate or other arguments, or one that is longer.
        FolderInUseError: If another process trains in that folder.
        ArtifactError: If what a run left in the folder is damaged.
        TrainingSetupError: If the set-up would silently train another model; see `SpecializationCallback`.
    """
    output, validation = Path(output), validation if validation is not None and len(validation) else None
    pairs = () if validation is None else validation.pairs
    arguments = training_arguments(config, output, validation is not None, pairs)
    if config.elastic:
        if make_trainer is SpecializationTrainer:
            make_trainer = partial(ElasticTrainer, teacher=config.teacher)
        else:
            warn("elastic and its teacher have no effect on what brings a trainer of its own; leave them out")
    if gate is not None:
        gate.attach()
    chooses = validation if config.patience or arguments.load_best_model_at_end else None
    # All that decides which weights come out of a run, but for its length; a gate's masks may still change.
    decided = base_facts(model) | {
        "validation": None if chooses is None else chooses.digest(),
        "text": corpus.digest(),
        "gate": None,
        "elastic": {"teacher": config.teacher} if config.elastic else None,
        "levels": _levels(gate) if config.elastic else None,
        "batches": config.batches,
        "arguments": result_settings(arguments),
        "processes": arguments.world_size,
    }

    def made_by() -> dict[str, Any]:
        return decided | {"gate": None if gate is None else gate.facts()}

    # Only what the main process writes has to be kept from another run.
    with lock_folder(output) if arguments.process_index == 0 else nullcontext():
        until = {name: getattr(arguments, name) for name in _UNTIL} | {"patience": config.patience}
        finished = _read(output / _FINISHED_FILE, "until", "updates", "seconds")
        if finished.get("until") == until:
            _check_made_by(output / "model", gate, made_by)
            load_weights(model, output / "model")
            log = _read(output / STATE_FILE, "log_history").get("log_history", [])
            return TrainResult(finished["updates"], finished["seconds"], log, had_ended=True)
        trainer = _trainer(
            model, tags, corpus, config, arguments, gate, validation, shows_progress, make_trainer
        )
        patience = [EarlyStoppingCallback(config.patience)] if config.patience else []
        for callback in (*callbacks, *patience, RunClock()):
            trainer.add_callback(callback)
        trainer.into_checkpoint.append(lambda folder: write_json(folder / MADE_BY_FILE, made_by()))
        checkpoint = last_checkpoint(output)
        if checkpoint is not None:
            _check_made_by(Path(checkpoint), gate, made_by)
        seconds = _fit(trainer, checkpoint)
        writes, updates = trainer.is_world_process_zero(), trainer.state.global_step
        if writes:
            # A shorter run may have ended here before; from now on its model is not what is in the folder.
            (output / _FINISHED_FILE).unlink(missing_ok=True)
        trainer.save_model(str(output / "model"))
        if writes:
            write_json(output / "model" / MADE_BY_FILE, made_by())
            trainer.state.save_to_json(str(output / STATE_FILE))
            # Last, so that it says that all the rest is there.
            write_json(output / _FINISHED_FILE, {"until": until, "updates": updates, "seconds": seconds})
    return TrainResult(updates, seconds, trainer.state.log_history)


def _levels(gate: Attachment | None) -> dict[str, str]:
    """Return the fingerprint of each level's masks, which those of the gate's own leave out."""
    masks = gate.own_masks if isinstance(gate, NeuronGate) else None
    return {} if masks is None else {f"{each:g}": masks.at(each).fingerprint() for each in masks.levels}


def _check_made_by(folder: Path, gate: Attachment | None, made_by: Callable[[], dict[str, Any]]) -> None:
    """Refuse a folder's weights if another run made them; a folder that does not say so is taken over."""
    if gate is not None:
        gate.shape_as(folder)
    wanted, path = made_by(), folder / MADE_BY_FILE
    known = read_json(path) if path.is_file() else wanted
    if isinstance(known, dict):
        # Runs of earlier versions do not say all of it; text that chose nothing then, or now, may be any.
        wanted = {key: each for key, each in wanted.items() if key in known or (key == "elastic" and each)}
        if "validation" in known and None in (known["validation"], wanted["validation"]):
            wanted["validation"] = known["validation"]
        if "processes" in known:  # other ones may go on, and are told of it
            wanted["processes"] = known["processes"]
    claim_folder(folder, wanted, MADE_BY_FILE)


def text_loss(
    model: PreTrainedModel,
    tags: LanguageTags | PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: TrainConfig,
    output: str | Path,
    gate: Attachment | None = None,
) -> float:
    """Return the mean loss in nats a target token, language tags left out; arguments as in `train`."""
    arguments = training_arguments(config, Path(output))
    # Its log of one line is the caller's to show.
    trainer = _trainer(model, tags, corpus, config, arguments, gate, shown=False)
    return trainer.evaluate(corpus)["eval_text_loss"]


def record_corpus(
    model: PreTrainedModel,
    tags: LanguageTags | PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: RecordConfig | None = None,
    max_tokens: int = 4096,
    description: Mapping[str, Any] | None = None,
) -> ActivationStats:
    """Record all sentences of a corpus once, in batches by length; several processes share them out.

    The model runs on the device that it is on; `description`, of the text, is kept with the statistics.

    Raises:
        EmptyPairError: If there is no sentence, or none of a pair.
    """
    if not len(corpus):
        raise EmptyPairError(f"the corpus holds no sentence of {', '.join(corpus.pairs)}")
    longest = int(corpus.lengths.max())
    settings = BatchConfig(max_tokens=max(max_tokens, longest), max_length=longest)
    sampler = PairBatchSampler(corpus.lengths, corpus.pair_ids, settings, rank(), world_size(), shuffle=False)
    collate = _collator(model, tags, corpus)
    # A generator of its own, so that the pass draws nothing from the global random numbers.
    batches = DataLoader(corpus, batch_sampler=sampler, collate_fn=collate, generator=torch.Generator())
    return record(model, batches, corpus.pairs, config, description)


def _trainer(
    model: PreTrainedModel,
    tags: LanguageTags | PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: TrainConfig,
    arguments: Seq2SeqTrainingArguments,
    gate: Attachment | None,
    validation: EncodedCorpus | None = None,
    shown: bool = True,
    make_trainer: Callable[..., SpecializationTrainer] = SpecializationTrainer,
) -> SpecializationTrainer:
    if gate is not None:
        # Before the Trainer is made: it moves the model, and all that is on it, to its device.
        gate.attach()
        if gate.leaves_parameters_unused:
            arguments.ddp_find_unused_parameters = True
    trainer = make_trainer(
        model=model,
        args=arguments,
        train_dataset=corpus,
        eval_dataset=validation,
        data_collator=_collator(model, tags, corpus),
        processing_class=as_tags(tags).tokenizer,
        gate=gate,
        batch_config=config.batches,
    )
    if not shown:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    return trainer


def _collator(
    model: PreTrainedModel,
    tags: LanguageTags | PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
) -> PairCollator:
    """Return a collator whose decoder inputs begin as the model's do, or as is usual in its family."""
    parts = (getattr(model, part, None) for part in ("generation_config", "config"))
    starts = [getattr(part, "decoder_start_token_id", None) for part in parts]
    return PairCollator(tags, corpus.pairs, next((start for start in starts if isinstance(start, int)), None))


def _fit(trainer: SpecializationTrainer, checkpoint: str | None) -> float:
    """Train, from a checkpoint where there is one; return the seconds over all sittings."""
    state = _read(Path(checkpoint) / STATE_FILE) if checkpoint else {}
    if checkpoint:
        _refuse_shorter(trainer.args, state, checkpoint)
    if checkpoint and _has_ended(trainer, state):
        # Killed after its last checkpoint: the Trainer would go on to one more update, or evaluation.
        best = best_checkpoint(Path(checkpoint)) if trainer.args.load_best_model_at_end else None
        load_weights(trainer.trained, best or Path(checkpoint))
        trainer.state = trainer.state.load_from_json(str(Path(checkpoint) / STATE_FILE))
        return state["stateful_callbacks"].get("RunClock", {}).get("args", {}).get("before", 0.0)
    if checkpoint and trainer.is_world_process_zero():
        warn_of_other_processes(Path(checkpoint), trainer.args.world_size)
    if trainer.args.device.type == "cpu":
        keep_freed_memory()
    trainer.train(resume_from_checkpoint=checkpoint)
    # Resuming puts another clock in the place of the one that was added.
    clocks = (one for one in trainer.callback_handler.callbacks if isinstance(one, RunClock))
    return next(clocks).seconds


def _refuse_shorter(arguments: Seq2SeqTrainingArguments, state: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse to give out a checkpoint as the end of a run that is shorter."""
    if 0 < arguments.max_steps < state["global_step"]:
        said = f"{state['global_step']} updates, and max_steps is {arguments.max_steps}"
    elif arguments.max_steps <= 0 and state["epoch"] >= math.ceil(arguments.num_train_epochs) + 1:
        said = f"{state['epoch']:g} epochs, and num_train_epochs is {arguments.num_train_epochs:g}"
    else:
        return
    raise ConfigError(f"{checkpoint} has made {said}; give another folder, or delete this one to begin anew")


def _has_ended(trainer: SpecializationTrainer, state: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is a run's last: all updates are made, or its patience is at an end."""
    if 0 < trainer.args.max_steps <= state["global_step"]:
        return True
    stops = [one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
    kept = state["stateful_callbacks"].get(type(stops[0]).__name__) if len(stops) == 1 else None
    counted = kept["attributes"].get("early_stopping_patience_counter", 0) if isinstance(kept, dict) else 0
    return bool(stops) and counted >= stops[0].early_stopping_patience


def _read(path: Path, *names: str) -> dict[str, Any]:
    """Return what a run wrote into a JSON file, nothing where there is none.

    Raises:
        ArtifactError: If it is damaged.
    """
    content = read_json(path, ArtifactError) if path.is_file() else dict.fromkeys(names)
    if not isinstance(content, dict) or not content.keys() >= {*names}:
        raise ArtifactError(
            f"{path} is damaged; delete the run's {_FINISHED_FILE}, and it goes on from its last checkpoint"
        )
    return content
