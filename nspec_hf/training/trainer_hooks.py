"""All that this package uses of the Trainer without a promise of the library, in one class.

Everything else goes through documented methods and arguments. `tests/training/test_trainer_hooks.py` fails
when a release of the library calls one of these otherwise.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_callback import ExportableState

from nspec_hf.recording import plain_model
from nspec_hf.training.checkpoints import STATE_NAME, best_checkpoint
from nspec_hf.training.loss import TokenLoss
from nspec_hf.training.setup_checks import check_finite, check_schedule


def keep_ties(accelerator: Accelerator) -> None:
    """Let FSDP2 shard a model whose modules share their embeddings, as encoder and decoder of M2M-100 do.

    accelerate makes a group of the input and the output embeddings alone; the others that share the weight
    are left to another group, which PyTorch refuses in the first forward pass. Unless accelerate sees those
    two, all of them are one group: that of the model itself.
    """
    prepare = accelerator.prepare

    def prepared(*args: Any, **kwargs: Any) -> Any:
        hidden = [each for each in args if accelerator.is_fsdp2 and _shares_embeddings(each)]
        for model in hidden:
            model.get_input_embeddings = model.get_output_embeddings = lambda: None
        try:
            return prepare(*args, **kwargs)
        finally:
            for model in hidden:
                del model.get_input_embeddings, model.get_output_embeddings

    vars(accelerator)["prepare"] = prepared


def _shares_embeddings(model: Any) -> bool:
    """Return whether more modules than the input and the output embeddings have their weight."""
    if not hasattr(model, "get_input_embeddings"):  # PEFT's wrapper has it too
        return False
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if weight is None:
        return False
    holders = {module for module in model.modules() if getattr(module, "weight", None) is weight}
    return len(holders - {model.get_input_embeddings(), model.get_output_embeddings()}) > 0


class HookedTrainer(Seq2SeqTrainer):
    """A `Seq2SeqTrainer` that is asked, and told, at places where the library offers no hook.

    Attributes:
        keeps_columns: Columns of a data set that `remove_unused_columns` leaves alone.
        before_weights: Called with a checkpoint's folder before the best checkpoint's weights are loaded.
        into_checkpoint: Each is called with a checkpoint's folder on the main process, before the Trainer
            writes the `trainer_state.json` there that makes the checkpoint whole.
        resumed_from: The checkpoint that training goes on from.
    """

    args: Seq2SeqTrainingArguments
    keeps_columns: tuple[str, ...] = ()
    before_weights: Callable[[Path], None] = staticmethod(lambda folder: None)
    into_checkpoint: list[Callable[[Path], None]]
    resumed_from: Path | None = None

    @property
    def trained(self) -> nn.Module:
        """What is run: the model, or FSDP's wrapper of it."""
        if self.model is None:
            raise RuntimeError("the Trainer has no model")
        return self.model

    @property
    def network(self) -> PreTrainedModel:
        """The model itself, out of its wrappers."""
        return plain_model(self.trained)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as the library does, if weights are finite; `_internal_call` says that it is a checkpoint's.

        Raises:
            NotFiniteError: If they are not.
        """
        check_finite(self.trained)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        kind = None if plugin is None else plugin.state_dict_type
        if plugin is not None and not _internal_call:
            # A checkpoint's weights may be a part a process; a model's folder would get none at all.
            plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            if plugin is not None and not _internal_call:
                plugin.set_state_dict_type(kind)
        if _internal_call and self.args.should_save:
            for write in self.into_checkpoint:
                write(Path(str(output_dir)))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss; that of a script's own class which does not ask for ours, as without us.

        The trap: of a model that takes no `num_items_in_batch` the library divides a loss by the steps of
        gradient accumulation, unless there is a `compute_loss_func`, though nothing may have called it.
        """
        exact = self.compute_loss_func
        plain = not self.model_accepts_loss_kwargs and "num_items_in_batch" in kwargs
        if plain and exact is None:
            kwargs["num_items_in_batch"] = None
        if not (plain and isinstance(exact, TokenLoss)):
            return super().compute_loss(model, inputs, *args, **kwargs)
        asked, kept = exact.calls, dict(inputs)
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if exact.calls > asked or not torch.is_grad_enabled():
            return loss
        self.compute_loss_func = None
        return self.compute_loss(model, kept, *args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, one that shards weights which modules share."""
        super().create_accelerator_and_postprocess()
        keep_ties(self.accelerator)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Make the schedule of the learning rate, and warn where its warm-up takes the whole training."""
        check_schedule(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    @classmethod
    def adopt(cls, trainer: Seq2SeqTrainer, keeps_columns: tuple[str, ...]) -> Self:
        """Make a trainer itself one of this class, above its own where that is a script's; return it."""
        own = type(trainer)
        if not issubclass(own, cls):
            keep_ties(trainer.accelerator)
            trainer.__class__ = cls if issubclass(cls, own) else type(own.__name__, (cls, own), {})
        adopted = cast(Self, trainer)
        adopted.keeps_columns, adopted._signature_columns = keeps_columns, None
        return adopted

    def return_to(self, kind: type[Seq2SeqTrainer]) -> None:
        """Make it one of its own class again, after `adopt`."""
        vars(self).pop("keeps_columns", None)
        vars(self)["_signature_columns"] = None
        cast(Any, self).__class__ = kind

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *self.keeps_columns]))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push as the library does, with what a checkpoint holds beside the weights, which it leaves out."""
        if self.is_world_process_zero():
            for write in self.into_checkpoint:
                write(Path(str(self.args.output_dir)))
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_best_model(self) -> None:
        self.before_weights(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    def _load_callback_state(self) -> None:
        states: Any = self.state.stateful_callbacks
        own = states.pop(STATE_NAME, None)  # no callback's, so the library would warn of it
        for callback in self.callback_handler.callbacks:
            kept = states.get(type(callback).__name__)
            if isinstance(callback, EarlyStoppingCallback) and isinstance(kept, dict):
                # What was counted is the checkpoint's; how long to wait may have been changed since.
                kept["args"] = callback.state()["args"]
        super()._load_callback_state()
        if own is not None:
            states[STATE_NAME] = own
        if self.resumed_from is not None and self.args.load_best_model_at_end:
            best = best_checkpoint(self.resumed_from)
            self.state.best_model_checkpoint = None if best is None else str(best)
        # Saving looks up every callback's place, which a checkpoint made without that callback has not.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, {})

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as the library does, each row once.

        Its `Seq2SeqTrainer` also keeps the rows that fill the last batches of several processes: predictions
        of those come twice, and are scored twice.
        """
        objects = self.args.eval_use_gather_object
        self.gather_function = partial(self.accelerator.gather_for_metrics, use_gather_object=objects)
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the library does, which smooths the loss where it generates; here no evaluation does."""
        smoother = self.label_smoother
        if isinstance(self.compute_loss_func, TokenLoss):
            self.label_smoother = None
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.label_smoother = smoother

    def _metrics_of(
        self, data: Dataset, rows: int, ignore_keys: list[str] | None, prefix: str, generation: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what the library says of data, in its order, so many rows a batch, without logging it."""
        self._gen_kwargs = generation
        sampler: Any = self._get_eval_sampler
        loader = self._get_dataloader(data, "Evaluation", rows, sampler)
        try:
            return self.evaluation_loop(loader, "Evaluation", None, ignore_keys, prefix).metrics or {}
        finally:
            # accelerate would keep every loader, and its data, until training ends.
            self.accelerator._dataloaders.remove(loader)

    def _show_evaluation(self, loader: DataLoader) -> None:
        handler: Any = self.callback_handler
        handler.eval_dataloader = loader
