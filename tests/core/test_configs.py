"""Settings are checked when they are made, and the command line reads the classes with their help."""

import dataclasses
import inspect
import math
import re

import jsonargparse
import pytest

from nspec_hf.adding import AddConfig
from nspec_hf.core import ConfigError
from nspec_hf.data import BatchConfig, CorpusConfig, VocabularyConfig
from nspec_hf.evaluation import TranslateConfig
from nspec_hf.export import ExportConfig
from nspec_hf.gating import GateConfig
from nspec_hf.masks import SelectConfig
from nspec_hf.recording import RecordConfig
from nspec_hf.serving import BatchingConfig
from nspec_hf.training import TrainConfig

NO_NUMBERS = [
    (kind, name, value)
    for kind, whole, broken in (
        (BatchConfig, "max_tokens", "temperature"),
        (RecordConfig, "", "label_smoothing"),
        (SelectConfig, "", "coverage_decoder general threshold density"),
        (GateConfig, "multiple_of cache_bytes", ""),
        (VocabularyConfig, "size", "coverage"),
        (TranslateConfig, "num_beams max_tokens length_extra max_source", "length_ratio length_penalty"),
        (ExportConfig, "multiple_of min_count sample max_new_tokens", "agreement quantized_agreement"),
        (AddConfig, "lora", "width"),
        (BatchingConfig, "max_batch", "max_wait"),
        (TrainConfig, "patience", ""),
    )
    for names, values in ((whole, (True, "3", 2.5, math.inf)), (broken, (True, "0.5", math.inf, math.nan)))
    for name in names.split()
    for value in values
]
CLASSES = [RecordConfig, SelectConfig, GateConfig, BatchConfig, CorpusConfig, VocabularyConfig]


@pytest.mark.parametrize("kind", CLASSES)
def test_settings_are_frozen_keyword_only_and_every_field_says_what_it_means(kind):
    assert kind.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(kind))
    lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
    for field in dataclasses.fields(kind):
        (place,) = (i for i, line in enumerate(lines) if line.startswith(f"{field.name}: "))
        assert lines[place + 1].startswith('"""'), f"{field.name} has no string under it"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (RecordConfig, {"count": "words"}, "'tokens' or 'sentences', got 'words'"),
        (RecordConfig, {"active_on": "wi"}, "'product' or 'gate', got 'wi'"),
        (RecordConfig, {"kinds": ()}, "at least one of"),
        (
            RecordConfig,
            {"kinds": ("ffn", "fc1")},
            r"unknown kinds \['fc1'\]; kinds are: ffn, attention, ffn_out",
        ),
        (RecordConfig, {"max_sentences": 0}, "positive"),
        (RecordConfig, {"label_smoothing": 1}, r"share in \[0, 1\), got 1"),
        (VocabularyConfig, {"moses": "lower"}, "'tokenize', 'truecase' or None, got 'lower'"),
        (RecordConfig, {"max_sentences": float("inf")}, "positive whole number or None, got inf"),
        (SelectConfig, {"seed": -3}, "seed is an integer from 0, got -3"),
        (SelectConfig, {"method": "magnitude"}, "one of coverage, te, av, random, got 'magnitude'"),
        (SelectConfig, {"coverage": 0}, r"coverage is a share and must lie in \(0, 1\], got 0"),
        (SelectConfig, {"coverage": 95}, r"\(0, 1\], got 95"),
        (SelectConfig, {"coverage": float("nan")}, r"\(0, 1\], got nan"),
        (SelectConfig, {"general": -0.1}, r"general is a share and must lie in \[0, 1\], got -0.1"),
        (SelectConfig, {"threshold": 1.1}, "threshold is a share"),
        (SelectConfig, {"density": 0}, "density is a share"),
        (SelectConfig, {"sides": ()}, "sides are"),
        (SelectConfig, {"sides": ("encoder", "both")}, "sides are"),
        (SelectConfig, {"by": "family"}, "by='family'"),
        (GateConfig, {"mode": "dense"}, "mask, slice, gradient, got 'dense'"),
        (GateConfig, {"silence": "bias"}, "neuron, weights, got 'bias'"),
        (GateConfig, {"zero_shot": "dense"}, "error, compose, got 'dense'"),
        (GateConfig, {"multiple_of": 0}, "multiple_of"),
        (GateConfig, {"cache_bytes": -1}, "cache_bytes"),
        *((kind, {name: value}, f"{name}.*got {re.escape(repr(value))}") for kind, name, value in NO_NUMBERS),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_named(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        kind(**changes)


def test_one_name_is_one_name_and_not_its_letters():
    assert RecordConfig(kinds="ffn") == RecordConfig(kinds=("ffn",))
    assert SelectConfig(sides="decoder").sides == ("decoder",)


def test_the_edges_of_ranges_are_allowed():
    SelectConfig(coverage=1, general=0, threshold=0, density=1)
    SelectConfig(general=1, threshold=1, sides=("decoder",))
    GateConfig(cache_bytes=0, multiple_of=1)
    RecordConfig(max_sentences=1, kinds=("ffn", "attention", "ffn_out"))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_command_line_reads_the_classes_with_their_help(kind):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Whole:
        """All settings."""

        part: kind
        """A part."""

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(Whole)
    first = dataclasses.fields(kind)[0]
    arguments = ["--part.path", "somewhere"] if kind is CorpusConfig else []
    made = parser.instantiate_classes(parser.parse_args(arguments)).part
    assert made == kind(**({"path": "somewhere"} if arguments else {}))
    assert f"--part.{first.name}" in parser.format_help()
