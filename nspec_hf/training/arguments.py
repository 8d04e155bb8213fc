"""The Trainer's arguments: our defaults, and what each one does where an `EncodedCorpus` is trained on.

The trap: a Trainer that makes its own batches reads only some of its arguments, and the others would be
ignored without a word. So every field of `Seq2SeqTrainingArguments` stands in one of the tables below, and a
test fails when the library has one that does not.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from accelerate import PartialState
from transformers import GenerationConfig, Seq2SeqTrainer, Seq2SeqTrainingArguments, get_scheduler
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_pt_utils import AcceleratorConfig

from nspec_hf.core import ArtifactError, ConfigError, TrainingSetupError, plain, read_json, require, warn
from nspec_hf.data import BatchConfig
from nspec_hf.gating import MADE_BY_FILE
from nspec_hf.training.checkpoints import last_checkpoint
from nspec_hf.training.config import TrainConfig

THE_RESULT = frozenset(
    """
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1
    adam_beta2 adam_epsilon optim_target_modules gradient_accumulation_steps average_tokens_across_devices
    max_grad_norm label_smoothing_factor bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_compile
    torch_compile_backend torch_compile_mode use_liger_kernel liger_kernel_config use_cache
    neftune_noise_alpha prediction_loss_only eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model ignore_data_skip
    full_determinism seed dataloader_in_order remove_unused_columns label_names fsdp fsdp_config deepspeed
    predict_with_generate generation_max_length generation_num_beams generation_config
    """.split()
)
"""What decides which weights come out. What these say, and the next ones, is done."""

NOT_THE_RESULT = frozenset(
    """
    output_dir num_train_epochs max_steps logging_strategy logging_steps logging_first_step log_on_each_node
    logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to
    run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps
    eval_delay eval_on_start save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    load_best_model_at_end metric_for_best_model greater_is_better restore_callback_states_from_checkpoint
    use_cpu dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context ddp_backend ddp_timeout debug
    skip_memory_metrics torch_empty_cache_steps
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    """.split()
)
"""What may change while a run goes on: how long it is, what is looked at, where it runs. And secrets."""

FOR_SCRIPTS = frozenset("do_train do_eval do_predict local_rank resume_from_checkpoint".split())
"""Notes of a script to itself, which no Trainer reads."""

_BY_TOKENS = "an EncodedCorpus is batched by tokens: BatchConfig(max_tokens={max_tokens})"
_PLANNED = "an EncodedCorpus is drawn by a plan: BatchConfig(temperature={temperature}, mixed={mixed})"

NOT_USED = {
    "per_device_train_batch_size": _BY_TOKENS,
    "per_device_eval_batch_size": _BY_TOKENS,
    "train_sampling_strategy": _PLANNED,
    "length_column_name": _PLANNED,
    "sortish_sampler": _PLANNED,
    "dataloader_drop_last": "the plan of an EncodedCorpus gives each process as many batches; none is lost",
    "accelerator_config": "the plan of an EncodedCorpus is shared out before accelerate sees it",
}
"""Without meaning for an `EncodedCorpus`, and why; warned about where they are set."""

REFUSED = {
    "auto_find_batch_size": f"it cannot make the batches smaller, since {_BY_TOKENS}; lower that",
    "data_seed": "BatchConfig(seed={seed}) is the seed of an EncodedCorpus's order; set that",
    "bf16_full_eval": "an EncodedCorpus is evaluated as it is trained; bf16=True computes both in bfloat16",
    "fp16_full_eval": "an EncodedCorpus is evaluated as it is trained; fp16=True computes both in float16",
    "parallelism_config": "processes that share a batch (tensor, context, sequence parallelism) would each "
    "get another one; train with data parallelism, FSDP or DeepSpeed",
}
"""Would give another training than asked for, and what to do."""

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
    # Else the patience of early stopping would begin anew with every sitting.
    "restore_callback_states_from_checkpoint": True,
}
_LEAST = {
    **dict.fromkeys("gradient_accumulation_steps save_total_limit max_steps".split(), 1),
    **dict.fromkeys("generation_max_length generation_num_beams dataloader_prefetch_factor".split(), 1),
    **dict.fromkeys("eval_accumulation_steps torch_empty_cache_steps".split(), 1),
    **dict.fromkeys("dataloader_num_workers seed weight_decay max_grad_norm warmup_steps".split(), 0),
    **dict.fromkeys("eval_delay learning_rate label_smoothing_factor neftune_noise_alpha".split(), 0),
}
"""The least that an argument can be; the library finds out in the middle of the work, or never."""
_ABOVE_ZERO = ("save_steps", "eval_steps", "logging_steps", "num_train_epochs")
_BY_METRIC = ("load_best_model_at_end", "metric_for_best_model", "best", "reduce_lr_on_plateau", "greedy")
_CHOSEN_BY_THE_RUN = ("output_dir", "resume_from_checkpoint")


def check_arguments(args: Seq2SeqTrainingArguments, batches: BatchConfig) -> None:
    """Refuse, or warn of, arguments that are set and that an `EncodedCorpus` has no use for.

    Raises:
        TrainingSetupError: If one would give another training than asked for.
    """
    usual = {field.name: field.default for field in fields(args)} | {
        "accelerator_config": AcceleratorConfig()
    }
    settings = {field.name: getattr(batches, field.name) for field in fields(batches)}
    for name, reason in {**REFUSED, **NOT_USED}.items():
        if getattr(args, name) == usual[name]:
            continue
        message = f"{name} is not used: {reason.format(**settings)}"
        if name in REFUSED:
            raise TrainingSetupError(message)
        warn(message)


def join_processes() -> PartialState:
    """Join the other processes of the run, where `accelerate launch` or `torchrun` started several.

    The trap: without a GPU, several processes find each other only if they are told to use the CPU;
    otherwise each believes that it is alone.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def result_settings(args: Seq2SeqTrainingArguments) -> dict[str, Any]:
    """Return the arguments that decide which weights come out, where they are not the library's defaults."""
    values = {field.name: (getattr(args, field.name), field.default) for field in fields(args)}
    return {
        name: plain(value)
        for name, (value, usual) in values.items()
        if name in THE_RESULT and value != usual and (value or usual not in (None, MISSING))
    }


