"""Individual models: each sees its own direction only, their budget, and runs that were killed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from nspec_hf.core import ConfigError
from nspec_hf.data import load_tokenizer
from nspec_hf.evaluation import Translator
from nspec_hf.systems import SYSTEMS, ExperimentConfig, Run, make_system, read_settings
from nspec_hf.training import SpecializationTrainer
from tests.helpers.tiny_experiment import recipe, result, saving, scored
from tests.helpers.tiny_text import PAIRS

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")

SETTINGS = ["--system", "individual", "--settings.shape.encoder_ffn_dim", "20"]


def bench(based, folder, *arguments):
    return Run(config=read_settings(ExperimentConfig, [based[1], *arguments])[0], folder=folder)


def watched(monkeypatch):
    """Let every training be noted: updates, warm-up, pairs of the text, number of sentences, weights."""
    seen, plain = [], SpecializationTrainer.train

    def train(self, resume_from_checkpoint=None):
        start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        for text in (self.train_dataset, self.eval_dataset):
            seen.append((self.args.max_steps, self.args.warmup_steps, set(text.pair_ids), len(text), start))
        return plain(self, resume_from_checkpoint)

    monkeypatch.setattr(SpecializationTrainer, "train", train)
    return seen


def test_each_model_sees_its_own_direction_only_and_begins_untrained(based, tmp_path, monkeypatch):
    seen, own = watched(monkeypatch), bench(based, tmp_path)
    facts = make_system(SYSTEMS["individual"], {}).train(own)
    untrained = own.scratch().state_dict()
    assert [each[0] for each in seen] == [4, 4, 2, 2] * len(PAIRS)
    assert [each[2:4] for each in seen] == [
        ({index}, count) for index in range(len(PAIRS)) for count in (40, 8, 40, 8)
    ]
    for index in range(len(PAIRS)):
        first, second = seen[4 * index][4], seen[4 * index + 2][4]
        assert all(torch.equal(tensor, untrained[name]) for name, tensor in first.items())
        assert not all(torch.equal(tensor, untrained[name]) for name, tensor in second.items())
    weights = sum(tensor.numel() for tensor in own.base().parameters())
    assert facts["extra_parameters"] == (len(PAIRS) - 1) * weights
    assert facts["updates"] == 6 * len(PAIRS)
    assert {name: each["updates"] for name, each in facts["models"].items()} == dict.fromkeys(PAIRS, 6)


def test_models_that_share_the_budget_make_an_equal_part_of_the_updates_each(based, tmp_path, monkeypatch):
    seen = watched(monkeypatch)
    arguments = ["--pretrain.arguments.max_steps", "9", "--pretrain.arguments.warmup_steps", "4"]
    own = bench(based, tmp_path, *arguments, "--specialize.arguments.max_steps", "4")
    facts = make_system(SYSTEMS["individual"], {"budget": "shared"}).train(own)
    assert [each[:2] for each in seen[::2]] == [(2, 1), (1, 0)] * len(PAIRS)
    assert facts["updates"] == 3 * len(PAIRS)


def test_a_share_of_no_update_is_refused(based):
    with pytest.raises(ConfigError, match="4 models cannot share 2 updates"):
        recipe("specialize")(
            [based[1], "--system", "individual", "--row", "no", "--settings.budget", "shared"]
        )


def test_a_run_trains_and_scores_the_trained_directions_and_is_not_done_twice(based, monkeypatch):
    folder, file = based
    recipe("specialize")([file, *SETTINGS])
    found, own = result(folder, "individual"), folder / "work" / "individual" / "s1"
    assert scored(found) == set(PAIRS)
    assert all((own / pair / "model" / "model.safetensors").is_file() for pair in PAIRS)
    models = found["models"]
    config = bench(based, own)
    size = sum(each.numel() for each in config.scratch(encoder_ffn_dim=20).parameters())
    assert {each["parameters"] for each in models.values()} == {size}
    base = sum(each.numel() for each in config.base().parameters())
    assert size != base
    assert found["extra_parameters"] == len(PAIRS) * size - base
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr(Translator, "translate", None)
    recipe("specialize")([file, *SETTINGS])
    assert result(folder, "individual") == found


def test_each_direction_is_translated_by_its_own_model(based, tmp_path, monkeypatch):
    asked, plain = [], Translator.translate

    def translate(self, texts, pairs, *args, **kwargs):
        asked.append((set(pairs), {name: each.clone() for name, each in self.model.state_dict().items()}))
        return plain(self, texts, pairs, *args, **kwargs)

    monkeypatch.setattr(Translator, "translate", translate)
    own, system = bench(based, tmp_path), make_system(SYSTEMS["individual"], {})
    system.train(own)
    assert set(system.outputs(own)) == set(PAIRS)
    assert [pairs for pairs, _ in asked] == [{pair} for pair in PAIRS]
    for pair, (_, weights) in zip(PAIRS, asked, strict=True):
        saved = type(own.base()).from_pretrained(tmp_path / pair / "model").state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in saved.items())


def test_models_of_low_resource_pairs_are_smaller_and_have_a_vocabulary_of_their_own_text(
    based, tmp_path, monkeypatch
):
    own = bench(based, tmp_path, "--data.tiers", '{"de": "high", "fr": "low"}')
    small = {"encoder_ffn_dim": 12, "encoder_attention_heads": 1, "dropout": 0.3}
    budget = {"arguments": {"max_steps": 3}, "small_arguments": {"max_steps": 2}, "max_tokens": 150}
    system = make_system(SYSTEMS["individual"], {"small": small, "small_vocabulary": 60, **budget})
    budgets, plain = [], Run.train

    def train(self, *args, phase, **kwargs):
        training = getattr(self.config, phase)
        budgets.append((training.arguments["max_steps"], training.batches.max_tokens))
        return plain(self, *args, phase=phase, **kwargs)

    monkeypatch.setattr(Run, "train", train)
    system.train(own)
    assert budgets == [(2 if "fr" in pair else 3, 150) for pair in PAIRS for _ in range(2)]
    sizes = {}
    for pair in PAIRS:
        weights = load_file(tmp_path / pair / "model" / "model.safetensors")
        sizes[pair] = tuple(
            weights[name].shape[0] for name in ("model.shared.weight", "model.encoder.layers.0.fc1.weight")
        )
        saved = json.loads((tmp_path / pair / "model" / "config.json").read_text())
        low = "fr" in pair
        assert (saved["encoder_attention_heads"], saved["dropout"]) == ((1, 0.3) if low else (2, 0.1))
    base = own.base().state_dict()["model.shared.weight"].shape[0]
    assert sizes["en-de"] == sizes["de-en"] == (base, 24)
    assert sizes["en-fr"][1] == 12
    assert sizes["en-fr"][0] < base
    # Its tokenizer knows the tags of its own two languages.
    tokens = load_tokenizer(tmp_path / "en-fr" / "model").get_vocab()
    assert {"__en__", "__fr__"} <= tokens.keys()
    assert "__de__" not in tokens
    outputs = system.outputs(own)
    assert {str(pair): len(lines) for pair, lines in outputs.items()} == dict.fromkeys(PAIRS, 4)


@pytest.mark.slow
def test_a_killed_run_trains_no_model_again_and_ends_as_one_that_was_not(based, tmp_path):
    _, file = based
    base = str(based[0] / "work" / "base" / "model")
    where = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results"), "--base", base]
    recipe("specialize")([file, *SETTINGS, "--row", "whole", *where])
    killed = [file, *SETTINGS, "--row", "killed", *where]
    # In the third model, while the second checkpoint of its first phase is written.
    with saving(kill=lambda folder, update, _: "en-fr/pretraining" in folder and update == 4):
        recipe("specialize")(killed)
    with saving() as trained, pytest.warns(UserWarning, match="checkpoint-4 is not whole"):
        recipe("specialize")(killed)
    first, last = ("/".join(folder.split("/")[-3:]) for folder in (trained[0], trained[-1]))
    assert (first, last) == ("en-fr/pretraining/checkpoint-4", "s1/fr-en/checkpoint-2")
    assert len(trained) == 2 + 3
    whole, again = (result(tmp_path, name) for name in ("whole", "killed"))
    assert json.dumps(whole["scores"]) == json.dumps(again["scores"])
    for pair in PAIRS:
        one, two = (
            tmp_path / "work" / name / "s1" / pair / "model/model.safetensors" for name in ("whole", "killed")
        )
        assert one.read_bytes() == two.read_bytes()
