"""Mode `mask` against copies of the model whose weights are edited by hand."""

import copy
import warnings

import pytest
import torch
from torch import nn

from nspec_hf.core import UnsupportedModelError
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites, weight_fingerprint
from tests.helpers.gated import PAIRS, one_pair, random_masks, without_ids, zeroed_copy
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_bart, tiny_m2m100

ALL_KINDS = ("ffn", "attention", "ffn_out")


def rows_of_pair(batch, pair):
    """The batch with every row labelled as one pair."""
    return one_pair(batch, PAIRS.index(pair))


def run(model, batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return output, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
@pytest.mark.parametrize("pair", PAIRS[:2])
def test_logits_loss_and_gradients_are_those_of_a_zeroed_copy(name, pair):
    model = SIX_ARCHITECTURES[name]()
    masks, batch = random_masks(model), random_batch()
    expected, expected_gradients = run(zeroed_copy(model, masks, pair), without_ids(batch))
    assert not torch.allclose(model(**without_ids(batch)).logits, expected.logits, atol=1e-2)
    with NeuronGate(model, masks):
        output, gradients = run(model, rows_of_pair(batch, pair))
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.loss, expected.loss, rtol=0, atol=1e-6)
    for parameter, gradient in gradients.items():
        site, _, last = parameter.rpartition(".")
        reference = expected_gradients[parameter]
        if site in masks.keep and last in ("weight", "bias"):
            keep_F = masks[pair][site]
            assert torch.equal(gradient[~keep_F], torch.zeros_like(gradient[~keep_F])), parameter
            gradient, reference = gradient[keep_F], reference[keep_F]
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-6, msg=parameter)


def test_a_zeroed_copy_under_gelu_would_train_silenced_rows_and_the_gate_does_not():
    model = tiny_bart(activation_function="gelu")
    masks, batch = random_masks(model), random_batch()
    site = masks.sites[0].name
    off_F = ~masks["en-de"][site]
    _, reference = run(zeroed_copy(model, masks, "en-de"), without_ids(batch))
    assert reference[f"{site}.weight"][off_F].abs().max() > 1e-4
    with NeuronGate(model, masks):
        _, gradients = run(model, rows_of_pair(batch, "en-de"))
    assert gradients[f"{site}.weight"][off_F].abs().max() == 0
    assert gradients[f"{site}.bias"][off_F].abs().max() == 0


@pytest.mark.parametrize("name", ["m2m100", "bart", "t5", "mt5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silence_weights_is_bit_for_bit_the_released_product_of_mask_and_weight(name, dtype):
    model = SIX_ARCHITECTURES[name]().to(dtype)
    masks, batch = random_masks(model), random_batch()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for site, keep_F in masks["en-fr"].items():
            reference.get_submodule(site).weight.mul_(keep_F[:, None])
    expected, expected_gradients = run(reference, without_ids(batch))
    with NeuronGate(model, masks, GateConfig(silence="weights")):
        output, gradients = run(model, rows_of_pair(batch, "en-fr"))
    assert torch.equal(output.logits, expected.logits)
    for parameter, gradient in gradients.items():
        site, _, last = parameter.rpartition(".")
        reference = expected_gradients[parameter]
        if site in masks.keep and last == "weight":
            # The released code multiplies the weight, so its gradient is masked the same way.
            reference = reference * masks["en-fr"][site][:, None]
        if site in masks.keep and last == "bias":  # summed in another order
            torch.testing.assert_close(gradient, reference, msg=parameter)
        else:
            assert torch.equal(gradient, reference), parameter


def test_the_two_silences_differ_by_the_bias_only():
    model = tiny_m2m100()
    masks, batch = random_masks(model), rows_of_pair(random_batch(), "en-de")
    seen = {}
    for silence in ("neuron", "weights"):
        with NeuronGate(model, masks, GateConfig(silence=silence)):
            site = model.model.encoder.layers[0].fc1
            handle = site.register_forward_hook(lambda m, a, z, kind=silence: seen.update({kind: z.detach()}))
            model(**batch)
            handle.remove()
    off_F = ~masks["en-de"]["model.encoder.layers.0.fc1"]
    assert seen["neuron"][..., off_F].abs().max() == 0
    assert torch.equal(seen["weights"][..., off_F], site.bias[off_F].expand_as(seen["weights"][..., off_F]))
    assert torch.equal(seen["weights"][..., ~off_F], seen["neuron"][..., ~off_F])


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_a_mixed_batch_equals_each_row_alone(name):
    model = SIX_ARCHITECTURES[name]().double()
    masks, batch = random_masks(model), random_batch(rows=6)
    with NeuronGate(model, masks), torch.no_grad():
        mixed = model(**batch).logits
        alone = [model(**{key: value[row : row + 1] for key, value in batch.items()}) for row in range(6)]
        swapped = model(**{**batch, "pair_ids": batch["pair_ids"].flip(0)}).logits
    torch.testing.assert_close(mixed, torch.cat([output.logits for output in alone]), rtol=0, atol=1e-12)
    assert not torch.allclose(mixed, swapped, atol=1e-2)


def test_gradients_of_a_mixed_batch_are_the_sum_of_each_row_alone():
    model = tiny_m2m100().double()
    masks, batch = random_masks(model), random_batch()

    def gradients(part):
        model.zero_grad()
        logits = model(**part).logits
        nn.functional.cross_entropy(
            logits.flatten(0, 1), part["labels"].flatten(), reduction="sum"
        ).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    with NeuronGate(model, masks):
        mixed = gradients(batch)
        alone = [gradients({key: value[row : row + 1] for key, value in batch.items()}) for row in range(4)]
    for name, gradient in mixed.items():
        expected = sum(part[name] for part in alone)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-11, msg=name)


@pytest.mark.parametrize("name", ["m2m100", "mt5"])
def test_attention_and_ffn_out_sites_lose_their_whole_output_unit(name):
    model = SIX_ARCHITECTURES[name]()
    masks, batch = random_masks(model, ALL_KINDS, density=0.8), random_batch()
    expected = zeroed_copy(model, masks, "de-en")(**without_ids(batch)).logits
    # `weights` speaks of feed-forward neurons; the other kinds lose their bias too.
    for silence in ("neuron", "weights") if name == "mt5" else ("neuron",):
        with NeuronGate(model, masks, GateConfig(silence=silence)):
            logits = model(**rows_of_pair(batch, "de-en")).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)