def minimize_losses(args: Seq2SeqTrainingArguments) -> None:
    """Let a loss with a pair behind its name (`eval_loss_en-de`) be minimized when a checkpoint is chosen.

    The library looks at the end of the name alone, and would keep the checkpoint with the largest loss.
    """
    name = args.metric_for_best_model or ""
    if args.greater_is_better and re.search(r"(^|_)loss_.+-.+$", name):
        warn(f"{name} is a loss, so the smallest is the best: greater_is_better=False")
        args.greater_is_better = False


def training_arguments(
    config: TrainConfig, output: Path, evaluates: bool = False, pairs: Sequence[str] = ()
) -> Seq2SeqTrainingArguments:
    """Return the Trainer's arguments: ours where the run is silent. To be called before any work.

    Where there is validation text (`evaluates`), each of its `pairs` has a loss to choose a checkpoint by.

    Raises:
        ConfigError: If an argument is unknown to the Trainer or has a value that it cannot have, or patience
            or the choice of the best checkpoint has nothing to look at.
    """
    # Not the types that the fields hold: HfArgumentParser, in a script of the same process, changes these.
    hints = get_type_hints(Seq2SeqTrainingArguments)
    types = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    unknown = sorted(set(config.arguments) - set(types))
    require(not unknown, f"Seq2SeqTrainingArguments has no {', '.join(unknown)}")
    require(evaluates or not config.patience, "patience looks at the validation loss; give validation text")
    given = {name: _checked(name, value, types[name]) for name, value in config.arguments.items()}
    chosen = {**_OUR_DEFAULTS, "disable_tqdm": not sys.stderr.isatty()} | _for_few_updates(given, output)
    if str(join_processes().device).startswith("cpu"):  # in several processes it is cpu:0
        # The Trainer refuses bf16 without an accelerator unless it is told that this is meant.
        chosen |= {"use_cpu": True, "dataloader_pin_memory": False}
    if evaluates:
        chosen["eval_strategy"] = "steps"
    if config.patience or any(name in _BY_METRIC or value in _BY_METRIC for name, value in given.items()):
        # Not the loss of all labels: the language tag among them is given away by a pair's own neurons.
        chosen |= {"metric_for_best_model": "eval_text_loss", "greater_is_better": False}
    if config.patience:
        chosen["load_best_model_at_end"] = True
    _check_evaluations({**chosen, **given})
    try:
        arguments = Seq2SeqTrainingArguments(**{**chosen, **given, "output_dir": str(output)})
        _try_out(arguments)
    except Exception as error:  # of whatever type the library and its optional parts raise
        raise ConfigError(f"training arguments cannot be used: {' '.join(str(error).split())}") from error
    metric, known = arguments.metric_for_best_model, ["loss", "text_loss", *(f"loss_{one}" for one in pairs)]
    if evaluates and pairs and metric is not None and metric.removeprefix("eval_") not in known:
        raise ConfigError(f"there is no metric {metric!r} to choose by; there are: {', '.join(known)}")
    return arguments


