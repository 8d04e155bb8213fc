"""Calls into a gated model: generate with beams, the encoder alone, wrappers, and what is refused."""

import copy
import functools
from types import MethodType

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nspec_hf.core import RoutingError, UnsupportedModelError
from nspec_hf.gating import GateConfig, NeuronGate, attachment_of
from tests.helpers.gated import Around, random_masks, zeroed_copy
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100


def sources(rows: int = 5, seed: int = 3) -> torch.Tensor:
    """Sentences of one length, so that no padding makes a row alone differ from a row in a batch."""
    return torch.randint(3, 48, (rows, 7), generator=torch.Generator().manual_seed(seed))


def tokens(generated, pad=1):
    """Each row's tokens without padding at the end."""
    rows = [row.tolist() for row in generated]
    return [row[: max((i + 1 for i, token in enumerate(row) if token != pad), default=0)] for row in rows]


# Models with random weights repeat one token for ever; forbidding that makes their answers tell them apart.
BEAMS = {"num_beams": 4, "max_new_tokens": 12, "no_repeat_ngram_size": 1}


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
@pytest.mark.parametrize("silence", ["neuron", "weights"])
def test_beam_search_gives_the_tokens_of_a_zeroed_copy(name, silence):
    model = SIX_ARCHITECTURES[name]()
    masks = random_masks(model)
    reference = zeroed_copy(model, masks, "en-fr")
    if silence == "weights":
        for site in masks.sites:
            bias = model.get_submodule(site.name).bias
            if bias is not None:
                reference.get_submodule(site.name).bias.data.copy_(bias)
    expected = reference.generate(sources(), **BEAMS)
    assert tokens(expected) != tokens(model.generate(sources(), **BEAMS))
    with NeuronGate(model, masks, GateConfig(silence=silence)) as gate:
        by_ids = model.generate(sources(), pair_ids=torch.full((5,), 2), **BEAMS)
        gate.use("en-fr")
        by_use = model.generate(input_ids=sources(), **BEAMS)
    assert torch.equal(by_ids, expected)
    assert torch.equal(by_use, expected)


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_beams_of_mixed_pairs_give_each_pair_what_it_gets_alone(name):
    model = SIX_ARCHITECTURES[name]()
    masks = random_masks(model).compose("de-fr", pivot="en")
    assert masks.pairs.index("de-fr") == 3
    pair_ids = torch.tensor([3, 0, 2, 1, 0])
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 10, "no_repeat_ngram_size": 1}
    with NeuronGate(model, masks):
        mixed = tokens(model.generate(sources(), pair_ids=pair_ids, **settings))
        alone = []
        for row in range(5):
            one = slice(row, row + 1)
            alone += tokens(model.generate(sources()[one], pair_ids=pair_ids[one], **settings))
        tiled = tokens(model.generate(sources(), pair_ids=pair_ids.flip(0), **settings))
    assert mixed == alone
    assert mixed != tiled


def test_sampling_and_greedy_search_without_cache_follow_the_pairs_too():
    model = tiny_m2m100()
    masks, pair_ids = random_masks(model), torch.tensor([0, 1, 2, 0, 1])
    with NeuronGate(model, masks):
        cached = model.generate(sources(), pair_ids=pair_ids, max_new_tokens=8)
        assert torch.equal(
            model.generate(sources(), pair_ids=pair_ids, max_new_tokens=8, use_cache=False), cached
        )
        torch.manual_seed(0)
        sampled = model.generate(
            sources(), pair_ids=pair_ids, max_new_tokens=8, do_sample=True, num_return_sequences=3
        )
    assert sampled.shape[0] == 15


