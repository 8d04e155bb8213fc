"""Specialization: a script that fine-tunes a translation model trains each pair with its own neurons.

Four lines in a script of the Trainer, or of an accelerate loop, and none to change:

    from nspec_hf import Specialization
    specialize = Specialization(model, tokenizer, pair="en-de")     # or column="pair"
    specialize.join(trainer)                             # or join(accelerator), before its prepare
    specialize.record(trainer.get_eval_dataloader())     # or record(eval_dataloader), after it

The script keeps its collator, arguments, metrics and calls of `generate`. It is the long way in short:
`record`, `NeuronMasks.from_config`, `NeuronGate`, and `SpecializationTrainer`, which the script's trainer
becomes. The trap: training that begins before `record` would train all neurons, so it is refused;
evaluation before it is that of the dense model.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Seq2SeqTrainer

from nspec_hf.core import (
    ConfigError,
    Pair,
    TrainingSetupError,
    pair_index,
    plain,
    rank,
    warn,
    warn_unused,
    write_json,
)
from nspec_hf.data import LanguageTags, as_tags
from nspec_hf.gating import (
    MADE_BY_FILE,
    MASKS_FOLDER,
    GateConfig,
    NeuronGate,
    Takeover,
    bounds_with_prompt,
    freeze_unsaved,
)
from nspec_hf.masks import BY_METHOD, NeuronMasks, SelectConfig
from nspec_hf.recording import (
    RecordConfig,
    RowPairs,
    ScriptCollator,
    decoder_prompt,
    pairs_of,
    plain_model,
    record,
)
from nspec_hf.training.setup_checks import check_forced_start
from nspec_hf.training.trainer import SpecializationTrainer
from nspec_hf.training.trainer_hooks import keep_ties


class ScriptGate(NeuronGate):
    """A gate that takes a checkpoint's masks when training goes on from it."""

    def shape_as(self, folder: Path) -> None:
        """Take the masks beside a checkpoint's weights, with a warning where they differ from the gate's."""
        saved = _masks_beside(folder)
        if saved is not None and saved != self.own_masks:
            warn(
                f"{folder} was trained with other masks ({saved.fingerprint()}) than were recorded now "
                f"({self.own_masks.fingerprint()}); training goes on with the checkpoint's"
            )
            self.replace_masks(saved)


