"""`nspec translate` of many pairs at once, into what `evaluate` and `compare` read."""

import pytest

from nspec_hf import NeuronMasks, TranslateConfig, Translator
from nspec_hf.cli.main import main
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


def translated(folder, pair, masks=True):
    """Return what a translator of that pair alone returns."""
    model = load_model(folder / "runs" / "mine" / "model")
    chosen = NeuronMasks.from_pretrained(folder / "masks") if masks else None
    config = TranslateConfig(num_beams=1, length_ratio=0.5, length_extra=6)
    translator = Translator(model, load_tokenizer(folder / "runs" / "mine" / "model"), chosen, config)
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


def test_bars_of_weights_are_shown_with_v_alone(folder, capsys):
    one = ["translate", "--model", "runs/mine/model", "--corpus.path", "data", *SHORT, "--pair", "en-de"]
    assert main(one) == 0
    assert "Loading weights" not in capsys.readouterr().err
    assert main([*one, "-v"]) == 0
    assert "Loading weights" in capsys.readouterr().err
