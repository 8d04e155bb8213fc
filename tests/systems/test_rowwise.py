"""Weights of their own for some rows: against a plain loop over the rows, and off again without a trace."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from nspec_hf.core import (
    Pair,
    RoutingError,
    TrainingSetupError,
    UnknownPairError,
    UnsupportedModelError,
    as_pairs,
)
from nspec_hf.gating import GateConfig, Routing, attachment_of
from nspec_hf.gating.route import Route
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import OWN_WEIGHTS, find_sites
from nspec_hf.systems import make_system
from nspec_hf.systems.parts.rowwise import OwnModules, RowwiseAttachment, RowwiseOutput, RowwisePart
from nspec_hf.systems.parts.subnetworks import Subnetworks
from tests.helpers.gated import Around
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])


def source_of(pair):
    return pair.source


class Added(nn.Linear):
    """Adds to the output what it makes of it."""

    def forward(self, x):
        return x + super().forward(x)


def without_labels(batch):
    return {name: value for name, value in batch.items() if name not in ("labels", "decoder_input_ids")}


def rowwise(model, knows=lambda pair: pair.source in ("en", "de"), seed=5):
    """Own first linears of the feed-forward blocks for source `de`; layer outputs changed by source."""
    routing = Routing(list(PAIRS))
    linears = [site.name for site in find_sites(model)]
    layers = [name.rpartition(".")[0] for name in linears]
    width = {name: model.get_submodule(name).in_features for name in linears}
    width |= {layer: width[name] for layer, name in zip(layers, linears, strict=True)}

    def make(name):
        if name in linears:
            return nn.Linear(width[name], model.get_submodule(name).out_features)
        return Added(width[name], 16)

    own = OwnModules({"de": [*linears, *layers], "en": layers}, make, seed)
    parts = [
        part
        for name, layer in zip(linears, layers, strict=True)
        for part in (
            RowwisePart(model.get_submodule(name), routing, source_of, own.at(name)),
            RowwiseOutput(model.get_submodule(layer), routing, source_of, own.at(layer)),
        )
    ]
    return RowwiseAttachment(model, routing, parts, [*linears, *layers], own, knows, {"own": "both"})


def one_by_one(model, attachment, batch):
    """Return each row's logits from a copy of the plain model that was changed by hand for that row."""
    logits = []
    for row, pair in enumerate(batch["pair_ids"].tolist()):
        changed, source = copy.deepcopy(model), PAIRS[pair].source
        for site in find_sites(model):
            layer = site.name.rpartition(".")[0]
            if source == "de":
                own = attachment.own.at(site.name)["de"]
                changed.get_submodule(site.name).load_state_dict(own.state_dict())
            added = attachment.own.at(layer)[source]
            changed.get_submodule(layer).register_forward_hook(
                lambda module, args, output, added=added: output + output @ added.weight.T + added.bias
            )
        alone = {name: value[row : row + 1] for name, value in batch.items() if name != "pair_ids"}
        logits.append(changed(**alone).logits)
    return torch.cat(logits)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.sampled_from([1, 3]))
def test_rows_come_back_in_their_order_whatever_their_keys(pair_ids, beams):
    routing = Routing(list(PAIRS))
    pairs = torch.tensor(pair_ids)
    same = pair_ids[0] if len(set(pair_ids)) == 1 else None
    routing.choose(Route(pairs, same, "test"))
    x = torch.arange(len(pair_ids) * beams * 2.0).view(-1, 2)
    weights, seen = {"en": 10.0, "de": 1000.0}, []

    def compute(rows, key):
        seen.append(key)
        return rows * weights[key]

    found = RowwisePart(nn.Identity(), routing, source_of, {}).by_key(x, compute)
    each = [weights[PAIRS[pair].source] for pair in pair_ids for _ in range(beams)]
    assert torch.equal(found, torch.stack([row * weight for row, weight in zip(x, each, strict=True)]))
    assert len(seen) == len(set(seen)), "rows of one key are computed together"


def test_a_layer_whose_pairs_are_unknown_is_refused():
    part = RowwisePart(nn.Identity(), Routing(list(PAIRS)), source_of, {})
    with pytest.raises(RoutingError, match="no pair is known"):
        part.by_key(torch.ones(2, 3), lambda rows, key: rows)


def test_a_mixed_batch_gives_each_row_what_a_model_changed_by_hand_gives():
    model, batch = tiny_m2m100(), random_batch(rows=6)
    attachment = rowwise(model)
    plain, wanted = model(**without_pairs(batch)).logits, one_by_one(model, attachment, batch)
    with attachment:
        found = model(**batch).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-2)
    assert not torch.allclose(wanted[0], one_by_one(model, attachment, other_pairs(batch))[0], atol=1e-2)


