"""Run: one row of the tables with one seed: its text and base, and a folder for what it makes."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedModel, TrainerCallback

from nspec_hf.core import Pair, plain, read_json, require_count, write_json
from nspec_hf.data import EncodedCorpus, LanguageTags, Outputs, PairText, encode_corpus, load_tokenizer
from nspec_hf.evaluation import SystemScores, Translator, score_system, translate_test_set
from nspec_hf.gating import Attachment
from nspec_hf.recording import ActivationStats, RecordConfig, load_model
from nspec_hf.systems.experiment import ExperimentConfig
from nspec_hf.training import (
    SpecializationTrainer,
    TrainConfig,
    TrainResult,
    fresh_model,
    join_processes,
    record_corpus,
    text_loss,
    train,
)

TEXT_FILE = "text.json"
"""Which text decided what lies in a folder beside the training: subwords, masks."""

_STATS_FILE, _RECORDING_FILE = "nspec_stats.safetensors", "recording.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a system works with; see `Run.of` for where things lie."""

    config: ExperimentConfig
    """The experiment."""

    folder: Path
    """Where this run keeps everything; what lies there is taken up again."""

    row: str = ""
    """What tables call the system with its settings."""

    seed: int = 1
    """Seed of the order of the text, of dropout, and of what a system draws."""

    bar: TrainerCallback | None = None
    """Shows training in the place of the Trainer's own bar or printed log."""

    tell: Callable[[str], None] = lambda line: None
    """Told in a line what begins."""

    @classmethod
    def of(
        cls, config: ExperimentConfig, row: str, seed: int | None = None, inside: str = "", **more: Any
    ) -> Self:
        """Return the run of a row with a seed, in the folder `work/ROW/sSEED`, or `work/INSIDE/ROW/sSEED`.

        Without a seed it has the experiment's.
        """
        seed = config.seed if seed is None else seed
        require_count("seed", seed, least=0)
        folder = Path(config.work) / inside / row / f"s{seed}"
        return cls(config=config, row=row, seed=seed, folder=folder, **more)

    @property
    def result_file(self) -> Path:
        """Where the small JSON file with scores and recipe goes."""
        return Path(self.config.results) / f"{self.config.name}.{self.row}.s{self.seed}.json"

    @cached_property
    def tags(self) -> LanguageTags:
        """How the base's tokenizer spells languages."""
        return LanguageTags(load_tokenizer(self.config.base_model), self.config.data.codes)

    @cached_property
    def pairs(self) -> list[Pair]:
        """The trained directions, in the order that `pair_ids` index."""
        return self.config.data.trained_pairs()

    @cached_property
    def corpus(self) -> EncodedCorpus:
        """The training text."""
        return self._encoded(self.config.data.train_split)

    @cached_property
    def validation(self) -> EncodedCorpus:
        """The validation text."""
        return self._encoded(self.config.data.valid_split)

    @cached_property
    def tests(self) -> list[PairText]:
        """The test text of all tested directions."""
        return self.config.data.read_tests(self.tags)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return torch.device(join_processes().device or "cpu")

    def _encoded(self, split: str) -> EncodedCorpus:
        if not split:  # none of every pair, so that a system can ask for one pair's
            return EncodedCorpus(self.pairs)
        return encode_corpus(self.config.data.read(split), self.tags, self.budget().batches.max_length or 256)

    def base(self, **changes: Any) -> PreTrainedModel:
        """Return a fresh copy of the trained base; `changes` are fields of its config, None: as they are."""
        changed = {name: value for name, value in changes.items() if value is not None}
        settings = {**self.config.model, **changed}
        return load_model(self.config.base_model, settings, for_training=True, device=self.device)

    def scratch(self, **changes: Any) -> PreTrainedModel:
        """Return an untrained model of the base's shape but for `changes`, which are fields of its config."""
        settings = {**self.config.model, **changes}
        return fresh_model(self.config.base_model, settings, self.seed, self.device)

    def recorded(self, model: PreTrainedModel, record: RecordConfig) -> ActivationStats:
        """Return the statistics of the validation text, kept in the folder.

        Args:
            model: With nothing on it.
            record: What is counted.
        """
        path = self.folder / _STATS_FILE
        if self.is_there(path):
            return ActivationStats.load(path)
        self.tell(f"{self.row} records {len(self.validation):,} sentences of {len(self.pairs)} directions")
        about = {"name": self.config.name, "split": self.config.data.valid_split}
        budget = self.config.specialize.batches.max_tokens
        started = time.perf_counter()
        stats = record_corpus(model, self.tags, self.validation, record, budget, about)
        took = {"seconds": time.perf_counter() - started}
        # Before the statistics, whose presence says that all is there.
        self.save(lambda: (write_json(self.folder / _RECORDING_FILE, took), stats.save(path)))
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
        make_trainer: Callable[..., SpecializationTrainer] = SpecializationTrainer,
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
            make_trainer: What makes the Trainer.
            arguments: Arguments of the Trainer in the place of the experiment's.
        """
        corpus = self.corpus if corpus is None else corpus
        self.tell(f"{self.row} trains on {len(corpus):,} sentences of {len(corpus.pairs)} directions")
        return train(
            model,
            self.tags,
            corpus,
            self.budget(phase, **arguments),
            self.folder / folder,
            self.validation if validation is None else validation,
            attachment,
            [*callbacks, *([self.bar] if self.bar else [])],
            shows_progress=self.bar is None,
            make_trainer=make_trainer,
        )

    def loss(self, model: PreTrainedModel, attachment: Attachment | None = None) -> float:
        """Return the loss of the validation text, see `training.text_loss`; nothing is trained."""
        return text_loss(model, self.tags, self.validation, self.budget(), self.folder, attachment)

    def budget(self, phase: str = "specialize", **arguments: Any) -> TrainConfig:
        """Return the experiment's training of that phase with this run's seed."""
        planned: TrainConfig = getattr(self.config, phase).changed(seed=self.seed)
        return dataclasses.replace(planned, arguments={**planned.arguments, **arguments})

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
        translator = Translator(model, self.tags, attachment, self.config.translate)
        texts = [text for text in self.tests if pairs is None or text.pair in pairs]
        known = [text for text in texts if attachment is None or attachment.knows(text.pair)]
        self.tell(f"{self.row} translates {sum(map(len, known)):,} sentences of {len(known)} directions")
        return translate_test_set(translator, known, self.folder / folder)

    def score(self, outputs: Outputs) -> SystemScores | None:
        """Return the scores of translations; None where the experiment has no test text."""
        texts = [text for text in self.tests if text.pair in outputs]
        if not texts:
            return None
        self.tell(f"{self.row} is scored by {', '.join(self.config.metrics)}")
        data, decoding = self.config.data, plain(self.config.translate)
        return score_system(
            self.row,
            {str(pair): lines for pair, lines in outputs.items()},
            {str(text.pair): text.targets for text in texts},
            self.config.metrics,
            sources={str(text.pair): text.sources for text in texts},
            generation={name: value for name, value in decoding.items() if name != "progress"},
            pivot=data.pivot,
            tiers=data.tiers,
        )

    def once(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what `work` returned when it was first done in this folder, and the `seconds` it took.

        All processes call this, since all wait and work. What `recorded` took in an earlier sitting counts
        too; other work that may take several sittings returns its own `seconds`.
        """
        path, recorded = self.folder / f"{name}.json", self.folder / _RECORDING_FILE
        if self.is_there(path):
            return read_json(path)
        there = (self.folder / _STATS_FILE).is_file() and recorded.is_file()
        earlier = read_json(recorded)["seconds"] if there else 0.0
        started = time.perf_counter()
        facts = work()
        facts = {"seconds": round(earlier + time.perf_counter() - started, 2), **facts}
        self.save(lambda: write_json(path, facts))
        return facts

    def is_there(self, path: Path) -> bool:
        """Return whether a file is there; asked by all processes before any goes on and writes it."""
        there = path.is_file()
        join_processes().wait_for_everyone()
        return there

    def save(self, write: Callable[[], Any]) -> None:
        """Write something, on the main process alone; all call this, since the others wait for it."""
        with join_processes().main_process_first():
            if join_processes().is_main_process:
                write()
