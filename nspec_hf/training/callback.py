"""SpecializationCallback: makes a plain `Seq2SeqTrainer` train each pair with its own neurons.

Four lines in a script that you have:

    masks = NeuronMasks.from_coverage(record(model, batches, pairs))
    specialization = SpecializationCallback(NeuronGate(model, masks))
    Seq2SeqTrainer(…, data_collator=PairCollator(tokenizer, masks.pairs), callbacks=[specialization],
                   compute_loss_func=specialization.loss)            # and remove_unused_columns=False

The traps, each checked before the first update: the pair column that the Trainer strips; the loss that it
inflates; a collator that numbers the pairs differently from the masks; layers that drop out under several
processes; one target language for all rows of an evaluation; other masks than the checkpoint was trained
with.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from nspec_hf.core import Pair, TrainingSetupError
from nspec_hf.data import LanguageTags
from nspec_hf.gating import Attachment
from nspec_hf.training.loss import PairTally, TokenLoss

_NO_DECODER_INPUTS = (
    "the batches of this DataCollatorForSeq2Seq have no decoder_input_ids, but the Trainer takes their "
    "labels out for compute_loss_func and for label smoothing, so mBART and BART would train on the source "
    "as their decoder's input, and others stop; use PairCollator(tokenizer, pairs)"
)


class SpecializationCallback(TrainerCallback):
    """Puts the gate on the model, checks the set-up, logs, and saves the masks with every checkpoint.

    It logs `density` and, with `compute_loss_func=callback.loss`, the training loss of every pair
    (`loss_en-de`). The gate is on the model from the making of the Trainer and stays after training, so that
    every evaluation uses it; `gate.detach()` takes it off.

    Args:
        gate: The gate of the model that is trained, or what else makes its rows run as their pairs do.

    Raises:
        TrainingSetupError: When training begins (or before the first update), if the arguments would
            silently train another model than asked for.

    Attributes:
        loss: The exact loss, for the Trainer's `compute_loss_func`.
        in_plain_trainer: False under `SpecializationTrainer`, which keeps the pairs' columns, uses the exact
            loss and gives each row its own target language, so that these need no check.
    """

    def __init__(self, gate: Attachment) -> None:
        self.gate = gate
        self.loss = TokenLoss(tally=PairTally(gate.pairs), pair_ids=partial(_last_rows, gate))
        self.in_plain_trainer = True
        self._checked_loss = False
        self._no_decoder_inputs = False

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the gate: an evaluation before training must not be silently dense."""
        self._check_model(kwargs.get("model"))
        self.gate.attach()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the arguments and attach the gate, if it is not on the model yet."""
        loader, tokenizer = kwargs.get("train_dataloader"), kwargs.get("processing_class")
        self._check_model(kwargs.get("model"))
        self._check_columns(args)
        self._check_pairs(loader)
        check_decoder_start(self.gate.model, _collator(loader))
        self._check_decoder_inputs(args, _collator(loader))
        self._check_target_languages(args, _collator(loader), tokenizer)
        self._check_layerdrop(args)
        if state.global_step:
            self.gate.check_beside(checkpoint_folder(args, state))
        self.loss.label_smoothing = args.label_smoothing_factor
        self.loss.calls = 0
        self._checked_loss = False
        self.gate.attach()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check, before the first update, that the loss is the exact one."""
        if self._checked_loss:
            return
        self._checked_loss = True
        if args.world_size > 1 and not args.average_tokens_across_devices:
            raise TrainingSetupError(
                "average_tokens_across_devices=False makes the loss a mean of the processes' means, which is "
                "wrong where their batches hold different numbers of tokens; leave it on"
            )
        if self._no_decoder_inputs and self.loss.calls:
            raise TrainingSetupError(_NO_DECODER_INPUTS)
        if self.loss.calls or not self.in_plain_trainer:
            return
        factor = args.gradient_accumulation_steps * args.world_size
        if factor > 1:
            raise TrainingSetupError(
                "the Trainer's own loss is not exact under gradient accumulation and several processes: for "
                f"M2M-100, mBART, Marian and T5, loss and gradients are {factor} times too large here. Pass "
                "compute_loss_func=callback.loss, or call callback.loss in a loss function of your own"
            )
        warnings.warn(
            "the loss of single pairs is not logged; pass compute_loss_func=callback.loss", stacklevel=2
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add density and the pairs' losses to a training log.

        Reporters that the Trainer made before this callback (TensorBoard …) have read the log by then;
        under `SpecializationTrainer` they get these numbers too.
        """
        if logs is None or "loss" not in logs or any(name.startswith("loss_") for name in logs):
            return
        extra = self.measures()
        logs.update(extra)
        state.log_history[-1].update(extra)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the masks into the checkpoint."""
        if state.is_world_process_zero:
            self.gate.save_beside(checkpoint_folder(args, state))

    def measures(self) -> dict[str, float]:
        """Return what a training log gets, and begin the pairs' means anew; all processes must call it."""
        _, losses = self.loss.tally.take()
        return self.gate.measures() | {f"loss_{pair}": round(loss, 4) for pair, loss in losses.items()}

    def _check_model(self, model: nn.Module | None) -> None:
        if model is not None and all(module is not self.gate.model for module in model.modules()):
            raise TrainingSetupError(
                "the gate is for another model object than the Trainer trains, so that would train with all "
                "neurons; make both from the same object (and without model_init, which makes a new one)"
            )

    def _check_columns(self, args: TrainingArguments) -> None:
        if self.in_plain_trainer and args.remove_unused_columns and not self.gate.routes_itself:
            raise TrainingSetupError(
                "remove_unused_columns=True strips the pair of each row before the collator sees it; train "
                "with remove_unused_columns=False, or tell the gate: gate.use('en-de') or "
                "gate.read_languages(tokenizer)"
            )

    def _check_pairs(self, loader: DataLoader | None) -> None:
        own, collator, corpus = self.gate.pairs, _collator(loader), getattr(loader, "dataset", None)
        check_same_pairs("masks", own, "collator", getattr(collator, "pairs", None))
        check_same_pairs("masks", own, "training corpus", getattr(corpus, "pairs", None))

    def _check_decoder_inputs(self, args: TrainingArguments, collator: object) -> None:
        """Check that there are decoder inputs wherever the Trainer takes the labels from the batch."""
        makes = "prepare_decoder_input_ids_from_labels"
        library = isinstance(collator, DataCollatorForSeq2Seq)
        self._no_decoder_inputs = library and not hasattr(collator.model, makes)
        if self._no_decoder_inputs and (args.label_smoothing_factor or not self.in_plain_trainer):
            raise TrainingSetupError(_NO_DECODER_INPUTS)

    def _check_target_languages(
        self, args: TrainingArguments, collator: object, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        if not (self.in_plain_trainer and getattr(args, "predict_with_generate", False)):
            return
        tags = getattr(collator, "tags", None) or (LanguageTags(tokenizer) if tokenizer else None)
        if tags is None or not _begins_differently(tags, self.gate.pairs):
            return
        targets = ", ".join(sorted({pair.target for pair in self.gate.pairs}))
        message = (
            "predict_with_generate of a plain Seq2SeqTrainer begins all rows with one target language, but "
            f"these pairs have several: {targets}. "
            "Use SpecializationTrainer in its place, which takes the same arguments"
        )
        if args.eval_strategy != "no":
            raise TrainingSetupError(message)
        warnings.warn(f"{message}, or generate one target language at a time", stacklevel=2)

    def _check_layerdrop(self, args: TrainingArguments) -> None:
        config = self.gate.model.config
        dropped = [name for name in ("encoder_layerdrop", "decoder_layerdrop") if getattr(config, name, 0)]
        if not dropped:
            return
        message = f"model.config.{' and '.join(dropped)} drop whole layers in training; set them to 0"
        if args.world_size > 1:
            raise TrainingSetupError(f"{message}, since processes would drop different ones")
        warnings.warn(message, stacklevel=2)


def check_same_pairs(
    holder: str, expected: Sequence[Pair], other_holder: str, pairs: Sequence[str] | None
) -> None:
    """Check that two parts of a set-up number the pairs alike; None, for a part without pairs, passes.

    Raises:
        TrainingSetupError: If they do not.
    """
    if pairs is not None and list(pairs) != list(expected):
        raise TrainingSetupError(
            f"the {other_holder} numbers its pairs {', '.join(pairs)}, but the {holder} "
            f"{', '.join(expected)}, so pair_ids would stand for the wrong pairs; make both from the same "
            "list, for instance masks.pairs"
        )


def check_decoder_start(model: nn.Module, collator: object) -> None:
    """Check that the collator's decoder inputs begin as the model's do; a collator without tags passes.

    Raises:
        TrainingSetupError: If they do not.
    """
    tags, own = getattr(collator, "tags", None), getattr(collator, "decoder_start_token_id", None)
    if tags is None or own is None:
        return
    for settings in ("config", "generation_config"):
        start = getattr(getattr(model, settings, None), "decoder_start_token_id", None)
        # A family that begins with the target's tag never uses the token.
        used = any(own in tags.decoder_prefix(pair, own)[:1] for pair in collator.pairs)
        if used and isinstance(start, int) and start != own:
            raise TrainingSetupError(
                f"the collator's decoder inputs begin with token {own}, but model.{settings} says "
                f"decoder_start_token_id={start}, so translations would begin otherwise than in training; "
                f"give PairCollator decoder_start_token_id=model.{settings}.decoder_start_token_id"
            )


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of the current step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _last_rows(gate: Attachment) -> Tensor | None:
    # A function, not a lambda: a callback that is copied or pickled must ask its own gate.
    return gate.last_rows


def _collator(loader: DataLoader | None) -> object:
    collator = getattr(loader, "collate_fn", None)
    # The Trainer wraps a collator where it removes columns.
    return getattr(collator, "data_collator", collator)


def _begins_differently(tags: LanguageTags, pairs: Sequence[Pair]) -> bool:
    """Return whether the pairs' translations do not all begin with the same tokens."""
    return len({tuple(tags.decoder_prefix(pair, 0)) for pair in pairs}) > 1