class Specialization:
    """Lets each pair train, and translate, with its own neurons in a script that knows nothing of pairs.

    Masks are saved beside the model, in its folder `nspec_masks`, by `save_pretrained`, in every checkpoint
    of a joined trainer, and by `save_state` of a joined accelerator; what goes on from one goes on with its
    masks, and `nspec_hf.load` reads the folder. `generate` begins every row in its pair's target language.

    Args:
        model: The model that the script trains; PEFT's wrapper of it, if it has one.
        tokenizer: The model's tokenizer, or its `LanguageTags`.
        pair: The direction of all rows, as the tokenizer spells its languages: "en-de", "eng_Latn-deu_Latn".
        column: In its place, for several pairs: the column of the data sets that names each row's.
        pairs: With `column`: all pairs, where they cannot be read from the data sets that are recorded and
            trained on (data that is streamed).
        codes: Languages of the pairs → codes of the tokenizer, where they differ.
        recording: What is counted.
        select: Which neurons a pair keeps.
        gate: How masks act.

    Raises:
        ConfigError: If there is neither `pair` nor `column`, or both, or what goes with the other.
        UnknownLanguageError: If the tokenizer has no tag for a target language, and its family uses them.

    Attributes:
        gate: The gate, once `record` was called.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | LanguageTags,
        *,
        pair: str | None = None,
        column: str | None = None,
        pairs: Iterable[str] = (),
        codes: Mapping[str, str] | None = None,
        recording: RecordConfig = RecordConfig(),
        select: SelectConfig = SelectConfig(),
        gate: GateConfig = GateConfig(),
    ) -> None:
        if (pair is None) == (column is None):
            raise ConfigError(
                "say pair='en-de', or column='pair' where a column of the data names each row's"
            )
        if pair is not None and tuple(pairs):
            raise ConfigError("pairs go with column=; with pair= all rows are of that one")
        if codes and isinstance(tokenizer, LanguageTags):
            raise ConfigError("LanguageTags have codes of their own; give codes with a plain tokenizer")
        warn_unused(select, BY_METHOD, "select.")
        self._network = plain_model(model)
        freeze_unsaved(self._network)
        tags = as_tags(tokenizer, codes)
        prompt_of = partial(decoder_prompt, self._network, tags)
        self.rows = RowPairs(tags, prompt_of, column, pairs if pair is None else [pair])
        self.recording, self.select, self.gate_config = recording, select, gate
        self.gate: NeuronGate | None = None
        self._trainers: list[SpecializationTrainer] = []
        self._undone = ExitStack()
        self._checkpoint: Path | None = None
        self._dense = self._network.register_forward_pre_hook(self._stay_dense, with_kwargs=True)
        self._generate = Takeover(self._network, self._generate_pairs, "generate")
        # What is set on a compiled model lands on the one inside.
        self._save = Takeover(getattr(model, "_orig_mod", model), self._save_both, "save_pretrained")

    @property
    def pairs(self) -> list[Pair]:
        """What `pair_ids` index; with `column`, those of the data, in the order of the alphabet."""
        return self.rows.pairs

    def join(self, host: Seq2SeqTrainer | Accelerator) -> None:
        """Let a script's trainer, or its accelerator, carry pairs and keep masks.

        A trainer becomes a `SpecializationTrainer`: its own class stays below. Of an accelerator, the loaders
        that it prepares from now on carry pairs, and `save_state` and `load_state` keep masks.

        Raises:
            ConfigError: If it is something else.
            TrainingSetupError: If the trainer trains another model.
        """
        if isinstance(host, Accelerator):
            keep_ties(host)

            def with_pairs(loader: DataLoader, *args: Any, **kwargs: Any) -> Any:
                own = loader.collate_fn
                loader.collate_fn = self.collator(own)
                prepared = taken.original(loader, *args, **kwargs)
                for each in (loader, prepared):
                    self._undone.callback(setattr, each, "collate_fn", own)
                return prepared

            taken = Takeover(host, with_pairs, "prepare_data_loader")
            save = host.register_save_state_pre_hook(lambda models, weights, folder: self._keep(folder))
            load = host.register_load_state_pre_hook(lambda models, folder: self._go_on_from(folder))
            for undo in (taken.give_back, save.remove, load.remove):
                self._undone.callback(undo)
        elif isinstance(host, Seq2SeqTrainer):
            if host.model is None or plain_model(host.model) is not self._network:
                raise TrainingSetupError(
                    "the trainer trains another model object than Specialization was given; give both one"
                )
            columns = () if self.rows.column is None else (self.rows.column,)
            kind, own = type(host), host.data_collator
            carries = self.collator(own, decoder_inputs=True)
            trainer = SpecializationTrainer.adopt(host, columns)
            # By its name: the library's annotation wants arguments that it never gives.
            vars(trainer)["data_collator"] = carries
            trainer.train_with(self.gate)
            self._undone.callback(trainer.release, kind, own)
            self._trainers.append(trainer)
        else:
            raise ConfigError(f"join takes a Seq2SeqTrainer or an Accelerator, got {type(host).__name__}")

    def collator(self, collator: Callable[..., Any], decoder_inputs: bool = False) -> ScriptCollator:
        """Return a collator whose batches carry pairs, for a loop of one's own; see `ScriptCollator`.

        Raises:
            ConfigError: If it carries another Specialization's.
        """
        if isinstance(collator, ScriptCollator):
            if collator.rows is not self.rows:
                raise ConfigError("this has the pairs of another Specialization; detach() that one first")
            return collator
        return ScriptCollator(collator, self.rows, decoder_inputs)

    def record(self, batches: Iterable[Mapping[str, Any]]) -> NeuronMasks:
        """Count who fires for whom, choose each pair's neurons, and put the gate on the model.

        Args:
            batches: A loader of the script, of validation text rather than of all training text: about a
                thousand sentences a pair are enough. With several processes all call this.

        Returns:
            The masks; those of the checkpoint instead, where an accelerator has loaded one before.

        Raises:
            ConfigError: If it was called before, or a trainer's loader is of data sets by names.
            EmptyPairError: If the batches hold no sentence of a pair.
        """
        if self.gate is not None:
            raise ConfigError("this Specialization has recorded already; detach() it and make another")
        data = [each for trainer in self._trainers for each in _datasets(trainer)]
        recorded = getattr(batches, "dataset", None)
        if isinstance(recorded, Mapping):
            raise ConfigError(
                f"the loader is of data sets by names ({', '.join(map(str, recorded))}); record on all: "
                "trainer.get_eval_dataloader(torch.utils.data.ConcatDataset(list(eval_dataset.values())))"
            )
        self.rows.learn(*data, *([] if recorded is None else [recorded]))
        masks = None if self._checkpoint is None else _masks_beside(self._checkpoint)
        if masks is None:
            # Iterating over a loader draws random numbers, which would be missing in training.
            with torch.random.fork_rng(devices=[]):
                loader = _Paired(batches, self.rows)
                stats = record(self._network, loader, self.pairs, self.recording)
            masks = NeuronMasks.from_config(stats, self.select)
        self._put_on(masks)
        return masks

    def detach(self) -> None:
        """Give the model back as it was, with the weights that it has now; trainer and accelerator too."""
        self._dense.remove()
        for taken in (self._save, self._generate):
            taken.give_back()
        if self.gate is not None:
            self.gate.detach()
        self._trainers = []
        self._undone.close()

    def _put_on(self, masks: NeuronMasks) -> None:
        self._dense.remove()
        self._generate.give_back()
        self.gate = ScriptGate(self._network, masks, self.gate_config).attach()
        # Ours goes around the gate's, which takes pair_ids.
        self._generate = Takeover(self._network, self._generate_pairs, "generate")
        if self.rows.column is None:
            self.gate.use(self.pairs[0])
        while self._trainers:
            self._trainers.pop().train_with(self.gate)

    def _stay_dense(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Refuse to train before masks are there; let an evaluation pass, without what no model can read."""
        if module.training:
            raise TrainingSetupError(
                "training begins before specialize.record(…), so all neurons would train; record before it"
            )
        return args, {name: value for name, value in kwargs.items() if name != "pair_ids"}

    def _generate_pairs(self, *args: Any, pair_ids: Any = None, **kwargs: Any) -> Any:
        """Generate, each row in its pair's target language and with its neurons."""
        named = dict(zip(inspect.signature(self._generate.original).parameters, args, strict=False)) | kwargs
        given = next((named[name] for name in ("inputs", "input_ids") if named.get(name) is not None), None)
        pair_ids = pairs_of(given) if pair_ids is None else self._numbers(pair_ids)
        encoded = kwargs.get("encoder_outputs")
        sources = (given, kwargs.get("inputs_embeds"), None if encoded is None else encoded[0])
        rows = next((each for each in sources if isinstance(each, Tensor)), None)
        if pair_ids is None and self.rows.column is None and rows is not None:
            pair_ids = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        if isinstance(pair_ids, Tensor) and kwargs.get("decoder_input_ids") is None:
            settings = self.rows.prompt_settings(pair_ids)
            if settings:
                prompts_BT = settings["decoder_input_ids"]
                check_forced_start(kwargs.get("forced_bos_token_id"), prompts_BT)
                kwargs |= bounds_with_prompt(self._network, named, prompts_BT.shape[1])
            kwargs |= settings
        if self.gate is not None:
            kwargs["pair_ids"] = pair_ids
        return self._generate.original(*args, **kwargs)

    def _numbers(self, pair_ids: Any) -> Any:
        """Return pairs that are given in a list, by their names or numbers, as the tensor that others are."""
        if not isinstance(pair_ids, (list, tuple)):
            return pair_ids
        known = [
            pair_index(self.pairs, each, "pairs") if isinstance(each, str) else each for each in pair_ids
        ]
        return torch.tensor(known)

    def _save_both(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model as it does itself, and the masks beside it."""
        saved = self._save.original(*args, **kwargs)
        call = inspect.signature(self._save.original).bind(*args, **kwargs).arguments
        if call.get("push_to_hub"):
            warn("what was pushed has no masks: push_to_hub(repository) of the model takes them along")
        if call.get("is_main_process", True):
            self._keep(call["save_directory"])
        return saved

    def _keep(self, folder: str | Path) -> None:
        if self.gate is not None and rank() == 0:
            self.gate.save_beside(Path(folder))
            write_json(Path(folder) / MADE_BY_FILE, {"gate": plain(self.gate.facts())})

    def _go_on_from(self, folder: str | Path) -> None:
        self._checkpoint = Path(folder)
        if self.gate is not None:
            self.gate.shape_as(self._checkpoint)

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was joined out of a copy of the model, which has this with it."""
        return {**vars(self), "_trainers": [], "_undone": ExitStack()}


class _Paired:
    """A loader whose batches have `pair_ids`, those of the only pair where they bring none."""

    def __init__(self, batches: Iterable[Mapping[str, Any]], rows: RowPairs) -> None:
        self._batches, self._rows = batches, rows

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in self._batches:
            lacks = self._rows.column is None and "pair_ids" not in batch
            ids = torch.zeros(len(batch["input_ids"]), dtype=torch.long) if lacks else None
            yield batch if ids is None else {**batch, "pair_ids": ids}

    def __getattr__(self, name: str) -> Any:
        """Return what a loader that accelerate has prepared tells of duplicates."""
        return getattr(self._batches, name)


def _masks_beside(folder: Path) -> NeuronMasks | None:
    masks = folder / MASKS_FOLDER
    return NeuronMasks.from_pretrained(masks) if masks.is_dir() else None


def _datasets(trainer: Seq2SeqTrainer) -> list[Any]:
    """Return what a trainer trains and evaluates on."""
    known: Any = trainer.eval_dataset
    parts = list(known.values()) if isinstance(known, dict) else [known]
    return [data for data in (trainer.train_dataset, *parts) if data is not None]