def _for_few_updates(given: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Return a warm-up of a tenth of the updates, where these are so few that the usual one takes half.

    A run that goes on, perhaps for longer, has the one that it began with.
    """
    updates, usual = given.get("max_steps", -1), _OUR_DEFAULTS["warmup_steps"]
    if "warmup_steps" in given or not isinstance(updates, int) or not 0 < updates < 2 * usual:
        return {}
    begun = Path(last_checkpoint(output) or output / "model") / MADE_BY_FILE
    known = read_json(begun, ArtifactError) if begun.is_file() else {}
    kept = known.get("arguments", {}).get("warmup_steps") if isinstance(known, dict) else None
    if isinstance(kept, (int, float)):
        return {"warmup_steps": kept}
    shorter = max(1, updates // 10)
    warn(
        f"warmup_steps is {shorter}, a tenth of max_steps {updates}, since the usual {usual:,} would take "
        "half of the training or more; set warmup_steps to have another"
    )
    return {"warmup_steps": shorter}


def _check_evaluations(asked: Mapping[str, Any]) -> None:
    """Warn where a run is shorter than the time to its first evaluation.

    Raises:
        ConfigError: If the best checkpoint is then to be chosen, or training to be stopped, by evaluations.
    """
    updates, every = asked.get("max_steps", -1), asked.get("eval_steps") or asked.get("logging_steps", 500)
    numbers = isinstance(updates, int) and isinstance(every, int)
    if asked.get("eval_strategy") != "steps" or not numbers or not 1 <= updates < every:
        return
    message = (
        f"the validation text is looked at every {every} updates, and there are {updates} in all; set "
        "eval_steps and save_steps to about a tenth of max_steps"
    )
    require(not asked.get("load_best_model_at_end"), f"no checkpoint can be the best: {message}")
    warn(message)


def _checked(name: str, value: Any, types: tuple[Any, ...]) -> Any:
    """Return an argument as the Trainer takes it."""
    require(name not in _CHOSEN_BY_THE_RUN, f"{name} is chosen by the run; leave it out of arguments")
    require(
        not isinstance(value, str) or str in types,
        f"training argument {name} is no text, got {value!r}; write numbers plainly (1000, 0.0005)",
    )
    if value is False and name.endswith("_strategy"):
        return "no"  # YAML reads a plain `no` as false, and so `eval_strategy: no` comes here
    if types == (int,) and isinstance(value, float):
        # `max_steps: 1e3` means a whole number; with another the Trainer would stop in mid-training.
        require(value.is_integer(), f"{name} is a whole number, got {value}")
        value = int(value)
    if isinstance(value, (int, float)) and (name, value) != ("max_steps", -1):
        _check_range(name, value)
    return value


def _check_range(name: str, value: float) -> None:
    require(math.isfinite(value), f"training argument {name} is a finite number, got {value}")
    least, above = _LEAST.get(name), name in _ABOVE_ZERO
    require(least is None or value >= least, f"training argument {name} is {least} or more, got {value}")
    require(not above or value > 0, f"training argument {name} is above 0, got {value}")
    if name == "label_smoothing_factor":
        require(value < 1, f"training argument {name} is a share below 1, got {value}")
    if name == "seed":
        require(value < 2**32, f"training argument {name} is below 2 to the 32, got {value}")


def _try_out(args: Seq2SeqTrainingArguments) -> None:
    """Make what the Trainer makes of its arguments only after the data is read."""
    get_reporting_integration_callbacks(args.report_to)
    generation, schedule = args.generation_config, args.lr_scheduler_kwargs
    if generation is not None:
        is_config = isinstance(generation, GenerationConfig)
        Seq2SeqTrainer.load_generation_config(generation if is_config else str(generation))
    if args.optim_target_modules is None:
        kind, settings = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(args)
        if kind.__module__.startswith("torch."):  # others may want a GPU
            kind([torch.zeros(1, requires_grad=True)], **settings)
    if not isinstance(schedule, (dict, NoneType)):
        raise TypeError(f"lr_scheduler_kwargs are names and values, got {schedule!r}")
    steps = args.max_steps if args.max_steps > 0 else 1000
    get_scheduler(
        args.lr_scheduler_type,
        torch.optim.SGD([torch.zeros(1)]),
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=schedule,
    )
