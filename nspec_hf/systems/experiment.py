"""One experiment as one YAML file: data, vocabulary, base model, recording, selection, training, decoding.

The recipes and the command line read the same classes: `work.yaml` says everything once, and any field can be
overruled on the command line by its dotted name (`--data.corpus.path DIR --specialize.arguments.max_steps
500`).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import jsonargparse

from nspec_hf.core import (
    ConfigError,
    Pair,
    check_settings_files,
    english_centric,
    languages_of,
    listed,
    pivot_of,
    plain,
    require,
    translation_pairs,
    with_lists,
    zero_shot,
)
from nspec_hf.data import CorpusConfig, PairText, VocabularyConfig, read_corpus
from nspec_hf.evaluation import TranslateConfig
from nspec_hf.gating import GateConfig
from nspec_hf.masks import SelectConfig
from nspec_hf.recording import RecordConfig
from nspec_hf.systems.plan import ComparisonPlan
from nspec_hf.training import TrainConfig

if TYPE_CHECKING:
    from nspec_hf.data import LanguageTags

_Settings = TypeVar("_Settings")

# The strings under the fields are the help texts.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which text, and which directions of it."""

    corpus: CorpusConfig
    """Where the text lies."""

    languages: Sequence[str] = ()
    """Language codes; all directions out of and into the pivot are trained. Or name `pairs`."""

    pairs: str | Sequence[str] = ()
    """The directions to train, `en-de,de-en` or a list, where they are not simply all those of `languages`
    with the pivot."""

    pivot: str = "en"
    """The language that the trained directions share."""

    zero_shot: Sequence[str] | None = None
    """Directions that are tested without being trained; None takes all between `languages` other than the
    pivot."""

    codes: Mapping[str, str] = field(default_factory=dict)
    """Your language codes → the tokenizer's, where they differ: `{"en": "eng_Latn"}`."""

    train_split: str = "train"
    """Split that is trained on."""

    valid_split: str = "valid"
    """Split whose loss is watched, and whose activations are recorded (Tan et al. count on validation
    text)."""

    test_split: str = "test"
    """Split that is scored; empty: nothing is."""

    tiers: Mapping[str, str] = field(default_factory=dict)
    """Language → resource tier, for tables: `{"de": "high", "da": "low"}`."""

    families: Mapping[str, str] = field(default_factory=dict)
    """Language → family, for the analysis."""

    def __post_init__(self) -> None:
        """Spell the pivot as the languages do."""
        languages = [*self.languages, *languages_of(map(Pair, self._named_pairs()))]
        object.__setattr__(self, "pivot", pivot_of(languages, self.pivot))

    def trained_pairs(self) -> list[Pair]:
        """Return the directions to train, in the order that `pair_ids` indexes.

        Raises:
            ConfigError: If neither languages nor pairs are named.
        """
        pairs = translation_pairs(self._named_pairs()) or english_centric(self.languages, self.pivot)
        if not pairs:
            raise ConfigError("data names no directions; give languages (de fr cs) or pairs (en-de de-en)")
        return pairs

    def _named_pairs(self) -> Sequence[str]:
        named = listed(self.pairs) if isinstance(self.pairs, str) and self.pairs else self.pairs
        return named or ()

    def zero_shot_pairs(self) -> list[Pair]:
        """Return the directions that are only tested."""
        if self.zero_shot is not None:
            return translation_pairs(self.zero_shot)
        return [pair for pair in zero_shot(self.languages, self.pivot) if pair not in self.trained_pairs()]

    def tested_pairs(self) -> list[Pair]:
        """Return the directions that are scored: the trained ones, then the zero-shot ones."""
        return [*self.trained_pairs(), *self.zero_shot_pairs()]

    def unread(self) -> dict[str, list[str]]:
        """Return what settings name, and no direction has, such as a misspelled language: setting → codes."""
        known = {*self.languages, self.pivot, *languages_of(self.tested_pairs())}
        settings: dict[str, Mapping[str, Any]] = {"tiers": self.tiers, "families": self.families}
        settings |= {"codes": self.codes, "corpus.lines_by_language": self.corpus.lines_by_language}
        return {name: others for name, given in settings.items() if (others := sorted({*given} - known))}

    def read(self, split: str, pairs: Sequence[str] | None = None) -> list[PairText]:
        """Read a split of the trained (or of other) directions; an empty name reads nothing."""
        if not split:
            return []
        return read_corpus(self.corpus, self.trained_pairs() if pairs is None else pairs, split)

    def read_tests(self, tags: "LanguageTags") -> list[PairText]:
        """Read the test text of all tested directions.

        Raises:
            UnknownLanguageError: If the tokenizer has no tag for a language of them.
        """
        texts = self.read(self.test_split, self.tested_pairs())
        for text in texts:
            tags.check(text.pair)
        return texts


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Everything that a recipe does, from text to scores."""

    data: DataConfig
    """Text and directions."""

    work: str = "work"
    """Folder of checkpoints and models; a stopped recipe goes on from there."""

    results: str = "recipes/results"
    """Folder of the small JSON files that stay."""

    name: str = "experiment"
    """What results and tables call it."""

    base: str = ""
    """Hub id or folder of a trained base; empty: `pretrain.py` makes it in `work/base/model`. `@ROW/sSEED`
    is the model of another shape that such a run in `work` made before its continuation."""

    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    """For `pretrain.py`: the subwords."""

    model: Mapping[str, Any] = field(default_factory=dict)
    """For `pretrain.py`: any field of `M2M100Config`."""

    pretrain: TrainConfig = field(default_factory=TrainConfig)
    """Training of the base."""

    record: RecordConfig = field(default_factory=RecordConfig)
    """What is counted."""

    select: SelectConfig = field(default_factory=SelectConfig)
    """How neurons are chosen. The rule itself (`method`) is the system's, such as allocation_te."""

    gate: GateConfig = field(default_factory=GateConfig)
    """How masks act. Pairs without masks of their own have them composed, through `data.pivot`."""

    specialize: TrainConfig = field(default_factory=TrainConfig)
    """Continued training, the same for every system."""

    translate: TranslateConfig = field(default_factory=TranslateConfig)
    """Decoding."""

    metrics: Sequence[str] = ("bleu", "chrf++")
    """See `nspec_hf/evaluation/metrics.py`."""

    compare: ComparisonPlan = field(default_factory=ComparisonPlan)
    """For `compare.py`: which systems, with which settings and seeds."""

    def __post_init__(self) -> None:
        """Refuse two pivots."""
        require(
            self.gate.pivot in (GateConfig().pivot, self.data.pivot),
            f"gate.pivot is {self.gate.pivot!r}, but masks are composed through data.pivot, "
            f"{self.data.pivot!r}; leave gate.pivot out",
        )

    @property
    def base_model(self) -> str:
        """Where the base model is."""
        if self.base.startswith("@"):
            return f"{self.work}/{self.base[1:]}/pretraining/model"
        return self.base or f"{self.work}/base/model"

    @property
    def seed(self) -> int:
        """Seed of the continued training, where a run is given none."""
        return self.specialize.arguments.get("seed", self.specialize.batches.seed)

    def begun_with(self, *parts: str) -> dict[str, Any]:
        """Return the settings that must stay the same while a run goes on: which text, and these `parts`.

        Where the text lies is not among them, since a folder may move; nor is what is tested, or how long
        the training takes.
        """
        data, place = self.data, ("path", "store", "num_proc")
        text = {
            "pairs": data.trained_pairs(),
            "splits": [data.train_split, data.valid_split],
            "codes": data.codes,
            "corpus": {name: value for name, value in plain(data.corpus).items() if name not in place},
        }
        return plain({"text": text, **{part: getattr(self, part) for part in parts}})


def read_settings(
    settings: type[_Settings], /, argv: Sequence[str] | None = None, description: str = "", **extra: Any
) -> tuple[_Settings, jsonargparse.Namespace]:
    """Read settings from the command line: `FILE.yaml --field value …`, or fields alone.

    Args:
        settings: The class.
        argv: Arguments; None takes those of the process.
        description: Shown by `--help`.
        extra: Further arguments of the program: name → keyword arguments of `add_argument`.

    Returns:
        The settings and the further arguments.
    """
    parser = jsonargparse.ArgumentParser(
        description=description, formatter_class=jsonargparse.DefaultHelpFormatter
    )
    parser.add_argument(
        "--config", action="config", help="A YAML file of settings; may also stand first, without --config."
    )
    for name, keywords in extra.items():
        parser.add_argument(f"--{name}", **keywords)
    parser.add_class_arguments(settings)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--config")
    check_settings_files(arguments)
    parsed = parser.parse_args(with_lists(parser, arguments))
    rest = jsonargparse.Namespace({name: parsed.pop(name) for name in extra})
    parsed.pop("config")
    return settings(**vars(parser.instantiate_classes(parsed))), rest
