"""Training with the Hugging Face Trainer: a callback for the script you have, and a trainer that does the
rest.

Four lines make a plain `Seq2SeqTrainer` train each pair with its own neurons:

    masks = NeuronMasks.from_coverage(record(model, batches, pairs))
    specialization = SpecializationCallback(NeuronGate(model, masks))
    Seq2SeqTrainer(…, data_collator=PairCollator(tokenizer, pairs), callbacks=[specialization],
                   compute_loss_func=specialization.loss)            # and remove_unused_columns=False

The traps, each checked before the first update: the pair column that the Trainer strips; the loss that it
inflates; a collator that numbers the pairs differently from the masks; layers that drop out under several
processes; other masks than the checkpoint was trained with.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Seq2SeqTrainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from nspec_hf.batches import BatchConfig, PairBatchSampler
from nspec_hf.collator import PairCollator
from nspec_hf.encoded import EncodedCorpus
from nspec_hf.errors import ArtefactError, TrainingSetupError
from nspec_hf.gate import NeuronGate
from nspec_hf.loss import PairTally, TokenLoss, token_losses
from nspec_hf.masks import NeuronMasks

MASKS_FOLDER = "nspec_masks"
"""Where a checkpoint keeps its masks."""


class SpecializationCallback(TrainerCallback):
    """Puts the gate on the model when training begins, checks the set-up, logs, and saves the masks.

    It logs `density` and, with `compute_loss_func=callback.loss`, the training loss of every pair
    (`loss_en-de`). The gate stays on the model after training, so that evaluation uses it; `gate.detach()`
    takes it off.

    Args:
        gate: The gate of the model that is trained.

    Raises:
        TrainingSetupError: When training begins (or before the first update), if the arguments would
            silently train another model than asked for.
    """

    def __init__(self, gate: NeuronGate) -> None:
        self.gate = gate
        self.loss = TokenLoss(tally=PairTally(gate.masks.pairs), pair_ids=lambda: gate.last_rows)
        self._checked_loss = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the arguments and attach the gate."""
        self.loss.label_smoothing = args.label_smoothing_factor
        self._check_columns(args)
        self._check_collator(kwargs.get("train_dataloader"))
        self._check_layerdrop(args)
        self._check_resumed_masks(args, state)
        self._checked_loss = False
        self.loss.calls = 0
        self.gate.attach()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check, before the first update, that the loss is the exact one."""
        if self._checked_loss:
            return
        self._checked_loss = True
        factor = args.gradient_accumulation_steps * args.world_size
        if self.loss.calls == 0 and factor > 1:
            raise TrainingSetupError(
                f"the Trainer's own loss is not exact under gradient accumulation and several processes (for M2M-100, "
                f"mBART, Marian and T5 it is {factor} times too large here); pass compute_loss_func=callback.loss"
            )
        if self.loss.calls == 0:
            warnings.warn(
                "no loss of single pairs is logged; pass compute_loss_func=callback.loss", stacklevel=2
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add density and the pairs' losses to a training log."""
        if logs is None or "loss" not in logs:
            return
        _, losses = self.loss.tally.take()
        extra = {"density": round(float(self.gate.masks.density()), 4)}
        extra |= {f"loss_{pair}": round(loss, 4) for pair, loss in losses.items()}
        logs.update(extra)
        state.log_history[-1].update(extra)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the masks into the checkpoint."""
        if state.is_world_process_zero:
            self.gate.masks.save_pretrained(_checkpoint(args, state) / MASKS_FOLDER)

    def _check_columns(self, args: TrainingArguments) -> None:
        if args.remove_unused_columns and not self.gate.routes_itself:
            raise TrainingSetupError(
                "remove_unused_columns=True strips the pair of each row before the collator sees it; train with "
                "remove_unused_columns=False, or tell the gate: gate.use('en-de') or gate.read_languages(tokenizer)"
            )

    def _check_collator(self, loader: DataLoader | None) -> None:
        collator = getattr(loader, "collate_fn", None)
        pairs = getattr(getattr(collator, "data_collator", collator), "pairs", None)
        expected = self.gate.masks.pairs
        if pairs is not None and list(pairs) != list(expected):
            raise TrainingSetupError(
                f"the collator numbers its pairs {', '.join(pairs)}, but the masks number theirs {', '.join(expected)}; "
                "pair_ids would choose the wrong masks. Build it with PairCollator(tokenizer, masks.pairs)"
            )

    def _check_layerdrop(self, args: TrainingArguments) -> None:
        config = self.gate.model.config
        dropped = [name for name in ("encoder_layerdrop", "decoder_layerdrop") if getattr(config, name, 0)]
        if not dropped:
            return
        message = f"model.config.{' and '.join(dropped)} drop whole layers in training; set them to 0"
        if args.world_size > 1:
            raise TrainingSetupError(f"{message}, since processes would drop different ones")
        warnings.warn(message, stacklevel=2)

    def _check_resumed_masks(self, args: TrainingArguments, state: TrainerState) -> None:
        folder = _checkpoint(args, state) / MASKS_FOLDER
        if not state.global_step or not folder.is_dir():
            return
        try:
            saved = NeuronMasks.from_pretrained(folder)
        except ArtefactError as error:
            raise TrainingSetupError(f"the checkpoint's masks cannot be read: {error}") from error
        if saved.fingerprint() != self.gate.masks.fingerprint():
            raise TrainingSetupError(
                f"the checkpoint was trained with other masks ({saved.fingerprint()}) than the gate has "
                f"({self.gate.masks.fingerprint()}); load those with NeuronMasks.from_pretrained({str(folder)!r})"
            )


class SpecializationTrainer(Seq2SeqTrainer):
    """A `Seq2SeqTrainer` for many pairs: exact loss, batches by pairs, and every row's own target language.

    It takes everything that `Seq2SeqTrainer` takes, and trains with all neurons where `gate` is None.

    Args:
        gate: The gate of the model; its callback is added.
        batch_config: Token budget, mixing and temperature of the batches of an `EncodedCorpus`.
    """

    def __init__(
        self,
        *args: Any,
        gate: NeuronGate | None = None,
        batch_config: BatchConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.gate, self.batch_config = gate, batch_config or BatchConfig()
        self._pair_ids: Tensor | None = None
        self._tally: PairTally | None = None
        super().__init__(*args, **kwargs)
        if gate is not None:
            callback = SpecializationCallback(gate)
            self.add_callback(callback)
            self.compute_loss_func = self.compute_loss_func or callback.loss
        elif self.compute_loss_func is None:
            pairs = getattr(self.train_dataset, "pairs", None)
            self._tally = PairTally(pairs) if pairs else None
            self.compute_loss_func = TokenLoss(
                self.args.label_smoothing_factor, self._tally, lambda: self._pair_ids
            )

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's share of the plan; for another kind of dataset, what the plain Trainer
        returns."""
        if not isinstance(self.train_dataset, EncodedCorpus):
            return super().get_train_dataloader()
        return self._pair_loader(self.train_dataset, shuffle=True)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss; without a gate the model must not see `pair_ids`."""
        return super().compute_loss(model, self._for_model(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the loss of every pair."""
        if self._tally is not None and "loss" in logs:
            logs |= {f"loss_{pair}": round(loss, 4) for pair, loss in self._tally.take()[1].items()}
        super().log(logs, *args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Return the mean loss a target token (no smoothing), overall and of each pair: `eval_loss_en-de`.

        With `predict_with_generate` and `compute_metrics`, the metrics of each pair too
        (`eval_bleu_en-de`), and their mean over pairs (`eval_bleu`). For another kind of dataset, what the
        plain Trainer returns.
        """
        corpus = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(corpus, EncodedCorpus):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        metrics = self._evaluate_loss(corpus, metric_key_prefix)
        if self.args.predict_with_generate and self.compute_metrics is not None:
            metrics |= self._evaluate_generation(corpus, ignore_keys, metric_key_prefix, gen_kwargs)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Predict, each row in its pair's target language."""
        collator = self.data_collator
        if (
            self.args.predict_with_generate
            and not prediction_loss_only
            and isinstance(collator, PairCollator)
        ):
            if not gen_kwargs:
                gen_kwargs = dict(getattr(self, "_gen_kwargs", {}))
            start = collator.decoder_start_token_id
            prompts = [
                collator.tags.decoder_prefix(collator.pairs[i], start) for i in inputs["pair_ids"].tolist()
            ]
            gen_kwargs["decoder_input_ids"] = torch.tensor(prompts, device=self.args.device)
            gen_kwargs["decoder_start_token_id"] = prompts[0][0]
            gen_kwargs["forced_bos_token_id"] = None
        return super().prediction_step(
            model, self._for_model(inputs), prediction_loss_only, ignore_keys=ignore_keys, **gen_kwargs
        )

    def _for_model(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take `pair_ids` out where no gate is on the model to take it."""
        if self.gate is not None and self.gate.attached:
            return inputs
        inputs = dict(inputs)
        self._pair_ids = inputs.pop("pair_ids", None)
        return inputs

    def _pair_loader(self, corpus: EncodedCorpus, shuffle: bool) -> DataLoader:
        sampler = PairBatchSampler(
            corpus.lengths,
            corpus.pair_ids,
            self.batch_config,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            shuffle=shuffle,
        )
        return DataLoader(
            corpus,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def _evaluate_loss(self, corpus: EncodedCorpus, prefix: str) -> dict[str, float]:
        tally, model = PairTally(corpus.pairs), self.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
                for batch in self._pair_loader(corpus, shuffle=False):
                    inputs = self._prepare_inputs(batch)
                    pair_ids, labels = inputs["pair_ids"], inputs.pop("labels")
                    logits = model(**self._for_model(inputs)).logits
                    tally.add(token_losses(logits, labels), labels, pair_ids)
        finally:
            model.train(was_training)
        overall, each = tally.take()
        return {f"{prefix}_loss": overall, **{f"{prefix}_loss_{pair}": loss for pair, loss in each.items()}}

    def _evaluate_generation(
        self, corpus: EncodedCorpus, ignore_keys: list[str] | None, prefix: str, gen_kwargs: dict[str, Any]
    ) -> dict[str, float]:
        """Generate pair by pair, as `compute_metrics` cannot tell rows apart."""
        self._gen_kwargs = gen_kwargs
        each: dict[str, float] = {}
        sums: dict[str, list[float]] = {}
        for pair in corpus.pairs:
            loader = self._pair_loader(corpus.subset(pair), shuffle=False)
            output = self.evaluation_loop(loader, "evaluate", False, ignore_keys, prefix)
            for name, value in output.metrics.items():
                if name.startswith(f"{prefix}_") and not name.endswith(("_loss", "_time", "_per_second")):
                    each[f"{name}_{pair}"] = value
                    sums.setdefault(name, []).append(value)
        return {**{name: sum(values) / len(values) for name, values in sums.items()}, **each}


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
