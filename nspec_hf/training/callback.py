"""SpecializationCallback: makes a plain `Seq2SeqTrainer` train each pair with its own neurons.

Four lines in a script that you have:

    masks = NeuronMasks.from_coverage(record(model, batches, pairs))
    specialization = SpecializationCallback(NeuronGate(model, masks))
    Seq2SeqTrainer(…, data_collator=PairCollator(tokenizer, masks.pairs), callbacks=[specialization],
                   compute_loss_func=specialization.loss)            # and remove_unused_columns=False

The traps, each checked before the first update: the pair column that the Trainer strips; the loss that it
inflates; a collator that numbers the pairs differently from the masks; one target language for all rows of an
evaluation; other masks than the checkpoint was trained with; and those of `setup_checks.py`.
"""

from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nspec_hf.core import TrainingSetupError, plain, warn
from nspec_hf.data import LanguageTags
from nspec_hf.gating import MASKS_FOLDER, Attachment
from nspec_hf.training.checkpoints import STATE_NAME
from nspec_hf.training.loss import PairTally, TokenLoss, shifts_labels
from nspec_hf.training.setup_checks import (
    check_finite,
    check_one_target_language,
    check_same_pairs,
    check_schedule,
    check_setup,
)


class SpecializationCallback(TrainerCallback):
    """Puts the gate on the model, checks the set-up, logs, and saves the masks with every checkpoint.

    It logs `density` and, with `compute_loss_func=callback.loss`, the training loss of every pair
    (`loss_en-de`). The gate is on the model from the making of the Trainer and stays after training, so that
    every evaluation uses it; `gate.detach()` takes it off. Added to a Trainer that was made already, it puts
    the gate on when training begins, and refuses to evaluate with all neurons before.

    Args:
        gate: The gate of the model that is trained, or what else makes its rows run as their pairs do.

    Raises:
        TrainingSetupError: When training begins (or before the first update), if the arguments would
            silently train another model than asked for; in an evaluation before, if the gate is not on the
            model.

    Attributes:
        loss: The exact loss, for the Trainer's `compute_loss_func`.
        in_plain_trainer: False under `SpecializationTrainer`, which keeps the pairs' columns, uses the exact
            loss, gives each row its own target language and saves masks itself.
    """

    def __init__(self, gate: Attachment) -> None:
        self.gate = gate
        # No lambda: a callback that is copied or pickled must ask its own gate.
        last_rows = partial(attrgetter("last_rows"), gate)
        shifts = shifts_labels(gate.model)
        self.loss = TokenLoss(tally=PairTally(gate.pairs), pair_ids=last_rows, shifts=shifts)
        self.in_plain_trainer = True
        self._checked_loss, self._met_model = False, False

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the gate: an evaluation before training must not be silently dense."""
        self.attach(kwargs.get("model"))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the arguments and attach the gate, if it is not on the model yet."""
        loader = kwargs.get("train_dataloader")
        data, collator = getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)
        # Out of what the Trainer wraps it in where it removes columns.
        collator = getattr(collator, "data_collator", collator)
        check_same_pairs("masks", self.gate.pairs, "collator", getattr(collator, "pairs", None))
        check_same_pairs("masks", self.gate.pairs, "training corpus", getattr(data, "pairs", None))
        if self.in_plain_trainer:
            check_setup(self.gate.model, args, data, collator)
            check_schedule(args, state.max_steps)
            if args.remove_unused_columns and not self.gate.routes_itself:
                raise TrainingSetupError(
                    "remove_unused_columns=True strips the pair of each row before the collator sees it; "
                    "train with remove_unused_columns=False, or tell the gate: gate.use('en-de') or "
                    "gate.read_languages(tokenizer)"
                )
            if getattr(args, "predict_with_generate", False):
                tokenizer = kwargs.get("processing_class")
                tags = getattr(collator, "tags", None) or (LanguageTags(tokenizer) if tokenizer else None)
                check_one_target_language(tags, self.gate.pairs, args.eval_strategy != "no")
            if state.global_step:
                self._check_resumed(args, state)
        elif state.global_step:  # the masks were compared with those in its folder
            self._check_silence(state)
        self.remember(state)
        self.loss.label_smoothing = args.label_smoothing_factor
        self.loss.begin()
        self._checked_loss = False
        self.attach(kwargs.get("model"))

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse an evaluation with all neurons; what is added to a Trainer later hears of it only here."""
        if self._met_model:
            return
        self._check_model(kwargs.get("model"))
        if not self.gate.attached:
            raise TrainingSetupError(
                "this evaluation runs with all neurons, since the callback was added to a Trainer that was "
                "made before and has not trained since; give the Trainer callbacks=[callback], or call "
                "callback.gate.attach() first"
            )

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
        if self.loss.calls or not self.in_plain_trainer:
            return
        factor = args.gradient_accumulation_steps * args.world_size
        if factor > 1:
            raise TrainingSetupError(
                "the Trainer's own loss is not exact under gradient accumulation and several processes: for "
                f"M2M-100, mBART, Marian and T5, loss and gradients are {factor} times too large here. Pass "
                "compute_loss_func=callback.loss, or call callback.loss in a loss function of your own"
            )
        warn("the loss of single pairs is not logged; pass compute_loss_func=callback.loss")

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
        if self.in_plain_trainer and logs is not None and "loss" in logs:
            extra = self.measures()
            logs.update(extra)
            state.log_history[-1].update(extra)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the masks into the checkpoint; weights that are not finite end the training."""
        check_finite(self.gate.model)
        if self.in_plain_trainer and state.is_world_process_zero:
            self.gate.save_beside(checkpoint_folder(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the weights are finite."""
        check_finite(self.gate.model)

    def attach(self, model: nn.Module | None) -> None:
        """Put the gate on the model that is trained, which must be the gate's.

        Raises:
            TrainingSetupError: If it is another object.
        """
        self._check_model(model)
        self._met_model = True
        self.gate.attach()

    def _check_model(self, model: nn.Module | None) -> None:
        """Refuse a model that is not the gate's."""
        if model is not None and all(module is not self.gate.model for module in model.modules()):
            raise TrainingSetupError(
                "the gate is for another model object than the Trainer trains, so that would train with all "
                "neurons; make both from the same object (and without model_init, which makes a new one)"
            )

    def remember(self, state: TrainerState) -> None:
        """Put what the gate is into the state, which the library saves with a checkpoint and reads again."""
        states: Any = state.stateful_callbacks
        states[STATE_NAME] = {"args": {}, "attributes": plain(self.gate.facts())}

    def _check_resumed(self, args: TrainingArguments, state: TrainerState) -> None:
        """Check that the checkpoint was trained with this gate; a callback is not told where it lies."""
        known = _facts_in(state)
        if known is None:  # saved by an older version
            self.gate.check_beside(checkpoint_folder(args, state))
        elif known != plain(self.gate.facts()):
            raise TrainingSetupError(
                f"the checkpoint that training goes on from was trained with other masks or gate ({known}) "
                f"than this one ({plain(self.gate.facts())}); load its masks, NeuronMasks.from_pretrained("
                f"'checkpoint-{state.global_step}/{MASKS_FOLDER}')"
            )

    def _check_silence(self, state: TrainerState) -> None:
        """Check that masks act as they did when the checkpoint was saved; what computes that may change."""
        known, own = (
            {name: facts.get("gate", {}).get(name) for name in ("mode", "silence")}
            for facts in (_facts_in(state) or {}, plain(self.gate.facts()))
        )
        computed = ("mask", "slice")
        same = known["mode"] == own["mode"] or (known["mode"] in computed and own["mode"] in computed)
        if None not in known.values() and not (same and known["silence"] == own["silence"]):
            raise TrainingSetupError(
                f"the checkpoint that training goes on from was trained with masks that act as {known}, and "
                f"these act as {own}; make the gate with GateConfig(mode={known['mode']!r}, "
                f"silence={known['silence']!r})"
            )

    def measures(self) -> dict[str, float]:
        """Return what a training log gets, and begin the pairs' means anew; all processes must call it."""
        return self.gate.measures() | self.loss.take()


def _facts_in(state: TrainerState) -> Any:
    """Return what `remember` put into the state of a checkpoint; None where there is nothing."""
    states: Any = state.stateful_callbacks
    return states.get(STATE_NAME, {}).get("attributes")


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of the current step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
