"""Mode `gradient`: dense forward, masked row gradients, against gradients taken apart row by row."""

import copy

import pytest
import torch
from torch import nn

from nspec_hf.core import RoutingError, UnsupportedModelError
from nspec_hf.gating import GateConfig, NeuronGate
from tests.helpers.gated import PAIRS, random_masks, without_ids
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100, tiny_t5

GRADIENT = GateConfig(mode="gradient")


def summed_loss(model, batch):
    logits = model(**batch).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")


def gradients_of(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def gated_rows(masks, parameter):
    """The masks [P, F] of a parameter's rows; a gated block has two matrices with the same neurons."""
    site, _, last = parameter.rpartition(".")
    by_linear = {**masks.keep, **{s.up: masks.keep[s.name] for s in masks.sites if s.up}}
    return by_linear.get(site) if last in ("weight", "bias") else None


def reference_gradients(model, masks, batches):
    """The dense model's gradients row by row, each masked by its own pair, and added up."""
    dense = copy.deepcopy(model)
    total = {name: torch.zeros_like(parameter) for name, parameter in dense.named_parameters()}
    trained = [name for name, parameter in dense.named_parameters() if parameter.requires_grad]
    for batch in batches:
        for row, pair in enumerate(batch["pair_ids"].tolist()):
            dense.zero_grad()
            summed_loss(dense, {k: v[row : row + 1] for k, v in without_ids(batch).items()}).backward()
            for name in trained:
                keep_PF = gated_rows(masks, name)
                gradient = dense.get_parameter(name).grad
                if keep_PF is not None:
                    gradient[~keep_PF[pair]] = 0
                total[name] += gradient
    return total


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_row_gradients_of_mixed_batches_are_masked_exactly_over_three_micro_batches(name):
    model = SIX_ARCHITECTURES[name]().double()
    masks = random_masks(model)
    batches = [random_batch(rows=rows, seed=seed) for rows, seed in ((4, 1), (3, 2), (5, 3))]
    for shift, batch in enumerate(batches):
        batch["pair_ids"] = (batch["pair_ids"] + shift) % len(PAIRS)
    with NeuronGate(model, masks, GRADIENT):
        for batch in batches:
            summed_loss(model, batch).backward()
    expected = reference_gradients(model, masks, batches)
    for parameter, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=0, atol=1e-11, msg=parameter)


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_pass_is_bit_for_bit_dense(name, dtype):
    model = SIX_ARCHITECTURES[name]().to(dtype)
    batch = random_batch()
    for wanted in (True, False):  # PyTorch itself rounds differently with and without gradients
        with torch.set_grad_enabled(wanted):
            expected = model(**without_ids(batch)).logits
            with NeuronGate(model, random_masks(model), GRADIENT):
                logits = model(**batch).logits
        assert torch.equal(logits, expected)


def test_rows_that_no_pair_of_the_batch_keeps_get_exactly_zero():
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    batch["pair_ids"] = torch.tensor([0, 2, 0, 2])
    with NeuronGate(model, masks, GRADIENT):
        model(**batch).loss.backward()
    for site in masks.sites:
        linear = model.get_submodule(site.name)
        off_F = ~(masks.keep[site.name][0] | masks.keep[site.name][2])
        assert off_F.any()
        assert linear.weight.grad[off_F].abs().max() == 0
        assert linear.bias.grad[off_F].abs().max() == 0
        # The neurons still speak: what lies above them learns from them.
        assert model.get_submodule(site.down).weight.grad[:, off_F].abs().max() > 0


def test_the_input_gets_the_dense_gradient():
    model = tiny_m2m100()
    batch = random_batch()

    def embedding_gradient(inputs):
        model.zero_grad()
        model(**inputs).loss.backward()
        return model.model.shared.weight.grad.clone()

    expected = embedding_gradient(without_ids(batch))
    with NeuronGate(model, random_masks(model), GRADIENT):
        torch.testing.assert_close(embedding_gradient(batch), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backward_inside", [True, False])  # as scripts do, and as accelerate does
def test_under_autocast_forward_and_kept_rows_are_those_of_the_dense_model(backward_inside):
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    batch["pair_ids"] = torch.zeros_like(batch["pair_ids"])
    dense = copy.deepcopy(model)
    with NeuronGate(model, masks, GRADIENT):
        with torch.autocast("cpu", torch.bfloat16):
            expected, output = dense(**without_ids(batch)), model(**batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward_inside):
            expected.loss.backward()
            output.loss.backward()
    assert torch.equal(output.logits, expected.logits)
    for name, parameter in model.named_parameters():
        reference = dense.get_parameter(name).grad
        keep_PF = gated_rows(masks, name)
        if keep_PF is not None:
            reference = reference * keep_PF[0].view(-1, *[1] * (reference.dim() - 1))
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, reference), name


def test_frozen_weights_stay_without_gradient():
    model = tiny_m2m100()
    model.model.encoder.layers[0].fc1.weight.requires_grad_(False)
    with NeuronGate(model, random_masks(model), GRADIENT):
        model(**random_batch()).loss.backward()
    assert model.model.encoder.layers[0].fc1.weight.grad is None
    assert model.model.encoder.layers[0].fc1.bias.grad is not None


def test_attention_and_ffn_out_rows_are_masked_too():
    model = tiny_m2m100().double()
    masks, batch = random_masks(model, ("ffn", "attention", "ffn_out")), random_batch()
    with NeuronGate(model, masks, GRADIENT):
        summed_loss(model, batch).backward()
    expected = reference_gradients(model, masks, [batch])
    for parameter, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=0, atol=1e-11, msg=parameter)


def test_linears_without_bias_work():
    model = tiny_t5().double()
    masks, batch = random_masks(model), random_batch()
    assert model.get_submodule(masks.sites[0].name).bias is None
    with NeuronGate(model, masks, GRADIENT):
        summed_loss(model, batch).backward()
    expected = reference_gradients(model, masks, [batch])
    for parameter, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=0, atol=1e-11, msg=parameter)


class _Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_layer_without_a_pair_is_an_error_where_no_gradient_is_wanted_too():
    model = tiny_m2m100()
    with NeuronGate(model, random_masks(model), GateConfig(mode="gradient")), torch.no_grad():
        with pytest.raises(RoutingError, match="no pair is known"):
            model.model.encoder.layers[0].fc1(torch.zeros(1, 2, 16))


def test_a_linear_with_a_forward_of_its_own_is_refused_and_nothing_is_changed():
    model = tiny_m2m100()
    gate = NeuronGate(model, random_masks(model), GRADIENT)
    model.model.decoder.layers[1].fc1.__class__ = _Scaled
    with pytest.raises(UnsupportedModelError, match=r"decoder\.layers\.1\.fc1.*_Scaled"):
        gate.attach()
    assert not gate.attached
    assert "forward" not in vars(model.model.encoder.layers[0].fc1)
    assert not model._forward_pre_hooks
    assert "generate" not in vars(model)


def test_the_other_branch_of_a_gated_block_with_a_forward_of_its_own_is_refused_too():
    model = tiny_t5(gated=True)
    masks = random_masks(model)
    model.get_submodule(masks.sites[0].up).__class__ = _Scaled
    with pytest.raises(UnsupportedModelError, match="_Scaled"):
        NeuronGate(model, masks, GRADIENT).attach()
