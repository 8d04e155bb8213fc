"""System: one of the compared methods, as a small class; a new one is one file beside this one.

    class MyMethod(System):
        '''What it does, and from which paper.'''
        name: ClassVar = "my_method"
        strength: float = 0.5                       # its settings, each with a string under it

        def prepare(self, model, bench):            # what is extracted before training; timed
        def attach(self, model, bench):             # put on what makes each row run as its pair does
        def freeze(self, model):                    # what is not trained

and one line in `systems/__init__.py`. All systems are trained, translate, are scored and reported by the same
code (`running.py`), on the same text in the same order.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import jsonargparse
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from nspec_hf.core import ConfigError, Pair, plain, write_json
from nspec_hf.data import EncodedCorpus, LanguageTags, PairText, encode_corpus
from nspec_hf.evaluation import Translator, translate_test_set
from nspec_hf.gating import Attachment
from nspec_hf.recording import ActivationStats, RecordConfig, load_model
from nspec_hf.systems.experiment import ExperimentConfig
from nspec_hf.training import (
    TrainConfig,
    TrainResult,
    fresh_model,
    join_processes,
    load_weights,
    record_corpus,
    text_loss,
    train,
)

Outputs = dict[Pair, list[str]]


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """What a system works with: the experiment's text and base, a folder of its own, a seed."""

    config: ExperimentConfig
    """The experiment."""

    folder: Path
    """Where this run keeps everything; what lies there is taken up again."""

    seed: int = 1
    """Seed of the order of the text, of dropout, and of what a system draws."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        return AutoTokenizer.from_pretrained(self.config.base_model)

    @cached_property
    def tags(self) -> LanguageTags:
        """How the tokenizer spells languages."""
        return LanguageTags(self.tokenizer, self.config.data.codes)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The trained directions, in the order that `pair_ids` index."""
        return self.config.data.trained_pairs()

    @cached_property
    def corpus(self) -> EncodedCorpus:
        """The training text."""
        return self.encoded(self.config.data.train_split)

    @cached_property
    def validation(self) -> EncodedCorpus:
        """The validation text."""
        return self.encoded(self.config.data.valid_split)

    @cached_property
    def tests(self) -> list[PairText]:
        """The test text of all tested directions."""
        data = self.config.data
        texts = data.read(data.test_split, data.tested_pairs())
        for text in texts:
            self.tags.check(text.pair)
        return texts

    @property
    def device(self) -> Any:
        """Where the model runs."""
        return join_processes().device

    def encoded(self, split: str, pairs: Sequence[str] | None = None) -> EncodedCorpus:
        """Return a split of the text, of all trained pairs or of some, as token ids."""
        texts = self.config.data.read(split, pairs)
        return encode_corpus(texts, self.tags, self.config.specialize.batches.max_length)

    def base(self, **changes: Any) -> PreTrainedModel:
        """Return a fresh copy of the trained base; `changes` are fields of its config."""
        settings = {**self.config.model, **changes}
        return load_model(self.config.base_model, settings, for_training=True, device=self.device)

    def scratch(self, **changes: Any) -> PreTrainedModel:
        """Return an untrained model of the base's shape but for `changes`, which are fields of its config."""
        model = fresh_model(self.config.base_model, {**self.config.model, **changes}, self.seed)
        return model.to(self.device)

    def recorded(self, model: PreTrainedModel, record: RecordConfig, kept: bool = True) -> ActivationStats:
        """Return the statistics of the validation text.

        Args:
            model: With nothing on it.
            record: What is counted.
            kept: Take what lies in the folder, and leave it there; False counts in any case.
        """
        path = self.folder / "nspec_stats.safetensors"
        there = kept and path.is_file()
        join_processes().wait_for_everyone()
        if there:
            return ActivationStats.load(path)
        config = self.config
        about = {"name": config.name, "split": config.data.valid_split}
        budget = config.specialize.batches.max_tokens
        stats = record_corpus(
            model, self.tokenizer, self.validation, record, budget, about, config.data.codes
        )
        if kept:
            self.save(lambda: stats.save(path))
        return stats

    def train(
        self,
        model: PreTrainedModel,
        attachment: Attachment | None = None,
        phase: str = "specialize",
        folder: str | Path = "",
        corpus: EncodedCorpus | None = None,
        validation: EncodedCorpus | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **arguments: Any,
    ) -> TrainResult:
        """Train with the budget that every system has, in this run's order of the text.

        Args:
            model: What is trained, in place.
            attachment: What makes each row run as its pair does.
            phase: `specialize` (continued training) or `pretrain` (the base's budget).
            folder: Inside of this run's folder.
            corpus: Text other than the whole training text.
            validation: Text other than the whole validation text.
            callbacks: Further callbacks of the Trainer.
            arguments: Arguments of the Trainer in the place of the experiment's.
        """
        return train(
            model,
            self.tokenizer,
            self.corpus if corpus is None else corpus,
            self.budget(phase, **arguments),
            self.folder / folder,
            self.validation if validation is None else validation,
            attachment,
            self.config.data.codes,
            callbacks,
        )

    def loss(self, model: PreTrainedModel, attachment: Attachment | None = None) -> float:
        """Return the loss of the validation text, see `runs.text_loss`; nothing is trained."""
        text, codes = self.validation, self.config.data.codes
        return text_loss(model, self.tokenizer, text, self.budget(), self.folder, attachment, codes)

    def budget(self, phase: str = "specialize", **arguments: Any) -> TrainConfig:
        """Return the experiment's training of that phase with this run's seed."""
        planned: TrainConfig = getattr(self.config, phase)
        return dataclasses.replace(
            planned,
            batches=dataclasses.replace(planned.batches, seed=self.seed),
            arguments={**planned.arguments, "seed": self.seed, **arguments},
        )

    def translate(
        self,
        model: PreTrainedModel,
        attachment: Attachment | None,
        folder: str | Path,
        pairs: Sequence[str] | None = None,
    ) -> Outputs:
        """Return the translations of all tests that the system can translate; they are kept in `folder`.

        Args:
            model: The trained model.
            attachment: What makes each row run as its pair does.
            folder: Inside of this run's folder.
            pairs: Translate no others; None: all.
        """
        config = self.config
        translator = Translator(model, self.tokenizer, attachment, config.translate, codes=config.data.codes)
        texts = [text for text in self.tests if pairs is None or text.pair in pairs]
        known = [text for text in texts if attachment is None or attachment.knows(text.pair)]
        return translate_test_set(translator, known, self.folder / folder)

    def once(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what `work` returned when it was first done in this folder, and the `seconds` it took.

        Work that may take several sittings returns its own `seconds`.
        """
        path = self.folder / f"{name}.json"
        there = path.is_file()
        join_processes().wait_for_everyone()
        if there:
            return json.loads(path.read_text(encoding="utf-8"))
        started = time.perf_counter()
        done = work()
        found = {"seconds": round(time.perf_counter() - started, 2), **done}
        self.save(lambda: write_json(path, found))
        return found

    def save(self, write: Callable[[], Any]) -> None:
        """Write something, on the main process alone; the others wait for it."""
        with join_processes().main_process_first():
            if join_processes().is_main_process:
                write()

    def decoding(self) -> dict[str, Any]:
        """Return how text is translated, as results files say it."""
        return {name: value for name, value in plain(self.config.translate).items() if name != "progress"}


@dataclass(frozen=True, kw_only=True)
class System:
    """One of the compared methods; its fields are its settings. This one goes on training the whole base.

    A system says what differs (`prepare`, `attach`, `freeze` …); `run` and `outputs` are only for those that
    are more than one training of one model.
    """

    name: ClassVar[str] = "finetune"
    """What plans and tables call it."""

    source: ClassVar[str] = "continued training of all weights on all pairs, the same budget"
    """The paper, or what it is."""

    extracts: ClassVar[bool] = False
    """Whether something is taken from the base before training, whose time is reported."""

    @property
    def from_scratch(self) -> bool:
        """Whether it has a model of its own, trained with the base's budget and then the continuation's."""
        return False

    def check(self, bench: Workbench) -> None:
        """Refuse what cannot work, before anything is run.

        Raises:
            ConfigError: If the settings do not go with the experiment.
        """

    def model(self, bench: Workbench) -> PreTrainedModel:
        """Return the model as it is before training, with nothing on it."""
        return bench.scratch() if self.from_scratch else bench.base()

    def prepare(self, model: PreTrainedModel, bench: Workbench) -> Mapping[str, Any]:
        """Extract what is needed from the model into the folder; return facts for the results.

        Called once a run; its time is the extraction time of the efficiency table.
        """
        return {}

    def attach(self, model: PreTrainedModel, bench: Workbench) -> Attachment | None:
        """Put onto the model what makes each row run as its pair does, from what `prepare` left.

        Called before training, and again before translating, when the trained weights are loaded after it.
        """
        return None

    def freeze(self, model: PreTrainedModel) -> None:
        """Switch gradients off where nothing is to be trained."""

    def callbacks(self, model: PreTrainedModel, bench: Workbench) -> Sequence[TrainerCallback]:
        """Return callbacks that training needs."""
        return ()

    def extra_bytes(self, bench: Workbench) -> int:
        """Return what is kept besides parameters (masks …), in bytes."""
        return 0

    def run(self, bench: Workbench) -> dict[str, Any]:
        """Prepare and train; leave the model in `folder/model`, and return facts for the results."""
        model, facts = self.model(bench), {}
        parameters = sum(each.numel() for each in bench.base().parameters())
        if self.extracts:
            facts["extraction"] = bench.once("extraction", lambda: self.prepare(model, bench))
        attachment = self.attach(model, bench)
        self.freeze(model)
        callbacks = self.callbacks(model, bench)
        if self.from_scratch:
            facts["pretraining"] = bench.train(
                model, attachment, "pretrain", "pretraining", callbacks=callbacks
            ).facts()
        facts |= bench.train(model, attachment, callbacks=callbacks).facts()
        facts["extra_parameters"] = sum(each.numel() for each in model.parameters()) - parameters
        facts["extra_bytes"] = self.extra_bytes(bench)
        if attachment is not None:
            facts["attachment"] = plain(attachment.facts())
        return facts

    def outputs(self, bench: Workbench) -> Outputs:
        """Return the translations of all tests that the trained system can translate."""
        model = self.model(bench)
        attachment = self.attach(model, bench)
        load_weights(model, bench.folder / "model")
        return bench.translate(model, attachment, "outputs")


def settings_of(system: System) -> dict[str, Any]:
    """Return a system's settings by name."""
    return dataclasses.asdict(system)


def make_system(kind: type[System], settings: Mapping[str, Any]) -> System:
    """Return a system with these settings; text, as from a command line, is read as what a setting wants.

    Raises:
        ConfigError: If it has no such setting, or a value is of another type.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"{kind.name} has no setting {', '.join(unknown)}; it has: {', '.join(sorted(known)) or 'none'}"
        )
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    try:
        return kind(**vars(parser.instantiate_classes(parser.parse_object(dict(settings)))))
    except jsonargparse.ArgumentError as error:
        raise ConfigError(f"a setting of {kind.name} cannot be read: {error}") from error
