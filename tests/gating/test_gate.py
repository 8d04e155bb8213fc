"""NeuronGate: on and off again, copies, checkpointing, compilation, and what it says of itself."""

import copy
import functools
import io
import pickle
import warnings

import pytest
import torch
import torch._dynamo
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from transformers import AutoModelForSeq2SeqLM

from nspec_hf.core import ConfigError, Pair, RoutingError, SiteMismatchError, write_json
from nspec_hf.gating import GateConfig, NeuronGate, attachment_of
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, find_sites, record, weight_fingerprint
from tests.helpers.gated import PAIRS, random_masks, without_ids
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100, tiny_marian, tiny_t5

TWELVE = [f"en-{letter * 2}" for letter in "abcdefghijkl"]


def everything_on(model):
    """All that a gate may touch: every instance attribute and hook of every module."""
    return {
        name: (dict(vars(module)), dict(module._forward_hooks), dict(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("mode", ["mask", "gradient"])
@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_detach_leaves_every_module_as_it_was(name, mode):
    model = SIX_ARCHITECTURES[name]()
    before, state = everything_on(model), copy.deepcopy(model.state_dict())
    gate = NeuronGate(model, random_masks(model), GateConfig(mode=mode))
    assert everything_on(model) == before
    gate.attach()
    assert everything_on(model) != before
    model(**random_batch())
    gate.detach()
    assert everything_on(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_forward_that_another_library_put_on_a_linear_is_kept_and_given_back():
    model = tiny_m2m100()
    linear = model.model.encoder.layers[0].fc1
    calls = []

    def counted(x):
        calls.append(len(x))
        return torch.nn.Linear.forward(linear, x)

    linear.forward = counted
    with NeuronGate(model, random_masks(model)):
        model(**random_batch())
    assert calls == [4]
    assert vars(linear)["forward"] is counted


def test_a_forward_that_is_replaced_while_gated_stays_and_the_gate_inside_lets_everything_pass():
    model = tiny_m2m100()
    batch = random_batch()
    dense = model(**without_ids(batch)).logits
    gate = NeuronGate(model, random_masks(model)).attach()
    linear = model.model.encoder.layers[0].fc1
    inner = linear.forward
    linear.forward = lambda x: inner(x)
    assert gate.status().in_place == gate.status().expected - 1
    with pytest.warns(UserWarning, match=r"Linear\.forward was replaced again"):
        gate.detach()
    assert torch.equal(model(**without_ids(batch)).logits, dense)


@pytest.mark.parametrize("mode", ["mask", "gradient"])
def test_state_dict_config_and_checkpoint_are_those_of_a_plain_model(mode, tmp_path):
    model = tiny_m2m100()
    model.save_pretrained(tmp_path / "plain")
    config, keys = model.config.to_dict(), list(model.state_dict())
    with NeuronGate(model, random_masks(model), GateConfig(mode=mode)):
        assert model.config.to_dict() == config
        assert list(model.state_dict()) == keys
        assert len(list(model.parameters())) == len(list(tiny_m2m100().parameters()))
        model.save_pretrained(tmp_path / "gated")
    plain, gated = (sorted(path.name for path in (tmp_path / kind).iterdir()) for kind in ("plain", "gated"))
    assert gated == plain
    assert (tmp_path / "gated/config.json").read_text() == (tmp_path / "plain/config.json").read_text()
    weights = [load_file(tmp_path / kind / "model.safetensors") for kind in ("plain", "gated")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "gated")


def test_a_second_gate_is_refused_and_the_first_one_stays():
    model = tiny_m2m100()
    batch = random_batch()
    first, second = (NeuronGate(model, random_masks(model, seed=seed)) for seed in (1, 2))
    with first:
        expected = model(**batch).logits
        with pytest.raises(ConfigError, match=r"has a gate already, for en-de, de-en, en-fr.*detach"):
            second.attach()
        assert attachment_of(model) is first
        assert torch.equal(model(**batch).logits, expected)
    with second:
        assert attachment_of(model) is second
        assert not torch.allclose(model(**batch).logits, expected, atol=1e-2)
    assert attachment_of(model) is None


def test_a_with_block_detaches_only_what_it_attached():
    model = tiny_m2m100()
    gate = NeuronGate(model, random_masks(model))
    gate.attach()
    assert gate.attach() is gate
    with gate, gate:
        pass
    assert gate.attached
    gate.detach()
    gate.detach()
    with pytest.raises(ZeroDivisionError), gate, gate:
        raise ZeroDivisionError
    assert not gate.attached


def test_a_deep_copy_of_a_gated_model_has_a_gate_of_its_own():
    model = tiny_m2m100()
    batch, source = random_batch(), torch.randint(3, 48, (2, 6))
    gate = NeuronGate(model, random_masks(model)).attach()
    gate.use("en-fr")
    twin = copy.deepcopy(model)
    other = attachment_of(twin)
    assert other is not gate
    assert other.model is twin
    assert other.masks is gate.masks
    expected = model(**batch).logits
    for parameter in twin.parameters():
        parameter.data.mul_(1.5)
    assert torch.equal(model(**batch).logits, expected)
    assert not torch.allclose(twin(**batch).logits, expected, atol=1e-2)
    other.use("de-en")
    assert gate.status().route.startswith("gate.use('en-fr')")
    gate.detach()
    gated = twin.generate(source, max_new_tokens=8, no_repeat_ngram_size=1)
    other.detach()
    assert "generate" not in vars(twin)
    assert not torch.equal(gated, twin.generate(source, max_new_tokens=8, no_repeat_ngram_size=1))


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, saved_whole, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("mode", ["mask", "slice", "gradient"])
def test_a_gated_model_can_be_pickled_and_its_gate_comes_along(mode, duplicate):
    """As `torch.save(model)`, spawned processes and hyperparameter searches do."""
    model, batch = tiny_m2m100(), random_batch()
    dense = model(**without_ids(batch)).logits
    source, chosen = batch["input_ids"], {"pair_ids": batch["pair_ids"], "max_new_tokens": 5}
    gate = NeuronGate(model, random_masks(model), GateConfig(mode=mode)).attach()
    expected, written = model(**batch).logits, model.generate(source, **chosen)
    twin = duplicate(model)
    other = attachment_of(twin)
    assert other is not gate
    assert other.model is twin
    assert torch.equal(twin(**batch).logits, expected)
    assert torch.equal(twin.generate(source, **chosen), written)
    gate.detach()
    assert other.status().in_place == other.status().expected > 0
    other.detach()
    assert torch.equal(twin(**without_ids(batch)).logits, dense)
    assert all("forward" not in vars(module) for module in twin.modules())
    assert "generate" not in vars(twin)


def test_a_pickled_linear_keeps_the_forward_that_another_library_had_put_on_it():
    model = tiny_m2m100()
    fc1 = model.model.encoder.layers[0].fc1
    fc1.forward = functools.partial(torch.nn.functional.linear, weight=fc1.weight)
    gate = NeuronGate(model, random_masks(model)).attach()
    twin = pickle.loads(pickle.dumps(model))
    gate.detach()
    attachment_of(twin).detach()
    own = twin.model.encoder.layers[0].fc1
    assert own.forward.keywords["weight"] is own.weight
    assert fc1.forward.keywords["weight"] is fc1.weight


def test_silence_has_no_meaning_in_mode_gradient_and_a_choice_of_it_is_warned_about():
    with pytest.warns(UserWarning, match="silence has no effect with gate.mode gradient"):
        GateConfig(mode="gradient", silence="weights")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GateConfig(mode="gradient")
        GateConfig(mode="mask", silence="weights")


def test_a_gate_says_what_it_takes():
    model = tiny_m2m100()
    masks = random_masks(model)
    with pytest.raises(ConfigError, match=r"NeuronMasks.from_pretrained .* got str"):
        NeuronGate(model, "me/my-masks")
    with pytest.raises(ConfigError, match="got NeuronMasks and str"):
        NeuronGate(model, masks, "slice")


def test_masks_for_another_model_are_refused_when_the_gate_is_built():
    wide = random_masks(tiny_m2m100(encoder_ffn_dim=32))
    with pytest.raises(SiteMismatchError, match=r"encoder\.layers\.0\.fc1 has 24 neurons in the model, 32"):
        NeuronGate(tiny_m2m100(), wide)
    with pytest.raises(SiteMismatchError, match=r"model\.encoder\.layers\.0\.fc1 is not in the model"):
        NeuronGate(tiny_t5(), random_masks(tiny_m2m100()))


def test_status_counts_what_is_in_place_and_says_whether_the_weights_are_those_counted():
    model = tiny_m2m100()
    masks = random_masks(model)
    gate = NeuronGate(model, masks)
    status = gate.status()
    assert (status.attached, status.in_place, status.expected) == (False, 0, 0)
    assert "do not say" in status.weights
    gate.attach()
    status = gate.status()
    # Four linears; two hooks on each of model, base model, encoder and decoder; generate.
    assert status.in_place == status.expected == 4 + 2 * 4 + 1
    assert status.pairs == tuple(PAIRS)
    assert status.density == pytest.approx(masks.density())
    model.model.encoder._forward_hooks.clear()
    assert gate.status().in_place == 12
    text = str(status)
    for part in ("attached", "mask", "neuron", "13 of 13", "4 gated, 0 dense", "en-de", "0.5", "pair_ids"):
        assert part in text
    gate.detach()
    masks.recipe = type(masks.recipe)(weight_fingerprint=weight_fingerprint(model))
    assert "as counted" in gate.status().weights
    model.model.encoder.layers[0].fc1.weight.data.add_(1)
    assert "changed" in gate.status().weights


@pytest.mark.parametrize("kinds", [("ffn",), ("ffn", "attention"), ("attention",)])
def test_the_weights_are_as_counted_whatever_kinds_of_sites_were_recorded(kinds):
    model = tiny_m2m100()
    stats = record(model, [random_batch()], PAIRS, RecordConfig(kinds=kinds, av=True))
    gate = NeuronGate(model, NeuronMasks.from_importance(stats, "av"))
    assert "as counted" in gate.status().weights
    model.model.encoder.layers[0].fc1.weight.data.add_(1)
    assert "changed" in gate.status().weights


# ---- gradient checkpointing --------------------------------------------------------------------------------


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-12, msg=name)


def two_batches():
    first, second = random_batch(seed=1), random_batch(seed=2)
    second["pair_ids"] = (second["pair_ids"] + 1) % 3
    return first, second


def checkpointed(name, reentrant, mode, masks):
    model = SIX_ARCHITECTURES[name]().double().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    return model, NeuronGate(model, masks, GateConfig(mode=mode)).attach()


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        yield


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", ["mask", "gradient"])
@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_checkpointed_gradients_follow_their_own_forward_pass_in_any_order(name, mode, reentrant):
    plain = SIX_ARCHITECTURES[name]().double().train()
    masks = random_masks(plain)
    first, second = two_batches()
    with NeuronGate(plain, masks, GateConfig(mode=mode)):
        expected = []
        for batch in (first, second):
            plain(**batch).loss.backward()
            expected.append(gradients(plain))
    model, _ = checkpointed(name, reentrant, mode, masks)
    for order in ((0, 1), (1, 0)):
        losses = [model(**first).loss, model(**second).loss]
        for index in order:
            losses[index].backward()
            assert_same(gradients(model), expected[index])
    (model(**first).loss + model(**second).loss).backward()
    assert_same(gradients(model), {key: expected[0][key] + expected[1][key] for key in expected[0]})
    loss = model(**first).loss
    with torch.no_grad():
        model(**second)
    loss.backward()
    assert_same(gradients(model), expected[0])


def encode(model, batch, index):
    """An encoder's output for some pair, made by a whole forward pass or by the encoder alone."""
    if index == 0:
        return model(**without_ids(batch), pair_ids=[index] * 4).encoder_last_hidden_state
    return model.get_encoder()(batch["input_ids"], batch["attention_mask"], pair_ids=[index] * 4)[0]


def decode(model, batch, hidden, index):
    """The loss of a batch whose source is encoded already."""
    target = {name: batch[name] for name in ("attention_mask", "decoder_input_ids", "labels")}
    return model(encoder_outputs=(hidden,), **target, pair_ids=[index] * 4).loss


def reused(model, batch):
    """Encoder outputs of one pair go into decoders of others."""
    return decode(model, batch, encode(model, batch, 0), 1)


def reused_from_the_encoder_alone(model, batch):
    return decode(model, batch, encode(model, batch, 2), 1)


def reused_twice(model, batch):
    hidden = encode(model, batch, 0)
    return decode(model, batch, hidden, 1) + 2 * decode(model, batch, hidden, 2)


def changed_on_the_way(model, batch):
    return decode(model, batch, encode(model, batch, 2).flip(0) * 2, 0)


def of_two_pairs_at_once(model, batch):
    first, second = encode(model, batch, 0), encode(model, batch, 1)
    return decode(model, batch, first + second, 2) + decode(model, batch, second, 0)


REUSES = [reused, reused_from_the_encoder_alone, reused_twice, changed_on_the_way, of_two_pairs_at_once]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reuse", REUSES)
@pytest.mark.parametrize("name", ["m2m100", "marian", "mt5"])
def test_encoder_outputs_that_are_used_again_keep_the_pair_that_they_were_made_by(name, reuse, reentrant):
    plain = SIX_ARCHITECTURES[name]().double().train()
    masks, batch = random_masks(plain), random_batch()
    with NeuronGate(plain, masks):
        reuse(plain, batch).backward()
        expected = gradients(plain)
    model, _ = checkpointed(name, reentrant, "mask", masks)
    reuse(model, batch).backward()
    assert_same(gradients(model), expected)


def test_encoder_outputs_from_before_the_gate_are_not_run_again_with_the_pair_of_those_who_use_them():
    masks, batch = random_masks(tiny_m2m100()), random_batch()
    model = tiny_m2m100().double().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    dense = model.get_encoder()(batch["input_ids"], batch["attention_mask"])[0]
    with NeuronGate(model, masks):
        loss = decode(model, batch, dense, 1)
        with pytest.raises(RoutingError, match="before the gate was attached"):
            loss.backward()


def test_what_embeddings_from_outside_are_made_of_needs_no_route():
    """Prompt tuning: the source's embeddings, and the target's, come from a graph of their own."""
    plain = tiny_m2m100().double().train()
    masks, batch = random_masks(plain), random_batch()

    def loss(model):
        embedded = model.get_input_embeddings()(batch["input_ids"]) * 3
        target = model.get_input_embeddings()(batch["decoder_input_ids"]) * 2
        inputs = {"inputs_embeds": embedded, "decoder_inputs_embeds": target}
        inputs |= {name: batch[name] for name in ("attention_mask", "pair_ids")}
        return model(**inputs).logits.log_softmax(-1)[..., 7].sum()

    with NeuronGate(plain, masks):
        loss(plain).backward()
        expected = gradients(plain)
    model, _ = checkpointed("m2m100", False, "mask", masks)
    loss(model).backward()
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_chosen_pair_may_change_before_a_checkpointed_backward_pass(reentrant):
    masks = random_masks(tiny_m2m100())
    model, gate = checkpointed("m2m100", reentrant, "mask", masks)
    batch = without_ids(random_batch())
    expected = []
    for index in range(2):
        model(**batch, pair_ids=[index] * 4).loss.backward()
        expected.append(gradients(model))
    gate.use("en-de")
    first = model(**batch).loss
    gate.use("de-en")
    second = model(**batch).loss
    gate.use("en-fr")
    first.backward()
    assert_same(gradients(model), expected[0])
    second.backward()
    assert_same(gradients(model), expected[1])


def test_encoders_called_alone_are_checkpointed_with_their_own_pair():
    masks = random_masks(tiny_m2m100())
    model, gate = checkpointed("m2m100", False, "mask", masks)
    batch = random_batch()
    expected, outputs = [], []
    for pair in PAIRS[:2]:
        gate.use(pair)
        model.get_encoder()(batch["input_ids"]).last_hidden_state.square().sum().backward()
        expected.append(gradients(model))
    for pair in PAIRS[:2]:
        gate.use(pair)
        outputs.append(model.get_encoder()(batch["input_ids"]).last_hidden_state.square().sum())
    gate.use(None)
    for output, reference in zip(outputs, expected, strict=True):
        output.backward()
        assert_same(gradients(model), reference)


@pytest.mark.parametrize("reentrant", [False, True])
def test_detaching_before_a_checkpointed_backward_pass_is_an_error_and_not_a_wrong_gradient(reentrant):
    masks = random_masks(tiny_m2m100())
    model, gate = checkpointed("m2m100", reentrant, "mask", masks)
    loss = model(**random_batch()).loss
    gate.detach()
    with pytest.raises(RoutingError, match="detached between"):
        loss.backward()
    loss = model(**without_ids(random_batch())).loss
    gate = NeuronGate(model, masks).attach()
    with pytest.raises(RoutingError, match="before the gate was attached"):
        loss.backward()


def test_without_checkpointing_the_backward_pass_may_come_after_detach():
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    with NeuronGate(model, masks):
        model(**batch).loss.backward()
        expected = gradients(model)
        loss = model(**batch).loss
    loss.backward()
    assert_same(gradients(model), expected)


@pytest.mark.parametrize("mode", ["mask", "slice", "gradient"])
def test_a_loop_with_a_gate_alone_trains_nothing_that_is_not_saved(mode, tmp_path):
    """Marian's positions, which transformers 5.24 gives gradients: what is loaded is what was trained."""
    model = tiny_marian().requires_grad_().train()
    batch = random_batch(pairs=1) if mode == "slice" else random_batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for weight in model.parameters():  # what is left of an earlier step is not made up for
        weight.grad = torch.ones_like(weight)
    gate = NeuronGate(model, random_masks(model), GateConfig(mode=mode)).attach()
    for _ in range(3):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    model.save_pretrained(tmp_path)
    gate.detach()
    assert all(weight.requires_grad for weight in model.parameters())
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    with torch.no_grad():
        trained, again = (each.eval()(**without_ids(batch)).logits for each in (model, loaded))
    assert torch.equal(trained, again)
    assert not torch.allclose(trained, tiny_marian()(**without_ids(batch)).logits, atol=1e-3)


def test_what_was_frozen_before_the_gate_is_frozen_after_it():
    model = tiny_marian().requires_grad_()
    frozen = "model.encoder.embed_positions.weight"
    model.get_parameter(frozen).requires_grad_(False)
    with NeuronGate(model, random_masks(model)):
        pass
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == [frozen]


# ---- torch.compile -----------------------------------------------------------------------------------------


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()
    torch.set_grad_enabled(True)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mask", "gradient"])
def test_twelve_pairs_in_turn_take_one_graph(counter, mode):
    model = tiny_m2m100(encoder_layers=1, decoder_layers=1)
    batch = without_ids(random_batch())
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    seen = []
    torch.set_grad_enabled(mode == "gradient")  # mode gradient does nothing without gradients
    with NeuronGate(model, random_masks(model, pairs=TWELVE), GateConfig(mode=mode)) as gate:
        for pair in TWELVE:
            gate.use(pair)
            logits = compiled(**batch).logits
            torch.testing.assert_close(logits, model(**batch).logits, rtol=0, atol=1e-6)
            seen.append(logits)
        assert counter.frame_count == 1
        assert mode == "gradient" or all(not torch.equal(seen[0], other) for other in seen[1:])
        for shift in range(12):
            batch["pair_ids"] = torch.tensor([shift, (shift + 1) % 12, 0, 7])
            torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=0, atol=1e-6)
    # One more: there is now an index a row, where there was one for all.
    assert counter.frame_count == 2


@pytest.mark.slow
def test_a_gate_that_comes_after_the_first_compiled_call_is_obeyed_and_so_is_its_going(counter):
    model = tiny_m2m100(encoder_layers=1, decoder_layers=1)
    batch = without_ids(random_batch())
    compiled = torch.compile(model, backend=counter)
    gate = NeuronGate(model, random_masks(model))
    gate.use("en-de")
    with torch.no_grad():
        dense = compiled(**batch).logits
        with gate:
            gated = compiled(**batch).logits
            torch.testing.assert_close(gated, model(**batch).logits, rtol=0, atol=1e-6)
        assert not torch.allclose(gated, dense, atol=1e-2)
        assert torch.equal(compiled(**batch).logits, dense)


@pytest.mark.slow
def test_a_compiled_training_step_has_the_gradients_of_an_eager_one(counter):
    model = tiny_m2m100(encoder_layers=1, decoder_layers=1).double().train()
    masks, batch = random_masks(model), random_batch()
    with NeuronGate(model, masks):
        model(**batch).loss.backward()
        expected = gradients(model)
        torch.compile(model, backend="aot_eager")(**batch).loss.backward()
    assert_same(gradients(model), expected)


def test_a_gate_composes_pairs_of_mbart_through_its_english():
    model, code = tiny_m2m100(), {"en": "en_XX", "de": "de_DE", "fr": "fr_XX"}
    usual = NeuronMasks.random(find_sites(model), ["en-de", "de-en", "en-fr"], density=0.5, seed=2)
    masks = NeuronMasks([Pair(code[pair.source], code[pair.target]) for pair in usual.pairs], usual.keep)
    gate = NeuronGate(model, masks, GateConfig(zero_shot="compose"))
    assert gate.knows("de_DE-fr_XX")
    assert not gate.knows("fr_XX-de_DE")
    assert gate.include("de_DE-fr_XX") == 3
    for site, keep_F in usual.compose("de-fr")["de-fr"].items():
        assert torch.equal(gate.masks["de_DE-fr_XX"][site], keep_F)


@pytest.mark.parametrize(("others", "silence"), [(False, "weights"), (True, "neuron")])
def test_a_gate_without_settings_acts_as_these_masks_did_in_the_training_of_the_model(
    tmp_path, monkeypatch, others, silence
):
    model = tiny_m2m100()
    masks = random_masks(model)
    model.save_pretrained(tmp_path)
    facts = NeuronGate(model, masks, GateConfig(silence="weights")).facts()
    write_json(tmp_path / "made_by.json", {"gate": facts})
    monkeypatch.chdir(tmp_path)  # whose file says nothing of a model that was made from a config
    assert NeuronGate(model, masks).config == GateConfig()
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    gate = NeuronGate(loaded, random_masks(model, seed=9) if others else masks)
    assert gate.config == GateConfig(silence=silence)
    assert NeuronGate(loaded, masks, GateConfig(mode="slice")).config == GateConfig(mode="slice")
