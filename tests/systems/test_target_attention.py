"""Attention of the target's own: against a model with its projections put in, the paper's count, runs."""

import copy

import pytest
import torch

from nspec_hf.core import UnknownPairError, as_pairs, english_centric
from nspec_hf.evaluation import Translator
from nspec_hf.recording import OWN_WEIGHTS, find_sites
from nspec_hf.systems.target_attention import target_attention
from nspec_hf.training import SpecializationTrainer
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100
from tests.helpers.systems import TESTED, numbers, plain, run, shape, stopped, weights
from tests.helpers.tiny_experiment import result, scored

PAIRS = as_pairs(["en-de", "de-en", "en-fr", "fr-en"])
ATTENTIONS = ("self_attn", "encoder_attn")

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def put_in(model, attachment, target):
    """Return a copy of the plain model whose attention is the target's."""
    changed = copy.deepcopy(model)
    if target == PAIRS[0].target:
        return changed
    for name, linear in changed.named_modules():
        own = getattr(attachment.own, f"for_{target}")
        if name.replace(".", "_") in own:
            linear.load_state_dict(own[name.replace(".", "_")].state_dict())
    return changed


@pytest.mark.parametrize("family", SIX_ARCHITECTURES)
def test_each_row_has_the_projections_of_its_target(family):
    model, batch = SIX_ARCHITECTURES[family](), random_batch(rows=6, pairs=4)
    attachment = target_attention(model, PAIRS)
    rows = [
        put_in(model, attachment, PAIRS[pair].target)(
            **{name: value[row : row + 1] for name, value in plain(batch).items()}
        ).logits
        for row, pair in enumerate(batch["pair_ids"].tolist())
    ]
    with attachment:
        found = model(**batch).logits
    torch.testing.assert_close(found, torch.cat(rows), atol=1e-4, rtol=1e-3)
    before = model(**plain(batch)).logits
    differ = [not torch.allclose(one, other, atol=1e-2) for one, other in zip(found, before, strict=True)]
    assert differ == [PAIRS[pair].target != "de" for pair in batch["pair_ids"].tolist()]


def test_beams_attend_with_the_projections_of_their_target():
    model, batch = tiny_m2m100(), random_batch(rows=4, pairs=4)
    attachment = target_attention(model, PAIRS)
    settings = {"num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    rows = [
        put_in(model, attachment, PAIRS[pair].target).generate(
            **{name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}, **settings
        )
        for row, pair in enumerate(batch["pair_ids"].tolist())
    ]
    with attachment:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pair_ids")}
        assert torch.equal(model.generate(**inputs, **settings), torch.cat(rows))


def test_every_projection_of_every_attention_has_one_more_set_a_further_target():
    model = tiny_m2m100()
    attachment = target_attention(model, PAIRS)
    sites = {site.name for site in find_sites(model, ("attention",))}
    assert len(sites) == 4 * (2 + 2 * 2)
    wanted = {f"for_{code}.{name.replace('.', '_')}.weight" for code in ("en", "fr") for name in sites}
    assert {name for name in attachment.own.state_dict() if name.endswith("weight")} == wanted


def test_a_batch_of_some_targets_leaves_the_others_without_a_gradient():
    model, batch = tiny_m2m100(), random_batch(rows=4)
    with target_attention(model, PAIRS) as attachment:
        model(**{**batch, "pair_ids": torch.tensor([1, 3, 1, 3])}).loss.backward()
    assert all(each.grad is not None for each in attachment.own.for_en.parameters())
    assert all(each.grad is None for each in attachment.own.for_fr.parameters())
    attention = [
        each
        for name, each in model.named_parameters()
        if any(part in name for part in ATTENTIONS) and "norm" not in name
    ]
    assert attention
    assert all(each.grad is None for each in attention), "the model's own belong to the first target"
    assert model.model.encoder.layers[0].fc1.weight.grad is not None


def test_new_projections_are_initialized_as_the_models_own_and_differ():
    model = tiny_m2m100(init_std=0.07, d_model=64, encoder_attention_heads=4, decoder_attention_heads=4)
    own = target_attention(model, PAIRS).own.state_dict()
    weights_ = [tensor for name, tensor in own.items() if name.endswith("weight")]
    assert all(abs(each.std().item() - 0.07) < 0.005 for each in weights_)
    assert not any(tensor.any() for name, tensor in own.items() if name.endswith("bias"))
    assert len({each[0, 0].item() for each in weights_}) == len(weights_)


def test_a_further_target_costs_what_xie_et_al_count():
    model = shape(512, 2048, 8, 40_000)
    four = target_attention(model, as_pairs(["en-de", "en-nl", "en-it", "en-ro"]))
    assert numbers(four.own) == 3 * 18 * 4 * (512 * 512 + 512) == 56_733_696  # 56.73 M
    five = target_attention(model, english_centric(["de", "nl", "it", "ro"]))
    assert numbers(five.own) == 75_644_928


def test_zero_shot_is_defined_for_targets_that_were_trained():
    model, batch = tiny_m2m100(), random_batch(rows=2)
    with target_attention(model, PAIRS) as attachment:
        assert attachment.knows("de-fr")
        assert not attachment.knows("en-cs")
        ids = torch.tensor([attachment.include("de-fr")] * 2)
        found = model(**{**batch, "pair_ids": ids}).logits
        torch.testing.assert_close(found, model(**{**batch, "pair_ids": torch.tensor([2, 2])}).logits)
        with pytest.raises(UnknownPairError, match="'en-cs'"):
            attachment.include("en-cs")


def test_a_run_is_from_scratch_scores_all_and_is_not_done_again(based, monkeypatch):
    folder, file = based
    run(file, "target_attention")
    found = result(folder, "target_attention")
    assert (found["pretraining"]["updates"], found["updates"]) == (4, 2)
    assert scored(found) == TESTED
    assert found["attachment"] == {"attention_of_targets": ["de", "en", "fr"]}
    modules = 1 + 2
    assert found["extra_parameters"] == 2 * modules * 4 * (16 * 16 + 16)
    trained = weights(folder / "work" / "target_attention" / "s1")
    assert {name.split(".")[1] for name in trained if name.startswith(OWN_WEIGHTS)} == {"for_en", "for_fr"}
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr(Translator, "translate", None)
    run(file, "target_attention")
    assert result(folder, "target_attention") == found


def test_a_killed_run_ends_with_the_same_weights(based, tmp_path):
    folder, file = based
    run(file, "target_attention")
    # The second checkpoint of the continuation: two of the beginning come before.
    stopped(folder, file, tmp_path, 4, "target_attention")
    one, other = (weights(each / "target_attention" / "s1") for each in (folder / "work", tmp_path))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
