"""SpecializationTrainer: a `Seq2SeqTrainer` for many pairs, with or without masks.

Shape letters: B = samples, T = target tokens.

It does what the callback alone cannot: batches by token budget, every row's own target language in
`predict_with_generate`, and evaluation by pairs. `callback.py` is for a plain `Seq2SeqTrainer`.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Seq2SeqTrainer
from transformers.trainer_utils import speed_metrics

from nspec_hf.core import Pair, TrainingSetupError, is_spread
from nspec_hf.data import IGNORED, BatchConfig, EncodedCorpus, LanguageTags, PairBatchSampler, PairCollator
from nspec_hf.gating import Attachment, attachment_of, bounds_with_prompt
from nspec_hf.recording import check_decoder_inputs_given, eval_mode, refuse_integers, token_losses
from nspec_hf.training.arguments import check_arguments, minimize_losses
from nspec_hf.training.callback import SpecializationCallback
from nspec_hf.training.checkpoints import last_checkpoint
from nspec_hf.training.loss import PairTally, TokenLoss, predicted, shifts_labels
from nspec_hf.training.setup_checks import (
    check_decoder_inputs,
    check_finite,
    check_forced_start,
    check_places,
    check_same_pairs,
    check_setup,
)
from nspec_hf.training.trainer_hooks import HookedTrainer


class SpecializationTrainer(HookedTrainer):
    """A `Seq2SeqTrainer` for many pairs: exact loss, batches by pairs, and every row's own target language.

    It takes everything that `Seq2SeqTrainer` takes. An `EncodedCorpus` is cut into batches by token budget
    and evaluated pair by pair; other data sets are batched and evaluated as the plain Trainer does it.
    Columns that a `PairCollator` reads are kept, whatever `remove_unused_columns` says. The gate is on the
    model from the making of the Trainer and stays after training; `gate.detach()` takes it off.

    Args:
        gate: The gate of the model, whose callback is added. None: the gate of a `SpecializationCallback`
            among the callbacks, or the one that is on the model; where there is none either, all neurons
            train.
        batch_config: Token budget, mixing and temperature of the batches of an `EncodedCorpus`.

    Raises:
        TrainingSetupError: If `gate` and the callbacks bring two different gates, or an argument of the
            Trainer cannot be followed with an `EncodedCorpus`; and, when training begins, what
            `SpecializationCallback` raises.
    """

    keeps_columns = ("pair", "pair_ids", "source", "target", "translation")
    batch_config = BatchConfig()
    _pair_ids: Tensor | None = None
    _checked_places = False
    _token_loss: TokenLoss | None = None

    def __init__(
        self,
        *args: Any,
        gate: Attachment | None = None,
        batch_config: BatchConfig | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.batch_config = batch_config or BatchConfig()
        self.train_with(gate)

    def train_with(self, gate: Attachment | None) -> None:
        """Put the gate on the model, and take the exact loss where the script has none of its own."""
        self.specialization = self._specialize(gate)
        self.gate = self.specialization.gate if self.specialization else None
        if self.compute_loss_func is self._token_loss:
            self._token_loss = self.compute_loss_func = self._make_loss()
        self.into_checkpoint = []
        vars(self).pop("before_weights", None)
        if self.specialization is not None and self.gate is not None:
            callback, self.before_weights = self.specialization, self.gate.shape_as
            self.into_checkpoint += [self.gate.save_beside, lambda folder: callback.remember(self.state)]
        if isinstance(self.train_dataset, EncodedCorpus):
            check_arguments(self.args, self.batch_config)
        minimize_losses(self.args)

    def release(self, kind: type[Seq2SeqTrainer], collator: Any) -> None:
        """Be what it was before `adopt`: of that class, with that collator, and without a gate."""
        self.remove_callback(SpecializationCallback)
        vars(self)["data_collator"] = collator
        self.train_with(None)
        if self.compute_loss_func is self._token_loss and not issubclass(kind, SpecializationTrainer):
            self._token_loss = self.compute_loss_func = None
        self.return_to(kind)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the plain Trainer does; a checkpoint of other masks is refused wherever it lies.

        Raises:
            NotFiniteError: If a loss or weights are NaN or infinite, when the loss is logged, before anything
                is saved, or at the end.
            TrainingSetupError: What `check_setup` and `SpecializationCallback` raise.
        """
        check_setup(self.network, self.args, self.train_dataset, self.data_collator)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(str(self.args.output_dir)) or True
        is_path = isinstance(resume_from_checkpoint, str | PathLike)
        self.resumed_from = Path(resume_from_checkpoint) if is_path else None
        if self.resumed_from is not None:
            refuse_integers(self.trained, self.resumed_from)
        if self._token_loss is not None:
            self._token_loss.begin()
        if self.gate is not None and self.resumed_from is not None:
            self.gate.shape_as(self.resumed_from)
            self.gate.check_beside(self.resumed_from)
        result = super().train(resume_from_checkpoint, *args, **kwargs)
        check_finite(self.trained)
        return result

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's share of the plan; for another data set, what the plain Trainer returns."""
        if not isinstance(self.train_dataset, EncodedCorpus):
            return super().get_train_dataloader()
        return self._pair_loader(self.train_dataset, shuffle=True)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss; without a gate the model must not see `pair_ids`."""
        if not self._checked_places:
            self._checked_places = True
            check_places(inputs, shifts_labels(self.network))
        if self.compute_loss_func is not None:  # which gets the labels to itself
            check_decoder_inputs_given(self.network, {**inputs, "labels": None})
        return super().compute_loss(model, self._for_model(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the loss of every pair, and with the density where there is a gate."""
        if "loss" in logs and self.specialization is not None:
            logs.update(self.specialization.measures())
        elif "loss" in logs and self._token_loss is not None:
            logs.update(self._token_loss.take())
        super().log(logs, *args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Return the mean loss a target token (no smoothing), overall and of each pair: `eval_loss_en-de`.

        `eval_text_loss` leaves out the language tag that M2M-100, NLLB and mBART have among their labels.
        Decoding is given the tag, a model that all pairs share has to guess it, and a pair's own neurons give
        it away: compare systems by the loss of the text alone.

        With `compute_metrics`, what it says of each pair alone too (`eval_bleu_en-de`), exactly as the plain
        Trainer would score that pair's rows, and over pairs (`eval_bleu`): the mean of numbers, and of other
        values what all pairs agree on. For a data set that is no `EncodedCorpus`, what the plain Trainer
        returns. A dict of data sets is gone through, each with the same generation settings.

        Raises:
            TrainingSetupError: If the corpus numbers its pairs differently from the collator or the masks.
        """
        given = cast(Any, eval_dataset)
        known: Any = self.eval_dataset
        chosen = known if given is None else known[given] if isinstance(given, str) else given
        if isinstance(chosen, Mapping):
            metrics: dict[str, float] = {}
            for name, data in chosen.items():
                # By its name, where it has one, since the library keeps loaders of lasting workers by name.
                part = name if given is None else data
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}", **gen_kwargs)
            return metrics
        with self.gate or nullcontext():  # so that nothing is evaluated silently dense
            if not isinstance(chosen, EncodedCorpus):
                # The library takes names too, which its annotation does not say.
                return super().evaluate(cast(Any, given), ignore_keys, metric_key_prefix, **gen_kwargs)
            return self._evaluate_corpus(chosen, ignore_keys, metric_key_prefix, gen_kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the plain Trainer does, each row with its own neurons and in its own target language."""
        with self.gate or nullcontext():
            return super().predict(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[float | None, Tensor | None, Tensor | None]:
        """Predict, each row in its pair's target language."""
        generates = self.args.predict_with_generate and not prediction_loss_only
        if generates and isinstance(self.data_collator, PairCollator) and "pair_ids" in inputs:
            gen_kwargs = gen_kwargs or dict(getattr(self, "_gen_kwargs", {}))
            collator = self.data_collator
            prompts = [
                collator.tags.decoder_prefix(collator.pairs[i], collator.decoder_start_token_id)
                for i in inputs["pair_ids"].tolist()
            ]
            gen_kwargs["decoder_input_ids"] = torch.tensor(prompts, device=self.args.device)
            check_forced_start(gen_kwargs.get("forced_bos_token_id"), gen_kwargs["decoder_input_ids"])
            gen_kwargs = {name: value for name, value in gen_kwargs.items() if value is not None}
            gen_kwargs |= bounds_with_prompt(self.network, gen_kwargs, len(prompts[0]))
            # Else generate puts its own start token before a prompt that begins with a language (mBART-25).
            gen_kwargs["decoder_start_token_id"] = prompts[0][0]
            # Else a prompt of one token (mBART-25, Marian) would be followed by this one in every language.
            gen_kwargs["forced_bos_token_id"] = None
        if generates and is_spread(self.trained):
            # The library knows of FSDP1 and ZeRO-3 only: one that is done would leave the others waiting.
            gen_kwargs = {"synced_gpus": True, **(gen_kwargs or getattr(self, "_gen_kwargs", {}))}
        return super().prediction_step(
            model, self._for_model(inputs), prediction_loss_only, ignore_keys=ignore_keys, **gen_kwargs
        )

    def _specialize(self, gate: Attachment | None) -> SpecializationCallback | None:
        """Put the gate on the model; return the callback that holds it: the user's, or one that is added."""
        given = [one for one in self.callback_handler.callbacks if isinstance(one, SpecializationCallback)]
        gate = gate or (given[0].gate if given else attachment_of(self.network))
        if any(one.gate is not gate for one in given):
            raise TrainingSetupError("gate= and the SpecializationCallback hold different gates; give one")
        if gate is None:
            return None
        callback = given[0] if given else SpecializationCallback(gate)
        callback.in_plain_trainer = False
        callback.attach(self.network)
        if not given:
            self.add_callback(callback)
        return callback

    def _make_loss(self) -> TokenLoss:
        if self.specialization is not None:
            return self.specialization.loss
        pairs = getattr(self.train_dataset, "pairs", None) or getattr(self.data_collator, "pairs", None)
        tally = PairTally(pairs) if pairs else None
        smoothing = self.args.label_smoothing_factor
        return TokenLoss(smoothing, tally, lambda: self._pair_ids, shifts_labels(self.network))

    def _for_model(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take `pair_ids` out where no gate is on the model to take it."""
        if self.gate is not None:
            return inputs
        inputs = dict(inputs)
        self._pair_ids = inputs.pop("pair_ids", None)
        return inputs

    def _pair_loader(self, corpus: EncodedCorpus, shuffle: bool) -> DataLoader:
        check_decoder_inputs(self.network, self.data_collator)
        check_same_pairs("corpus", corpus.pairs, "collator", getattr(self.data_collator, "pairs", None))
        if self.gate is not None:
            check_same_pairs("masks", self.gate.pairs, "corpus", corpus.pairs)
        args = self.args
        sampler = PairBatchSampler(
            corpus.lengths,
            corpus.pair_ids,
            self.batch_config,
            rank=args.process_index,
            world_size=args.world_size,
            shuffle=shuffle,
        )
        workers = args.dataloader_num_workers
        return DataLoader(
            corpus,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            # A generator of its own, so that an evaluation draws nothing from training's random numbers.
            generator=torch.Generator(),
            num_workers=workers,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            persistent_workers=args.dataloader_persistent_workers and workers > 0,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
            in_order=args.dataloader_in_order,
        )

    def _evaluate_corpus(
        self, corpus: EncodedCorpus, ignore_keys: list[str] | None, prefix: str, gen_kwargs: dict[str, Any]
    ) -> dict[str, float]:
        started = time.time()
        with eval_mode(self.trained):
            metrics = self._evaluate_loss(corpus, prefix)
            if self.compute_metrics is not None and not self.args.prediction_loss_only:
                metrics |= self._evaluate_metrics(corpus, ignore_keys, prefix, gen_kwargs)
        metrics |= speed_metrics(prefix, started, num_samples=len(corpus))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_loss(self, corpus: EncodedCorpus, prefix: str) -> dict[str, float]:
        tally, text = PairTally(corpus.pairs), PairTally(corpus.pairs)
        # The id of each pair's tag among the labels; padding's, where labels have none.
        tags: LanguageTags | None = getattr(self.data_collator, "tags", None)
        ids = [None if tags is None else tags.target_tag_id(pair) for pair in corpus.pairs]
        tags_P = torch.tensor([IGNORED if tag is None else tag for tag in ids])
        loader = self._pair_loader(corpus, shuffle=False)
        self._show_evaluation(loader)
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            for batch in loader:
                batch = self._prepare_inputs(batch)
                pair_ids = batch["pair_ids"]
                labels_BT = predicted(batch.pop("labels"), shifts_labels(self.network))
                logits_BTV = self.trained(**self._for_model(batch)).logits
                losses_BT = token_losses(logits_BTV, labels_BT)
                tally.add(losses_BT, labels_BT, pair_ids)
                is_tag_BT = labels_BT == tags_P.to(labels_BT.device)[pair_ids][:, None]
                text.add(
                    losses_BT.masked_fill(is_tag_BT, 0), labels_BT.masked_fill(is_tag_BT, IGNORED), pair_ids
                )
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        overall, of_pairs = tally.take()
        losses = {f"{prefix}_loss_{pair}": loss for pair, loss in of_pairs.items()}
        return {f"{prefix}_loss": overall, f"{prefix}_text_loss": text.take()[0], **losses}

    def _evaluate_metrics(
        self, corpus: EncodedCorpus, ignore_keys: list[str] | None, prefix: str, gen_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Score pair by pair, each as the library scores a data set."""
        args = self.args
        settings = {"max_length": args.generation_max_length, "num_beams": args.generation_num_beams}
        if gen_kwargs.get("max_new_tokens") is not None:
            del settings["max_length"]
        of_pairs: dict[Pair, dict[str, Any]] = {}
        for pair in corpus.pairs:
            rows = corpus.subset(pair)
            if len(rows):
                batch = max(1, self.batch_config.max_tokens // int(rows.lengths.max()))
                metrics = self._metrics_of(rows, batch, ignore_keys, prefix, settings | gen_kwargs)
                for name in (f"{prefix}_loss", f"{prefix}_model_preparation_time"):
                    metrics.pop(name, None)
                of_pairs[pair] = metrics
        named = {f"{name}_{pair}": value for pair, all_ in of_pairs.items() for name, value in all_.items()}
        return {**_over(list(of_pairs.values())), **named}


def _over(values: list[Any]) -> Any:
    """Return the mean of numbers, of dicts of them key by key; of others what all agree on, else None."""
    if all(isinstance(value, (int, float)) for value in values):
        return sum(values) / len(values)
    if all(isinstance(value, Mapping) for value in values):
        merged = {name: _over([value.get(name) for value in values]) for name in values[0]}
        return {name: value for name, value in merged.items() if value is not None}
    return values[0] if all(value == values[0] for value in values) else None