def test_generate_takes_encoder_outputs_and_keeps_its_signature():
    model = tiny_m2m100()
    pair_ids = torch.tensor([0, 1, 2, 0, 1])
    doc = model.generate.__doc__
    with NeuronGate(model, random_masks(model)):
        expected = model.generate(sources(), pair_ids=pair_ids, max_new_tokens=6)
        encoded = model.get_encoder()(sources(), pair_ids=pair_ids)
        found = model.generate(encoder_outputs=encoded, pair_ids=pair_ids, max_new_tokens=6)
        assert model.generate.__doc__ == doc
        with pytest.raises(ValueError, match="pair_idz"):
            model.generate(sources(), pair_ids=pair_ids, pair_idz=pair_ids)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_encoder_outputs_need_a_pair_a_row_and_take_none_for_a_beam(count):
    model = tiny_m2m100()
    with NeuronGate(model, random_masks(model)):
        encoded = model.get_encoder()(sources(8), pair_ids=[0, 1, 2, 0, 1, 2, 0, 1])
        for given in (encoded, encoded.to_tuple()):
            for call in (model, model.generate):
                inputs = (
                    {"max_new_tokens": 2} if call == model.generate else {"decoder_input_ids": sources(8)}
                )
                with pytest.raises(RoutingError, match=f"pair_ids has {count} rows, the batch has 8"):
                    call(encoder_outputs=given, pair_ids=[0] * count, **inputs)


def test_generate_inside_generate_is_of_the_same_samples_or_refused():
    """Other samples in a callback, a multiple of the outer ones, would be taken for their beams."""
    model = tiny_m2m100()
    found = []

    def ask(rows):
        def allowed(batch, ids):
            found.append(model.generate(sources(rows), max_new_tokens=2))
            return list(range(48))

        settings = {"prefix_allowed_tokens_fn": allowed, "max_new_tokens": 2}
        model.generate(sources(2), pair_ids=[0, 2], **settings)

    with NeuronGate(model, random_masks(model)):
        ask(2)
        assert torch.equal(found[0], model.generate(sources(2), pair_ids=[0, 2], max_new_tokens=2))
        with pytest.raises(RoutingError, match="4 rows, but 2 pairs"):
            ask(4)


def test_an_error_inside_generate_leaves_no_route_behind():
    model = tiny_m2m100()
    with NeuronGate(model, random_masks(model)):

        def stumble(batch, ids):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            model.generate(
                sources(), pair_ids=torch.tensor([0] * 5), prefix_allowed_tokens_fn=stumble, max_new_tokens=3
            )
        with pytest.raises(RoutingError):
            model.get_encoder()(sources())


def test_encoder_and_decoder_called_alone_follow_the_chosen_pair():
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    reference = zeroed_copy(model, masks, "de-en")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    encoded = reference.get_encoder()(**inputs).last_hidden_state
    decoded = reference.get_decoder()(
        input_ids=batch["decoder_input_ids"], encoder_hidden_states=encoded
    ).last_hidden_state
    with NeuronGate(model, masks) as gate:
        gate.use("de-en")
        found = model.get_encoder()(**inputs).last_hidden_state
        torch.testing.assert_close(found, encoded, rtol=0, atol=1e-6)
        found = model.get_decoder()(
            input_ids=batch["decoder_input_ids"],
            encoder_hidden_states=encoded,
            pair_ids=torch.tensor([1] * 4),
        ).last_hidden_state
        torch.testing.assert_close(found, decoded, rtol=0, atol=1e-6)
        layer = model.get_encoder().layers[0]
        assert not torch.equal(layer(encoded, None), gate.detach() or layer(encoded, None))


def test_the_base_model_takes_pair_ids_and_positional_arguments():
    model = tiny_m2m100()
    batch = random_batch()
    with NeuronGate(model, random_masks(model)), torch.no_grad():
        expected = model(**batch).logits
        positional = model(
            batch["input_ids"],
            batch["attention_mask"],
            batch["decoder_input_ids"],
            pair_ids=batch["pair_ids"],
        ).logits
        hidden = model.model(**{k: v for k, v in batch.items() if k != "labels"}).last_hidden_state
        with pytest.raises(RoutingError, match="3 rows, the batch has 4"):
            model(batch["input_ids"], batch["attention_mask"], pair_ids=torch.tensor([0, 1, 2]))
    assert torch.equal(positional, expected)
    assert torch.equal(model.lm_head(hidden), expected)


class _Stumbling(nn.Module):
    def __init__(self, error=ArithmeticError):
        super().__init__()
        self.error = error

    def forward(self, *args, **kwargs):
        raise self.error("a layer that fails")


