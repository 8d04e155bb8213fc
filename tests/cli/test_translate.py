"""`nspec translate` of many pairs at once, into what `evaluate` and `compare` read."""

import warnings
from dataclasses import asdict

import pytest
import torch

from nspec_hf import GateConfig, NeuronMasks, TranslateConfig, Translator
from nspec_hf.cli.main import main
from nspec_hf.core import write_json
from nspec_hf.data import load_tokenizer, read_outputs
from nspec_hf.recording import load_model
from tests.helpers import tiny_text

PAIRS = [str(pair) for pair in tiny_text.PAIRS]
SHORT = ["--translate.num_beams", "1", "--translate.length_ratio", "0.5", "--translate.length_extra", "6"]
ALL = ["translate", "--model", "runs/mine/model", "--masks", "masks", "--corpus.path", "data", *SHORT]

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A trained model with masks, and text."""
    tiny_text.write_text(tmp_path / "data", test=10)
    model = tiny_text.model()
    model.save_pretrained(tmp_path / "runs" / "mine" / "model")
    tiny_text.tokenizer().save_pretrained(tmp_path / "runs" / "mine" / "model")
    tiny_text.masks(model, density=0.4).save_pretrained(tmp_path / "masks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def translated(folder, pair, masks=True, gate=None):
    """Return what a translator of that pair alone returns."""
    model = load_model(folder / "runs" / "mine" / "model")
    chosen = NeuronMasks.from_pretrained(folder / "masks") if masks else None
    config = TranslateConfig(num_beams=1, length_ratio=0.5, length_extra=6)
    tokenizer = load_tokenizer(folder / "runs" / "mine" / "model")
    translator = Translator(model, tokenizer, chosen, config, gate)
    source = (folder / "data" / f"test.{pair.split('-')[0]}").read_text(encoding="utf-8")
    return translator.translate(source.splitlines(), pair)


def test_all_pairs_of_the_masks_are_translated_at_once_under_the_name_of_the_run(folder, capsys):
    assert main(ALL) == 0
    printed = capsys.readouterr().out
    outputs = read_outputs(folder / "outputs" / "mine")
    assert sorted(outputs) == sorted(PAIRS)
    for pair in PAIRS:
        assert outputs[pair] == translated(folder, pair)
    assert outputs["en-de"] != translated(folder, "en-de", masks=False)
    assert "40 sentences of 4 directions" in printed
    assert "evaluate --hypotheses outputs/mine --corpus.path data --split test" in printed


@pytest.mark.parametrize(("pair", "expected"), [("de-en", ["de-en"]), ("fr-en,en-fr", ["en-fr", "fr-en"])])
def test_some_pairs_are_translated_where_they_are_named(folder, pair, expected):
    assert main([*ALL, "--pair", pair, "--output", "some"]) == 0
    assert sorted(read_outputs(folder / "some")) == expected


def test_without_masks_the_pairs_are_named(folder, capsys):
    plain = ["translate", "--model", "runs/mine/model", "--corpus.path", "data", *SHORT, "--output", "plain"]
    assert main(plain) == 2
    assert "name the pairs: --pair en-de,de-en" in capsys.readouterr().err
    assert not (folder / "plain").exists()
    assert main([*plain, "--pair", "en-de"]) == 0
    assert read_outputs(folder / "plain")["en-de"] == translated(folder, "en-de", masks=False)


def test_what_lies_there_is_not_translated_again_and_evaluate_and_compare_read_it(folder, monkeypatch):
    assert main(ALL) == 0
    assert main([*ALL, "--translate.num_beams", "2", "--output", "outputs/beams"]) == 0
    before = read_outputs(folder / "outputs" / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(Translator, "translate", None)
        assert main(ALL) == 0
    assert read_outputs(folder / "outputs" / "mine") == before
    assert (
        main(["evaluate", "--hypotheses", "outputs/mine", "--corpus.path", "data", "--metric", "chrf"]) == 0
    )
    against = ["compare", "--baseline", "outputs/beams", "--system", "outputs/mine", "--corpus.path", "data"]
    assert main([*against, "--n_samples", "100", "--n_jobs", "1"]) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--input", "data/test.en"], "not both"),
        (["--output", "-"], "give --output DIR"),
        (["--pair", "de-fr"], "de-fr"),
        (["--split", "nothing"], "no nothing text"),
    ],
)
def test_what_cannot_be_translated_into_a_folder_is_said(folder, capsys, more, said):
    assert main([*ALL, *more]) == 2
    assert said in capsys.readouterr().err
    assert not list(folder.glob("outputs/*/*.txt"))


@pytest.mark.parametrize("named", [[], ["--pair", "en-de,de-en"]])
def test_lines_of_text_are_of_one_pair(folder, capsys, named):
    assert main(["translate", "--model", "runs/mine/model", "--input", "data/test.en", *named]) == 2
    assert "give --pair en-de for lines of text" in capsys.readouterr().err


def trained_by(folder, **gate):
    """Let the model say of itself what a run writes beside it."""
    masks = NeuronMasks.from_pretrained(folder / "masks")
    facts = {"gate": {"masks": masks.fingerprint(), "gate": asdict(GateConfig(**gate))}}
    write_json(folder / "runs" / "mine" / "model" / "made_by.json", facts)
    return masks


def with_own_bias(folder, masks, pair):
    """Return the translations of a copy in which a neuron that is off has weights of zero, and its bias."""
    network = load_model(folder / "runs" / "mine" / "model")
    with torch.no_grad():
        for name, keep_F in masks[pair].items():
            network.get_submodule(name).weight[~keep_F] = 0
    config = TranslateConfig(num_beams=1, length_ratio=0.5, length_extra=6)
    source = (folder / "data" / "test.en").read_text(encoding="utf-8").splitlines()
    return Translator(network, tiny_text.tokenizer(), config=config).translate(source, pair)


@pytest.mark.parametrize("flags", [[], ["--gate.silence", "weights", "--gate.mode", "slice"]])
def test_masks_act_as_they_did_in_training(folder, flags, recwarn):
    masks = trained_by(folder, silence="weights")
    assert main([*ALL, "--pair", "en-de", *flags]) == 0
    found = read_outputs(folder / "outputs" / "mine")["en-de"]
    assert found == with_own_bias(folder, masks, "en-de")
    assert found == translated(folder, "en-de")  # which are given no settings of the gate either
    assert found != translated(folder, "en-de", gate=GateConfig(silence="neuron"))
    assert not [each for each in recwarn.list if "was trained with" in str(each.message)]


def test_a_model_that_was_trained_with_a_dense_forward_pass_is_translated_with_one(folder):
    trained_by(folder, mode="gradient")
    assert main([*ALL, "--pair", "en-de"]) == 0
    assert read_outputs(folder / "outputs" / "mine")["en-de"] == translated(folder, "en-de", masks=False)


@pytest.mark.parametrize(
    ("gate", "flags", "said"),
    [
        ({"silence": "weights"}, ["--gate.zero_shot", "compose"], "silence='weights', and here .*'neuron'"),
        ({"mode": "gradient"}, ["--gate.mode", "slice"], "mode='gradient'.*, and here they act by mode='sl"),
        ({}, ["--masks", "others"], "was trained with masks .*, these are"),
    ],
)
def test_masks_that_are_to_act_otherwise_than_in_training_are_told(folder, gate, flags, said):
    trained_by(folder, **gate)
    tiny_text.masks(tiny_text.model(), seed=8).save_pretrained(folder / "others")
    with pytest.warns(UserWarning, match=rf"runs/mine/model .*{said}"):
        assert main([*ALL, "--pair", "en-de", *flags]) == 0


def test_a_model_that_was_trained_with_masks_is_not_run_without_them_in_silence(folder):
    trained_by(folder)
    plain = ["translate", "--model", "runs/mine/model", "--corpus.path", "data", *SHORT, "--pair", "en-de"]
    with pytest.warns(UserWarning, match=r"trained with masks \(.*without them all neurons run"):
        assert main(plain) == 0


def test_what_a_model_was_trained_with_beside_masks_is_not_left_out(folder, capsys):
    write_json(folder / "runs" / "mine" / "model" / "made_by.json", {"gate": {"adapters": 4}})
    for command in (ALL, ["export", *ALL[1:5], "--pairs", "en-de", "--output", "small"]):
        assert main(command) == 2
        assert "was trained with more than masks (adapters)" in capsys.readouterr().err
    write_json(
        folder / "runs" / "mine" / "model" / "made_by.json", {"gate": {}}
    )  # of units that none has apart
    assert main(ALL) == 2
    assert "was trained with more than masks" in capsys.readouterr().err


def test_an_export_that_silences_otherwise_than_training_did_is_told(folder):
    trained_by(folder, silence="weights")
    export = ["export", *ALL[1:5], "--pairs", "en-de", "--output"]
    with pytest.warns(UserWarning, match=r"silence='weights', and here they act by .*silence='neuron'"):
        assert main([*export, "small"]) == 0
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "runs/mine/model was trained")
        assert main([*export, "right", "--export.silence", "weights"]) == 0


def test_bars_of_weights_are_shown_with_v_alone(folder, capsys):
    one = ["translate", "--model", "runs/mine/model", "--corpus.path", "data", *SHORT, "--pair", "en-de"]
    assert main(one) == 0
    assert "Loading weights" not in capsys.readouterr().err
    assert main([*one, "-v"]) == 0
    assert "Loading weights" in capsys.readouterr().err
