"""Files of scores and comparisons: what was written comes back, another shape is refused by its place."""

import contextlib
import copy
import random

import pytest
from hypothesis import given, settings, strategies as st

from nspec_hf.core import ConfigError, Pair
from nspec_hf.evaluation import Comparison, SystemScores
from nspec_hf.evaluation.language_id import OffTarget
from nspec_hf.evaluation.metrics import Score
from tests.helpers.kin import kin_comparison

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def scores():
    off = OffTarget(
        pair=Pair("en-de"),
        share=0.5,
        floor=None,
        sentences=2,
        languages={"de": 1},
        undecided=0,
        identifier="x",
    )
    score = Score(metric="bleu", value=30.0, signature="s", sentences=2)
    return SystemScores(
        name="ours",
        scores={Pair("en-de"): {"bleu": score}},
        generation={"num_beams": 5},
        tiers={"de": "high"},
        off_target={Pair("en-de"): off},
    )


KEPT = {SystemScores: scores(), Comparison: kin_comparison()}


def places(content, path=()):
    """Return the path of every value in nested lists and dictionaries."""
    inside = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return [path, *(each for key, entry in inside for each in places(entry, (*path, key)))]


def changed(content, path, value):
    """Return a copy in which another value stands at a place."""
    if not path:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


@pytest.mark.parametrize("kind", KEPT)
@given(st.integers(0, 10**6), JSON)
@settings(max_examples=300, deadline=None)
def test_a_file_with_anything_anywhere_is_read_or_refused_by_name(kind, seed, value):
    content = KEPT[kind].to_dict()
    path = random.Random(seed).choice(places(content))
    with contextlib.suppress(ConfigError):
        again = kind.from_dict(changed(content, path, value))
        assert kind.from_dict(again.to_dict()).to_dict() == again.to_dict()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("scores", "en-de", "bleu", "value"),
            "30",
            r'scores\.en-de\.bleu\.value: expected a number, got "30"',
        ),
        (
            ("scores", "en-de", "bleu", "sentences"),
            2.5,
            "scores.en-de.bleu.sentences: expected a whole number",
        ),
        (("off_target", "en-de", "undecided"), True, "off_target.en-de.undecided: expected a whole number"),
        (("scores", "en-de"), [1], r"scores\.en-de: expected"),
        (("scores",), {"en": {}}, "cannot read a pair from 'en'"),
        (("tier",), {}, "has tier that is unknown"),
        ((), 3, "expected an object, got 3"),
    ],
)
def test_the_message_names_the_place(path, value, message):
    with pytest.raises(ConfigError, match=f"not scores of a system: .*{message}"):
        SystemScores.from_dict(changed(scores().to_dict(), path, value))


def test_a_verdict_that_there_is_not_is_refused():
    content = changed(kin_comparison().to_dict(), ("rows", 0, "verdict"), "great")
    with pytest.raises(ConfigError, match=r"rows\[0\]\.verdict: expected one of better, worse, not"):
        Comparison.from_dict(content)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"", b'{"name": "\xe9"}', b"1" * 5000])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"scores\.json: this is not scores"):
        SystemScores.load(path)