@pytest.mark.parametrize("error", [ArithmeticError, torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("whole", [True, False], ids=["model", "decoder"])
def test_a_part_called_after_an_interrupted_forward_follows_the_chosen_pair_and_not_the_old_one(error, whole):
    """KeyboardInterrupt runs no hook behind a forward; while its traceback lives, so do its frames."""
    model, batch = tiny_m2m100(), random_batch()
    ids, broken = batch["input_ids"], _Stumbling(error)
    with NeuronGate(model, random_masks(model)) as gate:
        gate.use("en-de")
        expected = model.get_encoder()(ids).last_hidden_state
        model.model.decoder.layers[1].fc2, norm = broken, model.model.decoder.layers[1].fc2
        part, given = (model, batch) if whole else (model.get_decoder(), {"input_ids": ids})
        with pytest.raises(error) as traceback:
            part(**{**given, "pair_ids": torch.full((4,), 1)})
        model.model.decoder.layers[1].fc2 = norm
        assert traceback.tb
        assert torch.equal(model.get_encoder()(ids).last_hidden_state, expected)
        other = model.get_encoder()(ids, pair_ids=torch.full((4,), 1)).last_hidden_state
        assert not torch.equal(other, expected)


def test_a_forward_that_raises_leaves_hooks_weights_and_outputs_as_they_were():
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    untouched = copy.deepcopy(model)
    gate = NeuronGate(model, masks).attach()
    expected = model(**batch).logits
    count = gate.status().in_place
    norm, model.model.decoder.layers[1].fc2 = model.model.decoder.layers[1].fc2, _Stumbling()
    with pytest.raises(ArithmeticError):
        model(**batch)
    model.model.decoder.layers[1].fc2 = norm
    assert gate.status().in_place == count == gate.status().expected
    with pytest.raises(RoutingError):  # the failed call's route is gone
        model.get_encoder()(batch["input_ids"])
    assert torch.equal(model(**batch).logits, expected)
    gate.detach()
    plain = {name: value for name, value in batch.items() if name != "pair_ids"}
    assert torch.equal(model(**plain).logits, untouched(**plain).logits)
    for name, value in untouched.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_ddp_passes_pair_ids_on(tmp_path):
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    with NeuronGate(model, masks):
        expected = model(**batch).loss
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        with NeuronGate(wrapped, masks):
            assert attachment_of(wrapped) is attachment_of(model)
            loss = wrapped(**batch).loss
            loss.backward()
            generated = wrapped.module.generate(sources(), pair_ids=[0] * 5, max_new_tokens=3)
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(loss, expected)
    assert generated.shape == (5, 4)


def test_data_parallel_replicas_are_refused():
    model = tiny_m2m100()
    with NeuronGate(model, random_masks(model)):
        replica = model._replicate_for_data_parallel()
        with pytest.raises(RoutingError, match="accelerate launch"):
            replica(**random_batch())


def test_lora_layers_are_gated_with_what_they_add():
    peft = pytest.importorskip("peft")
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    lora = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["fc1", "q_proj"], r=4, init_lora_weights=False)
    )
    batch["pair_ids"] = torch.full((4,), 1)
    plain = {name: value for name, value in batch.items() if name != "pair_ids"}
    with NeuronGate(lora, masks):
        found = lora(**batch)
        found.loss.backward()
        generated = lora.generate(input_ids=sources(), pair_ids=torch.tensor([1] * 5), **BEAMS)
    merged = zeroed_copy(copy.deepcopy(lora).merge_and_unload(), masks, "de-en")
    torch.testing.assert_close(found.logits, merged(**plain).logits, rtol=0, atol=1e-5)
    assert torch.equal(generated, merged.generate(sources(), **BEAMS))
    up = model.get_submodule("model.encoder.layers.0.fc1").lora_B["default"].weight.grad
    off_F = ~masks["de-en"]["model.encoder.layers.0.fc1"]
    assert up[off_F].abs().max() == 0
    assert up[~off_F].abs().max() > 0


