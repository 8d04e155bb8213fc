"""SpecializationTrainer: a `Seq2SeqTrainer` for many pairs, with or without masks.

Shape letters: B = samples, T = target tokens, L = generated tokens.

It does what the callback alone cannot: batches by token budget, every row's own target language in
`predict_with_generate`, and evaluation by pairs. `callback.py` is for a plain `Seq2SeqTrainer`.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import EvalPrediction, Seq2SeqTrainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import speed_metrics

from nspec_hf.core import TrainingSetupError
from nspec_hf.data import IGNORED, BatchConfig, EncodedCorpus, PairBatchSampler, PairCollator
from nspec_hf.gating import Attachment, attachment_of
from nspec_hf.recording import eval_mode, plain_model
from nspec_hf.training.callback import SpecializationCallback, check_decoder_start, check_same_pairs
from nspec_hf.training.loss import PairTally, TokenLoss, token_losses

__all__ = ["SpecializationCallback", "SpecializationTrainer"]

_PAIR_COLUMNS = ("pair", "pair_id", "pair_ids", "source", "target", "translation")
_Generated = tuple[int, int, list[int], list[int]]  # sentence number, pair id, output ids, label ids


class SpecializationTrainer(Seq2SeqTrainer):
    """A `Seq2SeqTrainer` for many pairs: exact loss, batches by pairs, and every row's own target language.

    It takes everything that `Seq2SeqTrainer` takes. An `EncodedCorpus` is cut into batches by token budget
    and evaluated pair by pair; other data sets are batched and evaluated as the plain Trainer does it.
    Columns that a `PairCollator` reads are kept, whatever `remove_unused_columns` says.

    Args:
        gate: The gate of the model, whose callback is added. None: the gate of a `SpecializationCallback`
            among the callbacks, or the one that is on the model; where there is none either, all neurons
            train.
        batch_config: Token budget, mixing and temperature of the batches of an `EncodedCorpus`.

    Raises:
        TrainingSetupError: If `gate` and the callbacks bring two different gates; and, when training begins,
            what `SpecializationCallback` raises.
    """

    def __init__(
        self,
        *args: Any,
        gate: Attachment | None = None,
        batch_config: BatchConfig | None = None,
        **kwargs: Any,
    ) -> None:
        self.batch_config = batch_config or BatchConfig()
        self._pair_ids: Tensor | None = None
        super().__init__(*args, **kwargs)
        self.specialization = self._specialize(gate)
        self.gate = self.specialization.gate if self.specialization else None
        self._own_loss: TokenLoss | None = None
        if self.compute_loss_func is None:
            self._own_loss = self.compute_loss_func = self._token_loss()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the plain Trainer does; a checkpoint of other masks is refused wherever it lies."""
        if self.specialization is not None and isinstance(resume_from_checkpoint, str | PathLike):
            self.specialization.gate.shape_as(Path(resume_from_checkpoint))
            self.specialization.gate.check_beside(Path(resume_from_checkpoint))
        check_decoder_start(plain_model(self.model), self.data_collator)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return this process's share of the plan; for another data set, what the plain Trainer returns."""
        if not isinstance(self.train_dataset, EncodedCorpus):
            return super().get_train_dataloader()
        size = type(self.args).__dataclass_fields__["per_device_train_batch_size"].default
        if self.args.per_device_train_batch_size != size:
            warnings.warn(
                "per_device_train_batch_size is not used: an EncodedCorpus is batched by tokens, "
                f"BatchConfig(max_tokens={self.batch_config.max_tokens})",
                stacklevel=2,
            )
        return self._pair_loader(self.train_dataset, shuffle=True)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return the loss; without a gate the model must not see `pair_ids`."""
        return super().compute_loss(model, self._for_model(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the loss of every pair, and with the density where there is a gate."""
        if "loss" in logs and self.specialization is not None:
            logs.update(self.specialization.measures())
        elif "loss" in logs and self._own_loss is not None and self._own_loss.tally is not None:
            _, losses = self._own_loss.tally.take()
            logs.update({f"loss_{pair}": round(loss, 4) for pair, loss in losses.items()})
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

        With `predict_with_generate` and `compute_metrics`, the metrics of each pair too (`eval_bleu_en-de`),
        and their mean over pairs (`eval_bleu`). For a data set that is no `EncodedCorpus`, what the plain
        Trainer returns. A dict of data sets is gone through, each with the same generation settings.

        Raises:
            TrainingSetupError: If the corpus numbers its pairs differently from the collator or the masks.
        """
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        chosen = self.eval_dataset[chosen] if isinstance(chosen, str) else chosen
        if isinstance(chosen, Mapping):
            metrics: dict[str, float] = {}
            for name, each in chosen.items():
                metrics |= self.evaluate(each, ignore_keys, f"{metric_key_prefix}_{name}", **gen_kwargs)
            return metrics
        with self._gated():
            if not isinstance(chosen, EncodedCorpus):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
            return self._evaluate_corpus(chosen, ignore_keys, metric_key_prefix, gen_kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as the plain Trainer does, each row with its own neurons and in its own target language."""
        with self._gated():
            return super().predict(*args, **kwargs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
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
            # Else generate puts its own start token before a prompt that begins with a language (mBART-25).
            gen_kwargs["decoder_start_token_id"] = prompts[0][0]
            gen_kwargs["forced_bos_token_id"] = None
        return super().prediction_step(
            model, self._for_model(inputs), prediction_loss_only, ignore_keys=ignore_keys, **gen_kwargs
        )

    def _specialize(self, gate: Attachment | None) -> SpecializationCallback | None:
        """Return the callback that holds the gate: the user's, or one that is added here."""
        given = [each for each in self.callback_handler.callbacks if isinstance(each, SpecializationCallback)]
        gate = gate or (given[0].gate if given else attachment_of(self.model))
        if any(each.gate is not gate for each in given):
            raise TrainingSetupError("gate= and the SpecializationCallback hold different gates; give one")
        if gate is None:
            return None
        callback = given[0] if given else SpecializationCallback(gate)
        callback.in_plain_trainer = False
        if not given:
            self.add_callback(callback)
        return callback

    def _token_loss(self) -> TokenLoss:
        if self.specialization is not None:
            return self.specialization.loss
        pairs = getattr(self.train_dataset, "pairs", None) or getattr(self.data_collator, "pairs", None)
        tally = PairTally(pairs) if pairs else None
        return TokenLoss(self.args.label_smoothing_factor, tally, lambda: self._pair_ids)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [name for name in _PAIR_COLUMNS if name not in self._signature_columns]

    def _load_best_model(self) -> None:
        if self.gate is not None:
            self.gate.shape_as(Path(self.state.best_model_checkpoint))
        super()._load_best_model()

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        # Saving looks up every callback's place, which a checkpoint made without that callback has not.
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, {})

    def _gated(self) -> AbstractContextManager:
        """Return a context in which the gate is on the model, so that nothing is evaluated silently dense."""
        return self.gate or nullcontext()

    def _for_model(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take `pair_ids` out where no gate is on the model to take it."""
        if self.gate is not None:
            return inputs
        inputs = dict(inputs)
        self._pair_ids = inputs.pop("pair_ids", None)
        return inputs

    def _pair_loader(self, corpus: EncodedCorpus, shuffle: bool) -> DataLoader:
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
        return DataLoader(
            corpus,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            # A generator of its own, so that an evaluation draws nothing from training's random numbers.
            generator=torch.Generator(),
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor if args.dataloader_num_workers else None,
            persistent_workers=args.dataloader_persistent_workers and args.dataloader_num_workers > 0,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        )

    def _evaluate_corpus(
        self, corpus: EncodedCorpus, ignore_keys: list[str] | None, prefix: str, gen_kwargs: dict[str, Any]
    ) -> dict[str, float]:
        started = time.time()
        with eval_mode(self.model):
            metrics = self._evaluate_loss(corpus, prefix)
            if self.args.predict_with_generate and self.compute_metrics is not None:
                metrics |= self._evaluate_generation(corpus, ignore_keys, prefix, gen_kwargs)
        metrics |= speed_metrics(prefix, started, num_samples=len(corpus))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_loss(self, corpus: EncodedCorpus, prefix: str) -> dict[str, float]:
        tally, text = PairTally(corpus.pairs), PairTally(corpus.pairs)
        tags_P = self._target_tags(corpus)
        with torch.no_grad(), self.compute_loss_context_manager(), self.accelerator.autocast():
            for _, batch in self._watched(corpus):
                pair_ids, labels_BT = batch["pair_ids"], batch.pop("labels")
                logits_BTV = self.model(**self._for_model(batch)).logits
                losses_BT = token_losses(logits_BTV, labels_BT)
                tally.add(losses_BT, labels_BT, pair_ids)
                is_tag_BT = labels_BT == tags_P.to(labels_BT.device)[pair_ids][:, None]
                text.add(
                    losses_BT.masked_fill(is_tag_BT, 0), labels_BT.masked_fill(is_tag_BT, IGNORED), pair_ids
                )
        overall, each = tally.take()
        losses = {f"{prefix}_loss_{pair}": loss for pair, loss in each.items()}
        return {f"{prefix}_loss": overall, f"{prefix}_text_loss": text.take()[0], **losses}

    def _target_tags(self, corpus: EncodedCorpus) -> Tensor:
        """Return the id of each pair's tag among the labels, [P]; padding's, where labels have none."""
        tags = getattr(self.data_collator, "tags", None)
        found = [None if tags is None else tags.target_tag_id(pair) for pair in corpus.pairs]
        return torch.tensor([IGNORED if each is None else each for each in found])

    def _evaluate_generation(
        self, corpus: EncodedCorpus, ignore_keys: list[str] | None, prefix: str, gen_kwargs: dict[str, Any]
    ) -> dict[str, float]:
        """Generate for all pairs at once, then score pair by pair, as `compute_metrics` cannot."""
        settings = {
            "max_length": self.args.generation_max_length,
            "num_beams": self.args.generation_num_beams,
        }
        if "max_new_tokens" in gen_kwargs:
            del settings["max_length"]
        settings = {name: value for name, value in settings.items() if value is not None} | gen_kwargs
        rows: list[_Generated] = []
        for numbers, batch in self._watched(corpus):
            ids = batch["pair_ids"].tolist()
            labels = batch.pop("labels").tolist()
            # Teacher forcing's inputs; generation begins with the pair's prompt.
            del batch["decoder_input_ids"]
            _, outputs_BL, _ = self.prediction_step(self.model, batch, False, ignore_keys, **settings)
            rows += zip(numbers, ids, outputs_BL.tolist(), labels, strict=True)
        rows = sorted(gather_object(rows))
        each: dict[str, float] = {}
        by_name: dict[str, list[float]] = {}
        for index, pair in enumerate(corpus.pairs):
            for name, value in self._score([row for row in rows if row[1] == index], prefix).items():
                each[f"{name}_{pair}"] = value
                by_name.setdefault(name, []).append(value)
        return {**{name: sum(values) / len(values) for name, values in by_name.items()}, **each}

    def _score(self, rows: list[_Generated], prefix: str) -> dict[str, float]:
        if not rows:
            return {}
        outputs = _padded([row[2] for row in rows], self.data_collator.tokenizer.pad_token_id)
        labels = _padded([row[3] for row in rows], IGNORED)
        found = self.compute_metrics(EvalPrediction(predictions=outputs, label_ids=labels))
        return {f"{prefix}_{name.removeprefix(f'{prefix}_')}": float(value) for name, value in found.items()}

    def _watched(self, corpus: EncodedCorpus) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Yield sentence numbers and batch of each step of an evaluation, and show the Trainer's bar."""
        loader = self._pair_loader(corpus, shuffle=False)
        self.callback_handler.eval_dataloader = loader
        for numbers, batch in zip(loader.batch_sampler, loader, strict=True):
            yield numbers, self._prepare_inputs(batch)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)


def _padded(rows: list[list[int]], filler: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded
