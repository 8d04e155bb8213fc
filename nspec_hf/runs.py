"""One training run, from encoded text to a saved model: resumable, with its log beside it.

The recipes, the command line and the demo all train through `train`, so that a base, a specialized model
and every control differ in nothing but what they are meant to differ in.
"""

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from nspec_hf.batches import BatchConfig, PairBatchSampler
from nspec_hf.collator import PairCollator
from nspec_hf.config import RecordConfig
from nspec_hf.encoded import EncodedCorpus
from nspec_hf.errors import ConfigError
from nspec_hf.gate import NeuronGate
from nspec_hf.processes import rank, world_size
from nspec_hf.record import record
from nspec_hf.stats import ActivationStats
from nspec_hf.training import SpecializationTrainer

_OUR_DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,
    "report_to": "none",
    "adam_beta1": 0.9,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-9,
    "weight_decay": 0.0,
    "label_smoothing_factor": 0.1,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "inverse_sqrt",
    "warmup_steps": 4000,
    "save_total_limit": 2,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Any `Seq2SeqTrainingArguments` by name: `max_steps`, `learning_rate`, `bf16` … Where it is silent:
    Adam with β 0.9/0.98 and ε 1e-9, learning rate 5e-4 after 4,000 warm-up updates, inverse square root,
    label smoothing 0.1 (Tan et al. 2024, A.2)."""

    batches: BatchConfig = field(default_factory=BatchConfig)
    """How sentences are put into batches."""

    patience: int | None = None
    """Stop after this many evaluations without a better validation loss, and keep the best; None trains to
    the end."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run came to."""

    updates: int
    """Optimizer steps in all, those before a resumption included."""
    seconds: float
    """Wall time of training, over all sittings."""
    log: Sequence[Mapping[str, float]]
    """The Trainer's log."""


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: TrainConfig,
    output: str | Path,
    validation: EncodedCorpus | None = None,
    gate: NeuronGate | None = None,
) -> TrainResult:
    """Train to the end, or go on where a stopped run stood; `output/model` then holds model and tokenizer.

    Args:
        model: What is trained, in place.
        tokenizer: Its tokenizer, saved with it.
        corpus: Encoded training text.
        config: The run.
        output: Folder of checkpoints, log and the trained model.
        validation: Text whose loss is looked at by the Trainer's `eval_strategy`.
        gate: Masks for the pairs; None trains all neurons for all pairs.
    """
    output = Path(output)
    arguments = training_arguments(config, output, evaluates=validation is not None)
    set_seed(arguments.seed)
    trainer = SpecializationTrainer(
        model=model,
        args=arguments,
        train_dataset=corpus,
        eval_dataset=validation,
        data_collator=PairCollator(tokenizer, corpus.pairs, model.config.decoder_start_token_id),
        processing_class=tokenizer,
        gate=gate,
        batch_config=config.batches,
        callbacks=[EarlyStoppingCallback(config.patience)] if config.patience else None,
    )
    checkpoint = last_checkpoint(output)
    clock = _Clock(checkpoint)
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = clock.seconds
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(output / "trainer_state.json"))
    return TrainResult(updates=trainer.state.global_step, seconds=seconds, log=trainer.state.log_history)


def training_arguments(
    config: TrainConfig, output: Path, evaluates: bool = False
) -> Seq2SeqTrainingArguments:
    """Return the Trainer's arguments: ours where the run is silent.

    Raises:
        ConfigError: If an argument is unknown to the Trainer.
    """
    known = inspect.signature(Seq2SeqTrainingArguments).parameters
    unknown = sorted(set(config.arguments) - set(known))
    if unknown:
        raise ConfigError(f"Seq2SeqTrainingArguments has no {', '.join(unknown)}")
    bars = {"disable_tqdm": not sys.stderr.isatty()}
    chosen = {**_OUR_DEFAULTS, **bars, **config.arguments, "output_dir": str(output)}
    if not torch.accelerator.is_available():
        # The Trainer refuses bf16 without an accelerator unless it is told that this is meant.
        chosen = {"use_cpu": True, "dataloader_pin_memory": False, **chosen}
    if evaluates:
        chosen.setdefault("eval_strategy", "steps")
    if config.patience:
        best = {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
        }
        chosen = {**best, **chosen}
    return Seq2SeqTrainingArguments(**chosen)


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest whole checkpoint of a run, or None."""
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def record_corpus(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: EncodedCorpus,
    config: RecordConfig | None = None,
    max_tokens: int = 4096,
    description: Mapping[str, Any] | None = None,
) -> ActivationStats:
    """Record all sentences of a corpus once, in batches by length; several processes share them out.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        corpus: Encoded text.
        config: What to count.
        max_tokens: Token budget of a batch.
        description: What text it is, kept with the statistics.
    """
    longest = int(corpus.lengths.max())
    settings = BatchConfig(max_tokens=max(max_tokens, longest), max_length=longest)
    sampler = PairBatchSampler(corpus.lengths, corpus.pair_ids, settings, rank(), world_size(), shuffle=False)
    collate = PairCollator(tokenizer, corpus.pairs, model.config.decoder_start_token_id)
    batches = _Sized(
        lambda: (_on(collate([corpus[i] for i in batch]), model.device) for batch in sampler), len(sampler)
    )
    return record(model, batches, corpus.pairs, config, description)


class _Sized(Iterable):
    """Batches made one at a time, with a length for the progress bar."""

    def __init__(self, make: Callable[[], Iterable[Any]], length: int) -> None:
        self._make, self._length = make, length

    def __iter__(self) -> Any:
        return iter(self._make())

    def __len__(self) -> int:
        return self._length


def _on(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}


class _Clock(TrainerCallback):
    """Keeps the seconds of training in each checkpoint, so that they add up over a run's sittings."""

    def __init__(self, checkpoint: str | None) -> None:
        path = Path(checkpoint or "") / "seconds.json"
        self._before = json.loads(path.read_text())["seconds"] if checkpoint and path.is_file() else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds so far, in all sittings."""
        return self._before + time.monotonic() - self._started

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write them beside the checkpoint's other state."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / "seconds.json").write_text(json.dumps({"seconds": self.seconds}))
