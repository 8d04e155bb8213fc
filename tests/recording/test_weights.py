"""Weights that were saved as something else than floats are refused by name, wherever a model is loaded."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

import nspec_hf
from nspec_hf.adding import AddConfig, AddedPairs, Addition, layout_for
from nspec_hf.cli.main import main
from nspec_hf.core import ArtifactError
from nspec_hf.export import ExportConfig, export_model
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites, load_model
from nspec_hf.training import load_weights
from tests.helpers import tiny_text
from tests.helpers.families import tiny_llama
from tests.helpers.models import SIX_ARCHITECTURES, tiny_bart, tiny_m2m100

NAME = "model.encoder.layers.1.fc1.weight"
PAIRS = ["en-de", "de-en"]


def as_integers(weights, dtype=torch.int8, names=("fc1.weight",)):
    """Return weights as a quantizing program without a config of it leaves them: integers beside scales."""
    changed = {}
    for name, weight in weights.items():
        if not name.endswith(names):
            changed[name] = weight
            continue
        scale = weight.abs().max() / 100
        changed[name] = (
            (weight / scale).round().to(dtype)
            if dtype.is_floating_point
            else ((weight / scale).round().clamp(0 if dtype == torch.uint8 else -100, 100).to(dtype))
        )
        changed[f"{name}_scale"] = scale.reshape(1)
    return changed


def spoil(folder, dtype=torch.int8, names=("fc1.weight",)):
    path = folder / "model.safetensors"
    save_file(as_integers(load_file(path), dtype, names), path, {"format": "pt"})


REFUSAL = r"weights of {} are saved as {} \(.*fc1\.weight.*no quantization_config"


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int16, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_weights_that_are_no_floats_of_16_bits_or_more_are_refused(dtype, tmp_path):
    tiny_m2m100().save_pretrained(tmp_path)
    spoil(tmp_path, dtype)
    kind = str(dtype).removeprefix("torch.")
    for use in ({}, {"for_training": True}, {"dtype": torch.bfloat16}):
        with pytest.raises(ArtifactError, match=REFUSAL.format(re.escape(str(tmp_path)), kind)) as refusal:
            load_model(tmp_path, **use)
        assert "4 weights" in str(refusal.value)


@pytest.mark.parametrize("family", [*SIX_ARCHITECTURES, "llama"])
def test_the_integers_of_every_family_are_seen(family, tmp_path):
    make = tiny_llama if family == "llama" else SIX_ARCHITECTURES[family]
    make().save_pretrained(tmp_path)
    load_model(tmp_path, decoder_only=True)
    spoil(tmp_path, names=("weight",))
    with pytest.raises(ArtifactError, match="are saved as int8"):
        load_model(tmp_path, decoder_only=True)


def test_they_are_seen_in_shards_in_old_files_in_variants_and_under_other_names(tmp_path):
    shards, old, variant, bare = (tmp_path / name for name in ("shards", "old", "variant", "bare"))
    tiny_m2m100().save_pretrained(shards, max_shard_size="20KB")
    paths = sorted(shards.glob("model-*.safetensors"))
    assert len(paths) > 1
    load_model(shards)
    for path in paths:
        save_file(as_integers(load_file(path), names=("fc1.weight",)), path, {"format": "pt"})
    tiny_m2m100().save_pretrained(old)
    (old / "model.safetensors").unlink()
    torch.save(tiny_m2m100().state_dict(), old / "pytorch_model.bin")
    load_model(old)
    torch.save(as_integers(tiny_m2m100().state_dict()), old / "pytorch_model.bin")
    tiny_m2m100().save_pretrained(variant, variant="small")
    load_model(variant, variant="small")
    path = variant / "model.small.safetensors"
    save_file(as_integers(load_file(path)), path, {"format": "pt"})
    tiny_bart().save_pretrained(bare)
    path = bare / "model.safetensors"  # as a base model saves them, without the first part of their names
    names = {name.removeprefix("model."): weight for name, weight in load_file(path).items()}
    save_file({name: each for name, each in names.items() if "logits" not in name}, path, {"format": "pt"})
    load_model(bare)
    spoil(bare)
    for folder, options in ((shards, {}), (old, {}), (variant, {"variant": "small"}), (bare, {})):
        with pytest.raises(ArtifactError, match="are saved as int8"):
            load_model(folder, **options)


def test_a_method_of_quantization_that_the_library_does_not_know_does_not_let_them_pass(tmp_path):
    tiny_m2m100().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "of_ones_own", "bits": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load_model(tmp_path)  # the library reads floats as they are, and so they may be
    spoil(tmp_path)
    with pytest.raises(ArtifactError, match="are saved as int8"):
        load_model(tmp_path)


def test_integers_that_are_no_weights_are_no_fault(tmp_path):
    """Old checkpoints hold the numbers of positions."""
    tiny_m2m100().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    more = {"model.encoder.embed_positions.position_ids": torch.arange(64)[None], "seen": torch.tensor([7])}
    save_file(load_file(path) | more, path, {"format": "pt"})
    load_model(tmp_path)


def test_weights_of_what_was_attached_are_not_left_out_in_silence(tmp_path):
    network = tiny_text.model()
    made = Addition(network, layout_for(network, ["en-fr"], AddConfig(), 0.5)).draw(network, 1, {})
    with AddedPairs(network, [made]):
        network.save_pretrained(tmp_path)
    tiny_text.tokenizer().save_pretrained(tmp_path)
    for load in (load_model, nspec_hf.load):
        with pytest.raises(ArtifactError, match=r"with added pairs.*--added beside the base"):
            load(tmp_path)


@pytest.fixture
def folder(tmp_path):
    tiny_text.model().save_pretrained(tmp_path / "base")
    tiny_text.tokenizer().save_pretrained(tmp_path / "base")
    tiny_text.write_text(tmp_path / "data", train=8, valid=8, test=4)
    return tmp_path


def test_every_way_to_a_model_refuses_them(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    model = load_model("base")
    sites = {site.name: site.width for site in find_sites(model)}
    masks = NeuronMasks.random(sites=sites, pairs=PAIRS, density=0.5, seed=1)
    masks.save_pretrained("masks")
    config = ExportConfig(format="pruned", max_new_tokens=4)
    export_model(model, tiny_text.tokenizer(), masks, PAIRS[0], "pruned", config)
    spoil(folder / "base")
    spoil(folder / "pruned")
    with pytest.raises(ArtifactError, match="are saved as int8"):
        nspec_hf.load_pruned("pruned")
    with pytest.raises(ArtifactError, match="are saved as int8"):
        nspec_hf.load("pruned")
    with pytest.raises(ArtifactError, match="are saved as int8"):
        nspec_hf.load("masks", base="base")
    with pytest.raises(ArtifactError, match="are saved as int8"):
        load_weights(tiny_text.model(), folder / "base")
    pairs = ["--pairs", ",".join(PAIRS), "--corpus.path", "data"]
    for command in (
        ["record", "--model", "base", *pairs],
        ["train", "--model", "base", "--masks", "masks", "--corpus.path", "data", "--output", "run"],
        ["translate", "--model", "base", "--masks", "masks", "--corpus.path", "data", "--output", "out"],
        ["export", "--model", "base", "--masks", "masks", "--pairs", "en-de", "--output", "exported"],
    ):
        assert main(command) == 2, command
        assert "are saved as int8" in capsys.readouterr().err
    before = {path.name for path in folder.iterdir()}
    assert main(["doctor", "--model", "base"]) == 1
    assert "are saved as int8" in capsys.readouterr().out
    assert before == {"base", "data", "masks", "pruned"}