def test_beams_follow_their_rows():
    model, batch = tiny_m2m100(), random_batch(rows=5)
    batch["input_ids"][:, 0] = torch.arange(3, 8)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    settings = {"num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with rowwise(model):
        mixed = model.generate(**inputs, pair_ids=batch["pair_ids"], **settings)
        alone = [
            model.generate(
                **{name: value[row : row + 1] for name, value in inputs.items()},
                pair_ids=batch["pair_ids"][row : row + 1],
                **settings,
            )
            for row in range(5)
        ]
    assert torch.equal(mixed, torch.cat(alone))


def test_gradients_are_those_of_the_rows_alone_and_none_for_absent_keys():
    model, batch = tiny_m2m100(), random_batch(rows=4)
    attachment = rowwise(model)
    with attachment:
        loss(model, batch).backward()
        mixed = gradients(model)
        model.zero_grad()
        for row in range(4):
            alone = {name: value[row : row + 1] for name, value in batch.items()}
            loss(model, alone).backward()
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(mixed[name], gradient, atol=1e-4, rtol=1e-3)
        model.zero_grad()
        loss(model, {**batch, "pair_ids": torch.tensor([0, 2, 2, 0])}).backward()
    assert all(parameter.grad is None for parameter in attachment.own.for_de.parameters())
    assert all(parameter.grad is not None for parameter in attachment.own.for_en.parameters())


def test_gradient_checkpointing_changes_nothing_also_with_two_forwards_before_a_backward():
    model, batch = tiny_m2m100().train(), random_batch(rows=4)
    other = other_pairs(random_batch(rows=4, seed=8))
    found = []
    with rowwise(model):
        for checkpoints in (False, True):
            if checkpoints:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            first, second = loss(model, batch), loss(model, other)
            second.backward()
            first.backward()
            found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_it_is_removed_without_a_trace():
    model, batch = tiny_m2m100(), random_batch()
    before, names, plain = vars(model).keys(), list(model.state_dict()), model(**without_pairs(batch)).logits
    attachment = rowwise(model).attach()
    assert all(attachment.in_place)
    assert [name for name in model.state_dict() if name.startswith(OWN_WEIGHTS)]
    attachment.detach()
    assert list(model.state_dict()) == names
    assert vars(model).keys() == before
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(model(**without_pairs(batch)).logits, plain)


def test_a_layer_that_fails_leaves_a_model_that_runs_and_can_be_given_back():
    model, batch = tiny_m2m100(), random_batch()
    plain = model(**without_pairs(batch)).logits
    with rowwise(model), pytest.raises(IndexError):
        model(**{**batch, "input_ids": batch["input_ids"] + 1000})
    assert attachment_of(model) is None
    assert torch.equal(model(**without_pairs(batch)).logits, plain)


def test_a_copied_model_has_weights_of_its_own():
    model, batch = tiny_m2m100(), random_batch()
    with rowwise(model) as attachment:
        twin = copy.deepcopy(model)
        wanted = model(**batch).logits
        with torch.no_grad():
            for parameter in attachment.own.parameters():
                parameter.add_(1.0)
        assert torch.equal(twin(**batch).logits, wanted)
        assert not torch.allclose(model(**batch).logits, wanted)
        own = attachment_of(twin)
        assert own.own is getattr(twin, OWN_WEIGHTS)
        assert own.own is not attachment.own
        own.use("de-en")
        with pytest.raises(RoutingError):
            model(**without_pairs(batch))


@pytest.mark.parametrize("family", SIX_ARCHITECTURES)
def test_a_whole_layer_may_return_a_tensor_or_a_tuple(family):
    model, batch = SIX_ARCHITECTURES[family](), random_batch()
    routing = Routing(list(PAIRS))
    layers = sorted(
        {".".join(site.name.split(".")[: 4 if "model" in site.name[:5] else 3]) for site in find_sites(model)}
    )
    own = OwnModules({"en": layers, "de": layers}, lambda name: Added(16, 16), 1)
    parts = [RowwiseOutput(model.get_submodule(name), routing, source_of, own.at(name)) for name in layers]
    plain = model(**without_pairs(batch)).logits
    with RowwiseAttachment(model, routing, parts, layers, own):
        mixed = model(**batch).logits
        for row in range(4):
            alone = model(**{name: value[row : row + 1] for name, value in batch.items()}).logits
            torch.testing.assert_close(mixed[row : row + 1], alone, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(mixed, plain, atol=1e-2)


def test_a_layer_that_takes_the_place_of_one_with_own_weights_is_refused_and_one_that_wraps_it_is_not():
    model, batch = tiny_m2m100(), random_batch()
    attachment = rowwise(model).attach()
    expected, layers = model(**batch).logits, model.get_decoder().layers
    layers[1] = Around(layers[1])
    assert torch.equal(model(**batch).logits, expected)
    layers[1] = copy.deepcopy(tiny_m2m100().get_decoder().layers[1])
    for call in (model, model.generate):
        with pytest.raises(UnsupportedModelError, match=r"replaced: model.decoder.layers.1.fc1, model.dec"):
            call(**without_labels(batch))
    attachment.detach()
    assert model(**without_pairs(batch)).logits.isfinite().all()


def test_new_weights_follow_the_seed_and_leave_the_programs_random_numbers():
    make = lambda name: nn.Linear(3, 3)  # noqa: E731
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    one, same, other = (OwnModules({"en-de": ["a.b"]}, make, seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(torch.rand(2), wanted)
    assert list(one) == ["for_en-de.a_b.weight", "for_en-de.a_b.bias"]
    assert torch.equal(one["for_en-de.a_b.weight"], same["for_en-de.a_b.weight"])
    assert not torch.equal(one["for_en-de.a_b.weight"], other["for_en-de.a_b.weight"])


@pytest.mark.parametrize("name", ["pair_adapters", "target_attention"])
def test_new_weights_of_a_system_are_drawn_with_the_seed_of_its_run(name):
    def drawn(seed):
        run = SimpleNamespace(
            pairs=list(PAIRS), config=SimpleNamespace(data=SimpleNamespace(pivot="en")), seed=seed
        )
        return make_system(name).attach(tiny_m2m100(), run).own.state_dict()

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["neuron_specialization", "pair_adapters", "lass", "differentiation"])
def test_what_was_not_trained_goes_through_the_pivot_of_the_experiment(name, tmp_path):
    """The text is German-centric, so that en-fr has halves and de-fr needs none."""
    model, pairs = tiny_m2m100(), as_pairs(["en-de", "de-en", "fr-de", "de-fr"])
    config = SimpleNamespace(data=SimpleNamespace(pivot="de"), gate=GateConfig())
    run = SimpleNamespace(pairs=pairs, config=config, seed=1, folder=tmp_path)
    masks = NeuronMasks.random(find_sites(model), pairs, 0.5)
    masks.save_pretrained(tmp_path / "masks")
    parts = [Subnetworks.of(tiny_m2m100(seed=seed), pair, 0.5) for seed, pair in enumerate(pairs)]
    Subnetworks.joined(parts).save(tmp_path / "subnetworks.safetensors")
    with make_system(name).attach(model, run) as attachment:
        assert attachment.knows("en-fr")
        assert attachment.include("en-fr") == len(pairs)
        assert not attachment.knows("en-cs")


def test_a_language_may_be_called_like_a_method_of_modules():
    own = OwnModules({"to": ["a.b"], "zh-CN->en": ["a.0.b"]}, lambda name: nn.Linear(1, 1), 1)
    assert own.at("a.b").keys() == {"to"}
    assert own.at("a.0.b").keys() == {"zh-CN->en"}


def test_a_pair_gets_an_index_where_all_it_needs_is_there_and_is_refused_elsewhere():
    model, batch = tiny_m2m100(), random_batch(rows=2)
    with rowwise(model) as attachment:
        assert attachment.knows("de-fr")
        index = attachment.include("de-fr")
        assert attachment.pairs == [*PAIRS, Pair("de-fr")]
        found = model(**{**batch, "pair_ids": torch.tensor([index, 1])}).logits
        wanted = model(**{**batch, "pair_ids": torch.tensor([1, 1])}).logits
        torch.testing.assert_close(found, wanted)
        assert not attachment.knows("fr-de")
        with pytest.raises(UnknownPairError, match="en-de, de-en, en-fr"):
            attachment.include("fr-de")


def test_a_checkpoint_of_other_own_weights_is_refused(tmp_path):
    model = tiny_m2m100()
    with rowwise(model) as attachment:
        model.save_pretrained(tmp_path / "same")
        attachment.check_beside(tmp_path / "same")
        attachment.check_beside(tmp_path / "nowhere")
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(TrainingSetupError, match="none there"):
        attachment.check_beside(tmp_path / "plain")
    routing = Routing(list(PAIRS))
    without = RowwiseAttachment(model, routing, [], ["model.encoder.layers.0.fc1"])
    with pytest.raises(TrainingSetupError, match="none here"):
        without.check_beside(tmp_path / "same")


def without_pairs(batch):
    return {name: value for name, value in batch.items() if name != "pair_ids"}


def other_pairs(batch):
    return {**batch, "pair_ids": (batch["pair_ids"] + 1) % len(PAIRS)}


def loss(model, batch):
    logits = model(**batch).logits
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100, reduction="sum"
    )


def gradients(model):
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