@pytest.mark.parametrize("mode", ["mask", "slice", "gradient"])
def test_lora_that_is_put_on_gated_layers_later_is_refused_and_not_left_unsilenced(mode):
    """PEFT wraps the gated linear, and adds to its silenced output what nobody silences."""
    peft = pytest.importorskip("peft")
    model, batch = tiny_m2m100(), random_batch()
    ids = batch["pair_ids"]
    gate = NeuronGate(model, random_masks(model), GateConfig(mode=mode)).attach()
    expected = model(**batch).logits
    lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["fc1"], init_lora_weights=False))
    assert gate.status().in_place < gate.status().expected
    reason = r"model.encoder.layers.0.fc1, .*model as it is now"
    with pytest.raises(UnsupportedModelError, match=reason):
        lora(**batch)
    with pytest.raises(UnsupportedModelError, match=reason):
        lora.generate(input_ids=batch["input_ids"], pair_ids=ids, max_new_tokens=2)
    for part, given in ((model.model, batch), (model.get_encoder(), {"input_ids": batch["input_ids"]})):
        with pytest.raises(UnsupportedModelError, match=reason):
            part(**{**{k: v for k, v in given.items() if k != "labels"}, "pair_ids": ids})
    model = lora.unload()
    assert torch.equal(model(**batch).logits, expected)
    # Elsewhere it may come at any time.
    other = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    assert not torch.equal(other(**batch).logits, expected)


@pytest.mark.parametrize("mode", ["mask", "slice", "gradient"])
@pytest.mark.parametrize("what", ["layer", "encoder"])
def test_a_layer_that_takes_the_place_of_a_gated_one_is_refused_and_one_that_wraps_it_is_not(what, mode):
    model, batch = tiny_m2m100(), random_batch()
    gate = NeuronGate(model, random_masks(model), GateConfig(mode=mode)).attach()
    expected, layers = model(**batch).logits, model.get_encoder().layers
    layers[0] = Around(layers[0])
    assert torch.equal(model(**batch).logits, expected)
    assert gate.status().in_place == gate.status().expected
    if what == "layer":
        layers[0] = copy.deepcopy(tiny_m2m100().get_encoder().layers[0])
    else:
        model.model.encoder = tiny_m2m100().get_encoder()
    with pytest.raises(UnsupportedModelError, match=r"replaced: model.encoder.layers.0.fc1"):
        model(**batch)
    assert gate.status().in_place < gate.status().expected
    gate.detach()
    plain = {name: value for name, value in batch.items() if name != "pair_ids"}
    assert model(**plain).logits.isfinite().all()


def test_a_generate_that_was_wrapped_by_others_stays_theirs_and_lets_everything_pass():
    model = tiny_m2m100()
    gate = NeuronGate(model, random_masks(model)).attach()
    inner = model.generate
    model.generate = MethodType(lambda self, *args, **kwargs: inner(*args, **kwargs), model)
    gated = model.generate(sources(), pair_ids=[0] * 5, max_new_tokens=6)
    with pytest.warns(UserWarning, match=r"M2M100ForConditionalGeneration\.generate was replaced again"):
        gate.detach()
    dense = model.generate(sources(), max_new_tokens=6)
    del model.generate
    assert torch.equal(dense, model.generate(sources(), max_new_tokens=6))
    assert not torch.equal(dense, gated)


def test_a_model_without_generate_is_gated_as_well():
    model = tiny_m2m100().model
    masks = random_masks(model)
    batch = {name: value for name, value in random_batch().items() if name != "labels"}
    with NeuronGate(model, masks):
        assert "generate" not in vars(model)
        assert model(**batch).last_hidden_state.shape == (4, 6, 16)


def test_a_generate_that_is_wrapped_by_the_rules_still_holds_the_gate_and_is_given_back_in_silence(recwarn):
    """As FSDP2 wraps `generate`, so that it gathers weights: `functools.wraps` tells what is inside."""
    model = tiny_m2m100()
    gate = NeuronGate(model, random_masks(model)).attach()
    inner = model.generate

    @functools.wraps(inner)
    def around(*args, **kwargs):
        return inner(*args, **kwargs)

    model.generate = around
    assert gate.status().in_place == gate.status().expected
    gated = model.generate(sources(), pair_ids=[0] * 5, max_new_tokens=6)
    gate.detach()
    assert not recwarn.list
    dense = model.generate(sources(), max_new_tokens=6)
    assert torch.equal(dense, tiny_m2m100().generate(sources(), max_new_tokens=6))
    assert not torch.equal(dense, gated)
    with gate:
        assert torch.equal(model.generate(sources(), pair_ids=[0] * 5, max_new_tokens=6), gated)
