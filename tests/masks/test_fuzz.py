"""Files of masks and statistics that were damaged or made up: loaded whole or refused by name."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from nspec_hf.core import ArtifactError, write_artifact
from nspec_hf.masks import NeuronMasks, hub
from nspec_hf.recording import ActivationStats, stats as recorded
from tests.masks.test_select import DECODER, ENCODER, made_up_stats

FEW, MANY = ({"max_examples": count, "deadline": None} for count in (40, 10_000))
CHECKS = {"suppress_health_check": list(HealthCheck)}


def load_masks(path):
    masks = NeuronMasks.from_pretrained(path)
    return repr(masks), masks.fingerprint(), [masks[pair] for pair in masks.pairs]


def load_stats(path):
    stats = ActivationStats.load(path)
    return repr(stats), [(stats[pair], stats.tokens(pair)) for pair in stats.pairs]


def saved(kind, path):
    """Return the bytes of a file of that kind, its tensors and its metadata."""
    written = {}

    def keep(_path, tensors, metadata, _kind):
        written.update(tensors=dict(tensors), metadata=copy.deepcopy(metadata))
        write_artifact(path, tensors, metadata, _kind)

    module = {"masks": hub, "stats": recorded}[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_artifact", keep)
        stats = made_up_stats(["en-de", "de-en"], {ENCODER: 13, DECODER: 8})
        (stats if kind == "stats" else NeuronMasks.from_importance(stats, general=0.5)).save(path)
    return path.read_bytes(), written["tensors"], written["metadata"]


@pytest.fixture(scope="module", params=["masks", "stats"])
def victim(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "file.safetensors"
    load = {"masks": load_masks, "stats": load_stats}[request.param]
    content, tensors, metadata = saved(request.param, path)
    load(path)
    return path, f"nspec_{request.param}", load, content, tensors, metadata


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=9),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=9), inside, max_size=3),
    max_leaves=6,
)
tensors_of_any_kind = st.builds(
    lambda dtype, shape: torch.ones(shape).to(dtype),
    st.sampled_from([torch.uint8, torch.bool, torch.int64, torch.float32, torch.float64]),
    st.lists(st.integers(0, 4), max_size=3),
)


def damage(data, content):
    """Cut, flip, repeat, insert or overwrite a span of bytes."""
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 64)))
    new = data.draw(st.binary(max_size=16) | st.just(content[start:end] * 2))
    kept = data.draw(st.sampled_from([content[end:], b""]))
    return content[:start] + new + kept


def places(value, path=()):
    """Return the paths to everything inside JSON values."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inside for place in places(each, (*path, key)))]


def change(data, metadata):
    """Put another value somewhere into the metadata, or take one out."""
    changed = copy.deepcopy(metadata)
    for path in data.draw(st.lists(st.sampled_from(places(metadata)[1:]), min_size=1, max_size=2)):
        holder = changed
        try:
            for key in path[:-1]:
                holder = holder[key]
            if isinstance(holder, dict) and not isinstance(path[-1], str):
                continue  # the first change put an object where a list was; JSON's keys are text
            if data.draw(st.booleans()):
                del holder[path[-1]]
            else:
                holder[path[-1]] = data.draw(anything)
        except (KeyError, IndexError, TypeError):
            continue  # the first change took away where the second would be
    return changed


def try_damaged(victim, data):
    path, _, load, content, _, _ = victim
    changed = damage(data, content)
    path.write_bytes(changed)
    if changed != content:
        with pytest.raises(ArtifactError):
            load(path)


def try_made_up(victim, data):
    """Checksums are right, since whoever writes a file can make them; what it says is not."""
    path, kind, load, _, tensors, metadata = victim
    tensors = dict(tensors)
    for name in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)):
        tensors.pop(name, None)
        if data.draw(st.booleans()):
            tensors[name] = data.draw(tensors_of_any_kind)
    write_artifact(path, tensors, change(data, metadata), kind)
    try:
        load(path)
    except ArtifactError:
        pass


@given(data=st.data())
@settings(**FEW, **CHECKS)
def test_a_damaged_file_is_refused_by_name(victim, data):
    try_damaged(victim, data)


@given(data=st.data())
@settings(**FEW, **CHECKS)
def test_a_file_that_says_something_else_is_loaded_whole_or_refused_by_name(victim, data):
    try_made_up(victim, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(data=st.data())
@settings(**MANY, **CHECKS)
def test_ten_thousand_damaged_files_are_refused_by_name(victim, data):
    try_damaged(victim, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(data=st.data())
@settings(**MANY, **CHECKS)
def test_ten_thousand_files_that_say_something_else_are_loaded_whole_or_refused_by_name(victim, data):
    try_made_up(victim, data)


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000])
def test_metadata_nested_too_deeply_are_refused(victim, nested):
    path, kind, load, *_ = victim
    header = {"__metadata__": {"kind": kind, "format": "2", "content": nested}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ArtifactError):
        load(path)


def test_numbers_beyond_a_float_s_are_refused(victim):
    path, kind, load, _, tensors, metadata = victim
    sites = [{**site, "width": 10**400} for site in metadata["sites"]]
    for changed in ({"levels": [10**400]}, {"sites": sites}):
        if kind == "nspec_masks" or "sites" in changed:
            write_artifact(path, tensors, {**metadata, **changed}, kind)
            with pytest.raises(ArtifactError):
                load(path)
