"""LaSS: which weights each pair keeps, rows that run with their pair's weights only, and killed runs."""

import copy
import json

import pytest
import torch
from hypothesis import given, strategies as st

from nspec_hf.core import ArtifactError, ConfigError, Pair, SiteMismatchError, UnknownPairError, as_pairs
from nspec_hf.data import EncodedCorpus
from nspec_hf.evaluation import Translator
from nspec_hf.systems import SYSTEMS, ExperimentConfig, Run, make_system, read_settings
from nspec_hf.systems.parts.subnetworks import SubnetworkAttachment, Subnetworks, keep_largest, prunable
from nspec_hf.systems.parts.zero_shot import StandIns
from nspec_hf.training import SpecializationTrainer
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100, tiny_t5
from tests.helpers.tiny_experiment import recipe, result, saving, scored
from tests.helpers.tiny_text import PAIRS as TEXT_PAIRS

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])


def subnetworks(model, pruned=0.7):
    """Return sub-networks that differ: each pair's are cut out of a model with other weights."""
    parts = []
    for seed, pair in enumerate(PAIRS):
        tuned, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        parts.append(Subnetworks.of(tuned, pair, pruned))
    return Subnetworks.joined(parts)


def pruned_copy(model, keep):
    """Return a plain model whose weights are zero where they are not kept; `keep` names [O, I] by linear."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep_OI in keep.items():
            weight = twin.get_submodule(name).weight
            for row in range(weight.shape[0]):
                for column in range(weight.shape[1]):
                    if not keep_OI[row, column]:
                        weight[row, column] = 0
    return twin


def rows_of(batch, rows):
    return {name: tensor[rows] for name, tensor in batch.items() if name != "pair_ids"}


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_matrix_keeps_exactly_its_share_and_the_largest_of_it(outputs, inputs, pruned, seed):
    # Few different values, so that many are equal.
    weight = torch.randint(-3, 4, (outputs, inputs), generator=torch.Generator().manual_seed(seed)).float()
    keep = keep_largest(weight, pruned)
    numbered = sorted(enumerate(abs(value) for value in weight.flatten().tolist()), key=lambda one: one[1])
    expected = [True] * len(numbered)
    for position, _ in numbered[: round(pruned * len(numbered))]:
        expected[position] = False
    assert keep.flatten().tolist() == expected


@pytest.mark.parametrize("pruned", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_of_0_and_1_is_refused(pruned):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        keep_largest(torch.ones(2, 2), pruned)


def test_attention_and_feed_forward_matrices_are_pruned_and_nothing_else():
    model = tiny_m2m100()
    layer = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"]
    cross = [name.replace("self_attn", "encoder_attn") for name in layer if "attn" in name]
    expected = {f"model.encoder.layers.{i}.{name}" for i in range(2) for name in layer}
    expected |= {f"model.decoder.layers.{i}.{name}" for i in range(2) for name in [*layer, *cross]}
    assert prunable(model).keys() == expected
    assert sum("wi_1" in name for name in prunable(tiny_t5(gated=True))) == 4


def test_three_in_ten_weights_are_kept_of_every_matrix_and_pair():
    found = subnetworks(tiny_m2m100())
    for keep_POI in found.keep.values():
        count = keep_POI[0].numel()
        assert keep_POI.sum(dim=(1, 2)).tolist() == [count - round(0.7 * count)] * len(PAIRS)
    assert found.density() == pytest.approx(dict.fromkeys(PAIRS, 0.3), abs=1e-3)
    one = next(iter(found.keep.values()))
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("family", SIX_ARCHITECTURES)
def test_a_mixed_batch_gives_each_row_what_a_model_with_its_weights_zeroed_gives(family):
    model = SIX_ARCHITECTURES[family]()
    found, batch = subnetworks(model), random_batch(rows=5)
    with SubnetworkAttachment(model, found, "en"):
        mixed = model(**batch).logits
    for index in range(len(PAIRS)):
        rows = batch["pair_ids"] == index
        plain = pruned_copy(model, {name: keep[index] for name, keep in found.keep.items()})
        torch.testing.assert_close(mixed[rows], plain(**rows_of(batch, rows)).logits, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(mixed[rows], model(**rows_of(batch, rows)).logits, atol=1e-2)


def test_beams_follow_their_rows():
    model = tiny_m2m100()
    found, batch = subnetworks(model), random_batch(rows=4)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    settings = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5}
    with SubnetworkAttachment(model, found, "en"):
        mixed = model.generate(**inputs, pair_ids=batch["pair_ids"], **settings)
    for index in range(len(PAIRS)):
        rows = batch["pair_ids"] == index
        plain = pruned_copy(model, {name: keep[index] for name, keep in found.keep.items()})
        alone = plain.generate(**{name: tensor[rows] for name, tensor in inputs.items()}, **settings)
        assert torch.equal(mixed[rows], alone)


def test_pruned_weights_get_no_gradient_and_kept_ones_that_of_their_rows():
    model = tiny_m2m100()
    found, batch = subnetworks(model), random_batch(rows=4, pairs=1)
    with SubnetworkAttachment(model, found, "en") as attachment:
        attachment.use("de-en")
        batch.pop("pair_ids")
        model(**batch).loss.backward()
    index = PAIRS.index("de-en")
    plain = pruned_copy(model, {name: keep[index] for name, keep in found.keep.items()})
    plain.zero_grad()
    plain(**batch).loss.backward()
    for name, keep in found.keep.items():
        gradient, whole = model.get_submodule(name).weight.grad, plain.get_submodule(name).weight.grad
        assert (gradient[~keep[index]] == 0).all()
        torch.testing.assert_close(gradient[keep[index]], whole[keep[index]])
        assert whole[~keep[index]].any()


def test_a_pair_that_was_not_trained_has_its_sources_encoder_and_its_targets_decoder():
    model = tiny_m2m100()
    found, batch = subnetworks(model), random_batch(rows=3)
    batch.pop("pair_ids")
    with SubnetworkAttachment(model, found, "en") as attachment:
        assert attachment.knows("de-fr")
        assert not attachment.knows("fr-de")
        attachment.use("de-fr")
        logits = model(**batch).logits
        with pytest.raises(UnknownPairError, match="there is no pair 'fr-de'"):
            attachment.use("fr-de")
    keep = {name: keep[1 if ".encoder." in name else 2] for name, keep in found.keep.items()}
    torch.testing.assert_close(logits, pruned_copy(model, keep)(**batch).logits, atol=2e-5, rtol=1e-4)


def test_it_is_removed_without_a_trace_and_copied_with_its_model():
    model, batch = tiny_m2m100(), random_batch()
    plain = model(**rows_of(batch, slice(None))).logits
    attachment = SubnetworkAttachment(model, subnetworks(model), "en").attach()
    inside = model(**batch).logits
    twin = copy.deepcopy(model)
    attachment.detach()
    assert torch.equal(model(**rows_of(batch, slice(None))).logits, plain)
    assert torch.equal(twin(**batch).logits, inside)
    assert model.state_dict().keys() == twin.state_dict().keys()


def test_a_file_holds_a_bit_a_weight_and_pair(tmp_path):
    found = subnetworks(tiny_m2m100())
    path = tmp_path / "found.safetensors"
    found.save(path, {"pruned": 0.7})
    loaded, about = Subnetworks.load(path)
    assert (loaded.pairs, about) == (PAIRS, {"pruned": 0.7})
    assert loaded.keep.keys() == found.keep.keys()
    assert all(torch.equal(keep, found.keep[name]) for name, keep in loaded.keep.items())
    assert loaded.fingerprint() == found.fingerprint()
    weights = sum(keep.numel() for keep in found.keep.values())
    assert weights / 8 <= found.bytes < weights / 8 * 1.3
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cut off"):
        Subnetworks.load(path)


def test_sub_networks_of_another_model_are_refused():
    found = subnetworks(tiny_m2m100())
    with pytest.raises(SiteMismatchError, match=r"4 linears differ.*\(24, 16\) in the sub-networks"):
        SubnetworkAttachment(tiny_m2m100(encoder_ffn_dim=28), found, "en")


def bench_of(based, folder):
    return Run(config=read_settings(ExperimentConfig, [based[1]])[0], folder=folder)


def at(based, folder):
    """Return arguments that put a run elsewhere, on the same base."""
    base = based[0] / "work" / "base" / "model"
    return ["--work", str(folder / "work"), "--results", str(folder / "results"), "--base", str(base)]


SETTINGS = ["--system", "lass", "--settings.updates", "3"]


def test_a_run_fine_tunes_prunes_trains_and_scores_and_is_not_done_twice(based, monkeypatch):
    folder, file = based
    recipe("specialize")([file, *SETTINGS])
    found, own = result(folder, "lass"), folder / "work" / "lass" / "s1"
    masks, _ = Subnetworks.load(own / "subnetworks.safetensors")
    assert masks.pairs == TEXT_PAIRS
    assert found["extraction"]["subnetworks"] == masks.fingerprint()
    assert found["extraction"]["density_by_pair"] == pytest.approx(dict.fromkeys(TEXT_PAIRS, 0.3), abs=2e-3)
    assert found["extraction"]["updates_a_pair"] == 3
    assert found["extraction"]["seconds"] == pytest.approx(
        sum(found["extraction"]["seconds_by_pair"].values())
    )
    assert (found["updates"], found["extra_parameters"], found["extra_bytes"]) == (2, 0, masks.bytes)
    assert scored(found) == {*TEXT_PAIRS, "de-fr", "fr-de"}
    assert not list((own / "fine_tuned").iterdir())
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr(Translator, "translate", None)
    recipe("specialize")([file, *SETTINGS])
    assert result(folder, "lass") == found


@pytest.mark.parametrize("system", ["lass", "individual"])
def test_without_validation_text_a_pair_s_own_training_has_none(based, tmp_path, system):
    _, file = based
    off = ["--data.valid_split", "", "--data.test_split", "", "--results", str(tmp_path / "results")]
    recipe("specialize")([file, "--system", system, "--row", f"{system}_blind", *off])
    found = json.loads((tmp_path / "results" / f"tiny.{system}_blind.s1.json").read_text())
    assert found["updates"] > 0


def test_each_pair_is_fine_tuned_on_its_own_text_from_the_base(based, tmp_path, monkeypatch):
    seen = []

    def train(self, resume_from_checkpoint=None):
        start = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        seen.append((self.args.max_steps, self.train_dataset, self.eval_dataset, start))
        return plain(self, resume_from_checkpoint)

    plain = SpecializationTrainer.train
    monkeypatch.setattr(SpecializationTrainer, "train", train)
    bench = bench_of(based, tmp_path)
    make_system(SYSTEMS["lass"], {}).prepare(bench.base(), bench)
    base = bench.base().state_dict()
    assert len(seen) == len(TEXT_PAIRS)
    for index, (steps, text, validation, start) in enumerate(seen):
        # An equal share of the continuation's two updates is less than one, and one is made.
        assert steps == 1
        assert isinstance(text, EncodedCorpus)
        assert (set(text.pair_ids), len(text)) == ({index}, 40)
        assert (set(validation.pair_ids), len(validation)) == ({index}, 8)
        assert all(torch.equal(tensor, base[name]) for name, tensor in start.items())


def test_the_fine_tuning_of_a_pair_has_the_settings_that_are_given(based, tmp_path, monkeypatch):
    seen = []

    def train(self, resume_from_checkpoint=None):
        made = self.args
        seen.append((made.max_steps, made.warmup_steps, made.learning_rate, self.model.config.dropout))
        return plain(self, resume_from_checkpoint)

    plain = SpecializationTrainer.train
    monkeypatch.setattr(SpecializationTrainer, "train", train)
    planned = ["--specialize.arguments.warmup_steps", "50"]
    bench = Run(config=read_settings(ExperimentConfig, [based[1], *planned])[0], folder=tmp_path)
    settings = {"updates": 1, "pruned": 0.5, "dropout": 0.25, "arguments": {"learning_rate": 0.01}}
    found = make_system(SYSTEMS["lass"], settings).prepare(bench.base(), bench)
    assert seen == [(1, 1, 0.01, 0.25)] * len(TEXT_PAIRS)
    assert found["density_by_pair"] == pytest.approx(dict.fromkeys(TEXT_PAIRS, 0.5), abs=2e-3)


@pytest.mark.slow
def test_a_killed_run_fine_tunes_no_pair_again_and_ends_as_one_that_was_not(based, tmp_path):
    _, file = based
    recipe("specialize")([file, *SETTINGS, "--row", "whole", *at(based, tmp_path)])
    killed = [file, *SETTINGS, "--row", "killed", *at(based, tmp_path)]
    # In the middle of the third pair, while its second checkpoint is written.
    with saving(kill=lambda folder, update, _begun: "en-fr" in folder and update == 3) as first:
        recipe("specialize")(killed)
    with saving() as trained, pytest.warns(UserWarning, match="checkpoint-3 is not whole"):
        recipe("specialize")(killed)
    assert any("en-de" in folder for folder in first)
    assert not any("en-de" in folder for folder in trained)
    assert [folder[-12:] for folder in trained if "en-fr" in folder] == ["checkpoint-3"]
    whole, again = (result(tmp_path, name) for name in ("whole", "killed"))
    assert whole["extraction"]["subnetworks"] == again["extraction"]["subnetworks"]
    assert json.dumps(whole["scores"]) == json.dumps(again["scores"])
    one, two = (tmp_path / "work" / name / "s1/model/model.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == two.read_bytes()


def test_settings_that_cannot_be_are_refused_before_anything_is_run(based):
    for setting, value in (("pruned", "1"), ("updates", "0")):
        with pytest.raises(ConfigError, match=setting):
            recipe("specialize")(
                [based[1], "--system", "lass", "--row", "no", f"--settings.{setting}", value]
            )


def test_a_stand_in_is_asked_for_a_pair_only_where_the_pair_is_not_trained():
    stand_ins = StandIns(PAIRS, "en")
    assert [stand_ins.at(Pair("en-fr"), side) for side in ("encoder", "decoder")] == [2, 2]
    assert [stand_ins.at("de-fr", side) for side in ("encoder", "decoder")] == [1, 2]
    with pytest.raises(UnknownPairError, match="'fr-en', whose encoder would stand in"):
        stand_ins.at("fr-de", "encoder")