def test_attention_sites_are_zeroed_bias_included_under_both_silences():
    model = tiny_m2m100()
    masks, batch = random_masks(model, ("attention",), density=0.7), random_batch()
    expected = zeroed_copy(model, masks, "en-de")(**without_ids(batch)).logits
    with NeuronGate(model, masks, GateConfig(silence="weights")):
        torch.testing.assert_close(model(**rows_of_pair(batch, "en-de")).logits, expected, rtol=0, atol=1e-6)


def test_sites_of_one_side_leave_the_other_dense():
    model = tiny_m2m100()
    sites = {site.name: site.width for site in find_sites(model) if site.side == "encoder"}
    masks = NeuronMasks.random(sites=sites, pairs=PAIRS, density=0.5, seed=3)
    gate, batch = NeuronGate(model, masks), random_batch()
    expected = zeroed_copy(model, masks, "en-de")(**without_ids(batch)).logits
    with gate:
        torch.testing.assert_close(model(**rows_of_pair(batch, "en-de")).logits, expected, rtol=0, atol=1e-6)
    assert (gate.status().gated_sites, gate.status().dense_sites) == (2, 2)


@pytest.mark.parametrize("silence", ["neuron", "weights"])
def test_under_bf16_autocast_the_gate_equals_a_copy_with_edited_weights(silence):
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    reference = zeroed_copy(model, masks, "en-de")
    if silence == "weights":
        for site in masks.sites:
            reference.get_submodule(site.name).bias.data.copy_(model.get_submodule(site.name).bias)
    with torch.autocast("cpu", torch.bfloat16):
        expected = reference(**without_ids(batch))
        with NeuronGate(model, masks, GateConfig(silence=silence)):
            output = model(**rows_of_pair(batch, "en-de"))
    assert torch.equal(output.logits, expected.logits)
    output.loss.backward()
    fc1 = model.model.encoder.layers[1].fc1
    off_F = ~masks["en-de"]["model.encoder.layers.1.fc1"]
    assert fc1.weight.grad[off_F].abs().max() == 0
    assert fc1.weight.grad[~off_F].abs().max() > 0


def test_masks_follow_a_model_that_changes_its_type_while_gated():
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    with NeuronGate(model, masks):
        before = model(**batch).logits
        model.double()
        after = model(**batch).logits
    assert after.dtype == torch.float64
    torch.testing.assert_close(after.float(), before, rtol=0, atol=1e-5)


def quantized_dynamically():
    return torch.ao.quantization.quantize_dynamic(tiny_m2m100(), {nn.Linear}, torch.qint8)


def quantized_by_torchao():
    torchao = pytest.importorskip("torchao.quantization")
    model = tiny_m2m100()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("mode", ["mask", "slice"])
@pytest.mark.parametrize("make", [quantized_dynamically, quantized_by_torchao])
def test_a_quantized_base_is_silenced_in_the_outputs_of_its_linears(make, mode, silence):
    plain, batch = tiny_m2m100(), random_batch()
    masks, reference = random_masks(plain), make()
    masks.recipe = type(masks.recipe)(weight_fingerprint=weight_fingerprint(reference))
    for site in masks.sites:
        keep_F, bias_F = masks["de-en"][site.name], plain.get_submodule(site.name).bias.detach()
        instead = bias_F if silence == "weights" else torch.zeros(site.width)
        reference.get_submodule(site.name).register_forward_hook(
            lambda _module, _args, z, keep_F=keep_F, instead=instead: torch.where(keep_F, z, instead)
        )
    model = make()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # mode `slice` says that it masks
        with NeuronGate(model, masks, GateConfig(mode=mode, silence=silence)) as gate:
            found = model(**rows_of_pair(batch, "de-en")).logits
            assert torch.equal(found, reference(**without_ids(batch)).logits)
            assert "as counted" in gate.status().weights
            if mode == "slice":
                assert gate.status().slices == ""


@pytest.mark.parametrize("make", [quantized_dynamically, quantized_by_torchao])
def test_mode_gradient_refuses_a_quantized_base_by_name(make):
    model = make()
    gate = NeuronGate(model, random_masks(tiny_m2m100()), GateConfig(mode="gradient"))
    with pytest.raises(UnsupportedModelError, match=r"encoder\.layers\.0\.fc1.*quantized.*mode 'mask'"):
        gate.attach()


def test_a_silenced_neuron_that_overflows_stays_silent():
    model = tiny_m2m100()
    masks, batch = random_masks(model), rows_of_pair(random_batch(), "en-de")
    site = model.model.encoder.layers[0].fc1
    off_F = ~masks["en-de"]["model.encoder.layers.0.fc1"]
    with NeuronGate(model, masks):
        expected = model(**batch).logits
        site.bias.data[off_F] = float("inf")
        assert torch.equal(model(**batch).logits, expected)
