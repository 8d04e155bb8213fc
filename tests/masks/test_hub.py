"""Saved masks: what comes back is what was saved, and a file that is not as written is refused."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from nspec_hf.core import ArtifactError, ConfigError, artifact, write_artifact
from nspec_hf.masks import MASKS_FILE, NeuronMasks, hub as folder, readable
from nspec_hf.masks.hub import KIND, STATS_FILE
from nspec_hf.masks.readable import COPY_FILE
from nspec_hf.recording import ActivationStats
from tests.masks.test_select import DECODER, ENCODER, PAIRS, made_up_stats

WIDTHS = {ENCODER: 13, DECODER: 24}


@pytest.fixture
def masks():
    return NeuronMasks.random(WIDTHS, PAIRS, density=0.6, seed=3)


def listing(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@given(
    pairs=st.lists(
        st.sampled_from(["en-de", "zh-CN->en", "eng_Latn-nno_Latn", "ü-ß"]), min_size=1, unique=True
    ),
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_masks_come_back_as_they_were_saved(tmp_path_factory, pairs, widths, seed, data):
    names = {
        f"model.{side}.layers.{i}.fc1": w for i, w in enumerate(widths) for side in ("encoder", "decoder")
    }
    masks = NeuronMasks.random(names, pairs, density=data.draw(st.sampled_from([0.01, 0.5, 0.9])), seed=seed)
    if data.draw(st.booleans()):
        general = {name: keep_PF.all(dim=0) for name, keep_PF in masks.keep.items()}
        masks = NeuronMasks(pairs, masks.keep, general=general, recipe=masks.recipe)
    path = tmp_path_factory.mktemp("saved")
    masks.save_pretrained(path)
    loaded = NeuronMasks.from_pretrained(path)
    assert loaded == masks
    assert loaded.pairs == masks.pairs
    assert loaded.sites == masks.sites
    assert loaded.recipe == masks.recipe
    for name in names:
        assert torch.equal(loaded.keep[name], masks.keep[name])
        if masks.general is not None:
            assert torch.equal(loaded.general[name], masks.general[name])
    assert (loaded.general is None) == (masks.general is None)


def test_the_whole_recipe_comes_back(tmp_path):
    stats = made_up_stats(
        base={"id": "some/base", "revision": "r", "fingerprint": "f"}, corpus={"name": "dev"}
    )
    masks = NeuronMasks.from_importance(stats, general=0.5).compose("de-fr").subset(["de-fr", "en-de"])
    masks.save_pretrained(tmp_path)
    loaded = NeuronMasks.from_pretrained(tmp_path)
    assert loaded.recipe == masks.recipe
    assert loaded.recipe.derived == ("de-fr composed through en", "subset of 5 pairs")


def test_the_folder_holds_the_files_that_the_design_names(masks, tmp_path):
    stats = made_up_stats()
    figure = tmp_path / "overlap.png"
    figure.write_bytes(b"an image")
    saved = tmp_path / "masks"
    masks.save_pretrained(saved, stats=stats, figures=[figure])
    names = {MASKS_FILE, COPY_FILE, STATS_FILE, "config.json", "README.md", "figures/overlap.png"}
    assert set(listing(saved)) == names
    readable = json.loads((saved / COPY_FILE).read_text())
    assert readable["pairs"] == PAIRS
    assert readable["sites"] == [{"name": name, "width": width} for name, width in WIDTHS.items()]
    assert readable["recipe"]["settings"] == {"density": 0.6, "seed": 3}
    assert "![overlap](figures/overlap.png)" in (saved / "README.md").read_text()
    assert torch.equal(ActivationStats.load(saved / STATS_FILE).counts[ENCODER], stats.counts[ENCODER])


def test_statistics_and_figures_of_other_masks_are_named_where_new_ones_are_saved(tmp_path):
    stats, figure, folder = made_up_stats(), tmp_path / "map.png", tmp_path / "masks"
    figure.write_bytes(b"an image")
    sparse, dense = (NeuronMasks.from_coverage(stats, coverage) for coverage in (0.5, 0.9))
    sparse.save_pretrained(folder, stats=stats, figures=[figure])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse.save_pretrained(folder)
        dense.save_pretrained(folder, figures=[figure])  # the statistics are those of both
        sparse.save_pretrained(folder, stats=stats, figures=[figure])
    with pytest.warns(UserWarning, match=r"^figures/map.png in .*masks lay there beside other masks"):
        dense.save_pretrained(folder)
    with pytest.warns(UserWarning, match=r"^figures/map.png, nspec_stats.safetensors in .* other masks"):
        NeuronMasks.random(WIDTHS, PAIRS, density=0.6).save_pretrained(folder)
    assert torch.equal(ActivationStats.load(folder / STATS_FILE).counts[ENCODER], stats.counts[ENCODER])


def test_equal_masks_are_equal_bytes(masks, tmp_path):
    masks.save(tmp_path / "a")
    masks.subset(PAIRS).subset(PAIRS)
    NeuronMasks.random(WIDTHS, PAIRS, density=0.6, seed=3).save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_masks_are_read_from_their_file_alone(masks, tmp_path):
    masks.save(tmp_path / "checkpoint" / MASKS_FILE)
    assert NeuronMasks.from_pretrained(tmp_path / "checkpoint" / MASKS_FILE) == masks
    assert NeuronMasks.from_pretrained(str(tmp_path / "checkpoint")) == masks


def test_sixty_pairs_at_twelve_sites_of_4096_fit_into_400_kib(tmp_path):
    sites = {f"model.{s}.layers.{i}.fc1": 4096 for s in ("encoder", "decoder") for i in range(6)}
    pairs = [pair for i in range(30) for pair in (f"en-{chr(97 + i // 26)}{chr(97 + i % 26)}", f"x{i}-en")]
    NeuronMasks.random(sites, pairs).save(tmp_path / MASKS_FILE)
    assert (tmp_path / MASKS_FILE).stat().st_size <= 409_600


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("content") / MASKS_FILE
    NeuronMasks.random(WIDTHS, PAIRS, density=0.6, seed=3).save(path)
    return path.read_bytes()


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        NeuronMasks.from_pretrained(path)
    return str(caught.value)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_file_cut_at_any_byte_is_refused(content, tmp_path_factory, data):
    end = data.draw(st.integers(0, len(content) - 1))
    assert refused(tmp_path_factory.getbasetemp() / "cut", content[:end])


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_file_with_a_changed_byte_anywhere_is_refused(content, tmp_path_factory, data):
    position = data.draw(st.integers(0, len(content) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(content)
    changed[position] ^= flip
    assert refused(tmp_path_factory.getbasetemp() / "changed", bytes(changed))


def test_bytes_behind_the_end_are_refused(content, tmp_path):
    assert "altered" in refused(tmp_path / "longer", content + b"\0")


def test_a_newer_format_is_refused_and_says_what_to_do(masks, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "FORMAT", 3)
    masks.save(tmp_path / MASKS_FILE)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"format 3.*install a newer nspec_hf"):
        NeuronMasks.from_pretrained(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    made_up_stats().save(tmp_path / MASKS_FILE)
    with pytest.raises(ArtifactError, match=r"nspec_stats.*nspec_masks"):
        NeuronMasks.from_pretrained(tmp_path)


def described(**changes):
    site = {"name": ENCODER, "width": 13}
    return {"pairs": ["en-de"], "sites": [site], "general": False, "recipe": {"derived": []}, **changes}


BITS = {f"keep/{ENCODER}": torch.tensor([[0b1010, 0b10001]], dtype=torch.uint8)}


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, described()),
        (BITS, described(pairs=["en-de", "de-en"])),
        (BITS, described(pairs=["en-de", "en-de"])),
        (BITS, described(pairs=["deutsch"])),
        (BITS, described(sites=[{"name": ENCODER, "width": 12}])),
        (BITS, described(sites=[{"name": ENCODER, "width": 99}])),
        (BITS, described(sites=[])),
        (BITS, described(sites=None)),
        (BITS, described(general=True)),
        (BITS, described(recipe={"derived": [], "secret": 1})),
        (BITS, {}),
        ({**BITS, "more": torch.zeros(1)}, described()),
    ],
)
def test_a_file_whose_tensors_are_not_as_described_is_refused(tmp_path, tensors, metadata):
    path = tmp_path / MASKS_FILE
    write_artifact(path, BITS, described(), KIND)
    assert NeuronMasks.from_pretrained(path).density() == 4 / 13
    write_artifact(path, tensors, metadata, KIND)
    with pytest.raises(ArtifactError, match="describe"):
        NeuronMasks.from_pretrained(path)


@pytest.mark.parametrize("step", ["serialise", "rename"])
def test_a_save_that_fails_leaves_the_folder_as_it_was(masks, tmp_path, monkeypatch, step):
    masks.save_pretrained(tmp_path)
    before = listing(tmp_path)

    def fail(*_args):
        raise OSError("no space left on device")

    if step == "serialise":
        monkeypatch.setattr(artifact.safetensors.torch, "save", fail)
    else:
        monkeypatch.setattr(artifact.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        masks.subset(["en-de"]).save_pretrained(tmp_path)
    assert listing(tmp_path) == before


def test_a_save_that_fails_at_the_card_leaves_whole_masks_and_no_litter(masks, tmp_path, monkeypatch):
    masks.save_pretrained(tmp_path)
    names = set(listing(tmp_path))
    less = masks.subset(["en-de"])

    def fail(*_args):
        raise OSError("no space left on device")

    monkeypatch.setattr(readable, "replace_own", fail)
    with pytest.raises(OSError, match="no space"):
        less.save_pretrained(tmp_path)
    assert set(listing(tmp_path)) == names
    assert NeuronMasks.from_pretrained(tmp_path) == less


def test_a_missing_figure_is_noticed_before_anything_is_written(masks, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        masks.save_pretrained(tmp_path / "masks", figures=[tmp_path / "none.png"])
    assert not (tmp_path / "masks").exists()


def test_a_config_and_card_of_a_model_in_the_same_folder_stay(masks, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "m2m_100"}')
    (tmp_path / "README.md").write_text("---\nlibrary_name: transformers\n---\n")
    with pytest.warns(UserWarning, match="stays as it is") as caught:
        masks.save_pretrained(tmp_path)
    assert len(caught) == 2
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "m2m_100"}
    assert "transformers" in (tmp_path / "README.md").read_text()
    assert NeuronMasks.from_pretrained(tmp_path) == masks


def test_saving_twice_replaces_without_a_word(masks, tmp_path):
    masks.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.subset(["en-de"]).save_pretrained(tmp_path)
    assert "1 translation direction keep" in (tmp_path / "README.md").read_text()
    assert NeuronMasks.from_pretrained(tmp_path).pairs == ["en-de"]


def test_two_figures_of_one_name_are_refused(masks, tmp_path):
    for folder_name in "ab":
        (tmp_path / folder_name).mkdir()
        (tmp_path / folder_name / "map.png").write_bytes(folder_name.encode())
    with pytest.raises(ConfigError, match="one file name"):
        masks.save_pretrained(tmp_path / "masks", figures=[tmp_path / "a/map.png", tmp_path / "b/map.png"])


def test_a_text_that_can_be_no_path_is_published_as_it_stands(masks, tmp_path):
    told = {"path": str(tmp_path), "about": "The first thousand lines. " * 200, "by": "~nobody-of-that-name"}
    recipe = replace(masks.recipe, corpus=told)
    published = NeuronMasks(masks.pairs, masks.keep, recipe=recipe).without_paths("a/b").recipe.corpus
    assert published == {**told, "path": tmp_path.name}


@pytest.mark.parametrize(
    "name", ["./nowhere", "/nowhere/masks", "a/b/c", "has space", "me/masks.git", "a--b"]
)
def test_what_is_neither_folder_nor_repository_is_refused(name):
    with pytest.raises(FileNotFoundError, match="no folder"):
        NeuronMasks.from_pretrained(name)


def test_a_revision_of_a_folder_is_told_to_be_none(masks, tmp_path):
    masks.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no revisions; v2 is not looked for"):
        assert NeuronMasks.from_pretrained(tmp_path, revision="v2") == masks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NeuronMasks.from_pretrained(tmp_path)


def test_a_folder_that_is_not_there_is_not_mistaken_for_a_fault_of_the_hub():
    with pytest.raises(FileNotFoundError, match="demo_out/masks is no folder here"):
        NeuronMasks.from_pretrained("demo_out/masks")


def test_a_folder_without_masks_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no nspec_masks"):
        NeuronMasks.from_pretrained(tmp_path)


def test_a_save_that_was_killed_between_files_is_told_from_a_whole_one(masks, tmp_path, monkeypatch):
    masks.save_pretrained(tmp_path)
    less = masks.subset(["en-de"])

    def kill(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_texts", kill)
        with pytest.raises(KeyboardInterrupt):
            less.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"nspec_config\.json and the card .* are of other masks"):
        assert NeuronMasks.from_pretrained(tmp_path) == less
    less.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert NeuronMasks.from_pretrained(tmp_path) == less
    (tmp_path / COPY_FILE).write_text("{")
    with pytest.warns(UserWarning, match="other masks"):
        NeuronMasks.from_pretrained(tmp_path)
