"""Mode `slice`: the numbers of mode `mask`, on fewer rows, and never from stale copies."""

import copy
import gc
import logging
import warnings
import weakref
from functools import partial

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.optim.optimizer import _global_optimizer_post_hooks

from nspec_hf.gating import GateConfig, NeuronGate, attachment_of, slice_mode as slicing
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers.gated import PAIRS, one_pair, random_masks, without_ids
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100, tiny_t5


@pytest.fixture(autouse=True)
def _always_slice(monkeypatch):
    # Tiny models have too few tokens for slicing to pay.
    monkeypatch.setattr(slicing, "_SAVED_TOKENS", 0)
    monkeypatch.setattr(slicing, "_SAVED_TOKENS_KEPT", 0)


def gated(model, masks, mode="slice", **changes):
    changes = {"multiple_of": 1, **changes} if mode == "slice" else changes
    return NeuronGate(model, masks, GateConfig(mode=mode, **changes))


def results(model, batch):
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    return {
        "logits": output.logits.detach(),
        "loss": output.loss.detach(),
        **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    }


def assert_close(found, expected, atol=1e-5):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=atol, msg=name)


def widths_seen(model, batch, call=None):
    """The width of what each down projection is given, in one forward pass."""
    seen, handles = {}, []
    for site in find_sites(model):
        down = model.get_submodule(site.down)
        handles.append(
            down.register_forward_pre_hook(
                lambda _, args, name=site.name: seen.update({name: args[0].shape[-1]})
            )
        )
    try:
        (call or model)(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_slices_give_the_logits_loss_and_all_gradients_of_masks(name, silence):
    model = SIX_ARCHITECTURES[name]().train()
    masks, batch = random_masks(model), random_batch()
    for index in range(2):
        own = one_pair(batch, index)
        with gated(model, masks, "mask", silence=silence):
            expected = results(model, own)
        with gated(model, masks, silence=silence):
            assert_close(results(model, own), expected)
            kept = {site: int(keep_PF[index].sum()) for site, keep_PF in masks.keep.items()}
            assert widths_seen(model, own) == kept
            model.eval()
            with torch.no_grad():
                for _ in range(2):
                    torch.testing.assert_close(model(**own).logits, expected["logits"], rtol=0, atol=1e-5)
            model.train()


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_mixed_batches_that_are_split_by_pair_equal_masked_ones(name):
    model = SIX_ARCHITECTURES[name]().train()
    masks, batch = random_masks(model), random_batch(rows=5)
    # So that the pairs keep different numbers of neurons.
    keep = dict(masks.keep)
    keep[next(iter(keep))][1, :9] = False
    masks = NeuronMasks(masks.pairs, keep)
    with gated(model, masks, "mask"):
        expected = results(model, batch)
    with gated(model, masks):
        assert_close(results(model, batch), expected)
        widest = {site: int(keep_PF.sum(1).max()) for site, keep_PF in masks.keep.items()}
        assert widths_seen(model, batch) == widest


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_beams_are_token_identical_for_one_pair_and_for_mixed_batches(name, silence):
    model = SIX_ARCHITECTURES[name]()
    masks, batch = random_masks(model), random_batch()
    found = {}
    for mode in ("mask", "slice"):
        with gated(model, masks, mode, silence=silence):
            found[mode] = [
                model.generate(
                    batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    pair_ids=pair_ids,
                    num_beams=3,
                    max_new_tokens=6,
                    no_repeat_ngram_size=1,
                )
                for pair_ids in ([1, 1, 1, 1], [0, 1, 2, 0])
            ]
    assert all(map(torch.equal, found["mask"], found["slice"]))
    assert not torch.equal(*found["mask"])


@pytest.mark.parametrize("multiple_of", [5, 8, None])
@pytest.mark.parametrize("name", ["m2m100", "mt5"])
def test_padding_to_a_multiple_adds_rows_that_say_nothing_and_learn_nothing(name, multiple_of):
    model = SIX_ARCHITECTURES[name]().train()
    masks, batch = random_masks(model, density=0.45), one_pair(random_batch(), 1)
    with gated(model, masks, "mask"):
        expected = results(model, batch)
    with gated(model, masks, multiple_of=multiple_of):
        # A leak would now be seen: with these rows infinite, 0 · inf.
        for site in masks.sites:
            with torch.no_grad():
                for weight in model.get_submodule(site.name).parameters():  # W1, and b1 where there is one
                    weight[~masks.keep[site.name][1]] = torch.inf
        seen = widths_seen(model, batch)
        assert_close(results(model, batch), expected)
    step = multiple_of or 8
    for site, keep_PF in masks.keep.items():
        kept = int(keep_PF[1].sum())
        assert seen[site] == min(-(-kept // step) * step, keep_PF.shape[1])
        assert kept % step or multiple_of != 8


def test_a_pair_that_keeps_nothing_or_everything_at_a_site_is_right_too():
    model = tiny_m2m100().train()
    masks = random_masks(model)
    first, second = list(masks.keep)[:2]
    keep = dict(masks.keep)
    keep[first][0] = False
    keep[second][0] = True
    masks = NeuronMasks(masks.pairs, keep)
    batch = one_pair(random_batch(), 0)
    for silence in ("neuron", "weights"):
        with gated(model, masks, "mask", silence=silence):
            expected = results(model, batch)
        with gated(model, masks, silence=silence):
            assert_close(results(model, batch), expected)
            assert widths_seen(model, batch)[first] == 1
            assert widths_seen(model, batch)[second] == masks.keep[second].shape[1]


def test_attention_and_ffn_out_sites_are_masked_and_never_sliced():
    model = tiny_m2m100().train()
    masks = random_masks(model, kinds=("ffn", "attention", "ffn_out"))
    batch = one_pair(random_batch(), 2)
    with gated(model, masks, "mask"):
        expected = results(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with gated(model, masks) as gate:
            assert_close(results(model, batch), expected)
            status = gate.status()
            assert "4 of 32 gated sites" in status.slices
            # Each fc2 is taken over twice, to contract and to silence its output.
            assert status.in_place == status.expected
    assert not any("forward" in vars(module) for module in model.modules())


def test_dropout_between_the_projections_acts_on_the_narrow_block():
    model = tiny_m2m100(activation_dropout=0.5).train()
    masks, batch = random_masks(model), one_pair(random_batch(), 0)
    with gated(model, masks):
        torch.manual_seed(1)
        first = model(**batch).loss
        second = model(**batch).loss
        (first + second).backward()
    assert first != second


def test_autocast_slices_in_half_precision_and_gives_gradients_in_the_weights_type():
    model = tiny_m2m100().train()
    masks, batch = random_masks(model), one_pair(random_batch(), 1)
    found = {}
    for mode in ("mask", "slice"):
        with gated(model, masks, mode), torch.autocast("cpu", torch.bfloat16):
            found[mode] = results(model, batch)
    assert_close(found["slice"], found["mask"], atol=0.05)
    assert found["slice"]["model.encoder.layers.0.fc1.weight"].dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_follow_their_own_forward_pass(reentrant):
    model = tiny_m2m100().double().train()
    masks, batch = random_masks(model), random_batch()
    batches = [one_pair(batch, 0), one_pair(random_batch(seed=2), 1), batch]
    with gated(model, masks, "mask"):
        expected = [results(model, each) for each in batches]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    with gated(model, masks), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [model(**each).loss for each in batches]
        for index in (1, 0, 2):
            model.zero_grad()
            losses[index].backward()
            found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            assert_close(found, {name: expected[index][name] for name in found}, atol=1e-12)


def test_layers_that_are_no_plain_linears_are_masked_with_a_warning():
    model = tiny_m2m100()
    masks, batch = random_masks(model), one_pair(random_batch(), 0)
    name = masks.sites[1].name
    linear = model.get_submodule(name)

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    linear.__class__ = Doubled
    with gated(model, masks, "mask"):
        expected = model(**batch).logits
    with pytest.warns(UserWarning, match=rf"{name}.*LoRA"):
        gate = gated(model, masks)
    with gate:
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
        assert "3 of 4 gated sites" in gate.status().slices


# ---- nothing stale -----------------------------------------------------------------------------------------

STEPS = st.sampled_from(
    [
        "use 0",
        "use 1",
        "use 2",
        "mixed",
        "adam",
        "fused",
        "evaluate",
        "load",
        "assign",
        "edit",
        "half",
        "set",
        "raw",
        "data",
        "numpy",
    ]
)


OPTIMIZERS = {"adam": {}, "fused": {"fused": True}}


def act(step, model, gate, state):
    """One of the things that happen to a model."""
    if step.startswith("use"):
        gate.use(PAIRS[int(step[-1])])
    elif step in ("load", "assign"):
        model.load_state_dict(copy.deepcopy(state), assign=step == "assign")
    elif step == "half":
        # Same memory, same type and the same version counter may come back with other numbers.
        model.to(torch.bfloat16).to(torch.float32)
    elif step in (*OPTIMIZERS, "raw"):
        train(step, model)
    elif step == "data":
        # A swap of averaged weights; like what NumPy writes, it tells nothing of itself.
        for name, parameter in model.named_parameters():
            parameter.data.copy_(state[name])
    elif step == "evaluate":
        model.eval()
    else:
        for site in gate.masks.sites:
            write(step, model.get_submodule(site.name).weight)


def write(step, weight):
    """Write to a weight, in a way that can be noticed or not."""
    if step == "edit":
        with torch.no_grad():
            weight.mul_(1.1)
    elif step == "set":
        weight.data = weight.data * 0.9
    else:
        weight.detach().numpy()[...] *= 0.9


def train(step, model):
    """A training step; neither a fused optimizer nor what `raw` writes moves the version counter."""
    model.train()(**without_ids(random_batch())).loss.backward()
    if step == "raw":
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data.sub_(0.1 * parameter.grad)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **OPTIMIZERS[step])
        # A pass between backward and step sees weights that the fused step then overwrites.
        with torch.no_grad():
            model(**without_ids(random_batch()))
        optimizer.step()
    model.zero_grad()


@settings(max_examples=15)
@given(steps=st.lists(STEPS, min_size=2, max_size=6), silence=st.sampled_from(["neuron", "weights"]))
def test_no_sequence_of_pairs_steps_loads_and_moves_leaves_a_stale_slice(steps, silence):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "_SAVED_TOKENS", 0)
        model = tiny_m2m100(encoder_layers=1, decoder_layers=1)
        state = copy.deepcopy(tiny_m2m100(seed=1, encoder_layers=1, decoder_layers=1).state_dict())
        masks, batch = random_masks(model), without_ids(random_batch())
        gate = gated(model, masks, silence=silence).attach()
        gate.use(PAIRS[0])
        for step in steps:
            act(step, model, gate, state)
            pair_ids = {"pair_ids": [0, 1, 2, 0]} if step == "mixed" else {}
            with torch.no_grad():
                found = model(**batch, **pair_ids).logits
                tokens = model.generate(batch["input_ids"], **pair_ids, max_new_tokens=2)
            rows = gate.last_rows
            twin = copy.deepcopy(model)
            attachment_of(twin).detach()
            with gated(twin, masks, "mask", silence=silence), torch.no_grad():
                expected = twin(**batch, pair_ids=rows.expand(4)).logits
                wanted = twin.generate(batch["input_ids"], pair_ids=rows.expand(4), max_new_tokens=2)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
            assert torch.equal(tokens, wanted)
        gate.detach()


def by_copy(parameter, value):
    parameter.data.copy_(value)


def by_index(parameter, value):
    parameter.data[...] = value


def by_numpy(parameter, value):
    parameter.detach().numpy()[...] = value.numpy()


def by_swap(parameter, value):
    parameter.data = value.clone()


def by_storage(parameter, value):
    parameter.untyped_storage().copy_(value.untyped_storage())


@pytest.mark.parametrize("write", [by_copy, by_index, by_numpy, by_swap, by_storage])
@pytest.mark.parametrize("silence", ["neuron", "weights"])
def test_translations_follow_weights_that_were_written_in_a_way_that_tells_nobody(write, silence):
    model, other = tiny_m2m100(), tiny_m2m100(seed=3)
    masks, batch = random_masks(model), random_batch(rows=20)
    with gated(model, masks, silence=silence):
        before = written(model, batch, [1] * 20)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), other.parameters(), strict=True):
                write(parameter, value.detach())
        after = written(model, batch, [1] * 20)
    with gated(other, masks, "mask", silence=silence):
        assert torch.equal(after, written(other, batch, [1] * 20))
    assert (before != after).any(dim=1).all()


def test_copies_that_are_dropped_leave_nothing_behind():
    hooks = len(_global_optimizer_post_hooks)
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    with gated(model, masks):
        dropped = []
        for _ in range(8):
            twin = copy.deepcopy(model)
            twin(**batch).loss.backward()
            written(twin, batch, [0] * 4)
            dropped.append(weakref.ref(twin))
            del twin
        gc.collect()
        assert not any(twin() for twin in dropped)
        assert len(_global_optimizer_post_hooks) == hooks


def cut_count(monkeypatch):
    """Count how many parts are cut."""
    calls = []
    original = slicing.cut
    monkeypatch.setattr(slicing, "cut", lambda *args: calls.append(args) or original(*args))
    return calls


def written(model, batch, pair_ids, **changes):
    settings = {
        "num_beams": 3,
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "no_repeat_ngram_size": 1,
        **changes,
    }
    return model.generate(batch["input_ids"], pair_ids=pair_ids, **settings)


def test_generation_cuts_the_slices_of_the_decoder_once_and_drops_them_and_every_other_call_cuts_its_own(
    monkeypatch,
):
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    calls = cut_count(monkeypatch)
    with gated(model, masks):
        for index in (0, 1, 0):
            calls.clear()
            written(model, batch, [index] * 4)
            assert len(calls) == 2 * 4
        calls.clear()
        written(model, batch, [0, 1, 2, 0])
        assert len(calls) == 3 * 2 * 4
        with torch.no_grad():
            for _ in range(2):
                calls.clear()
                model(**one_pair(batch, 0))
                assert len(calls) == 2 * 4


@pytest.mark.parametrize("share", [0.0, 0.5, 1.5, 3.2])
def test_generation_keeps_no_more_than_the_bound(share, monkeypatch):
    """What does not fit is cut in every step, for one pair, or masked, for several."""
    model = tiny_m2m100()
    masks, batch = random_masks(model), random_batch()
    keep = dict(masks.keep)
    keep[masks.sites[-1].name][1, :9] = False  # the bound is for the pair that keeps most
    masks = NeuronMasks(masks.pairs, keep)
    pair_bytes = gated(model, masks)._sites[0]._shared.pair_bytes
    decoders = [site for site in masks.sites if site.side == "decoder"]
    kept = [max(int(masks.keep[site.name][index].sum()) for index in range(3)) for site in decoders]
    assert pair_bytes == sum(2 * 16 * 4 * width for width in kept)
    calls = cut_count(monkeypatch)
    for pair_ids, pairs in (([1] * 4, 1), ([0, 1, 2, 0], 3)):
        with gated(model, masks, "mask"):
            expected = written(model, batch, pair_ids)
        with gated(model, masks, cache_bytes=int(share * pair_bytes)):
            calls.clear()
            assert torch.equal(written(model, batch, pair_ids), expected)
        encoder, decoder = pairs * 4, pairs * 4 * (1 if share > pairs else 6)
        assert len(calls) == encoder + (decoder if share > pairs or pairs == 1 or share < 1 else 0)


def test_a_generate_that_fails_leaves_no_slices_behind():
    def stop(ids, scores):
        raise InterruptedError

    model, other = tiny_m2m100(), tiny_m2m100(seed=3)
    masks, batch = random_masks(model), one_pair(random_batch(), 1)
    with torch.no_grad(), gated(model, masks):
        with pytest.raises(InterruptedError):
            written(model, batch, [1] * 4, logits_processor=[stop])
        model.load_state_dict(other.state_dict())
        found = model(**batch).logits
    with torch.no_grad(), gated(other, masks, "mask"):
        torch.testing.assert_close(found, other(**batch).logits, rtol=0, atol=1e-5)


def test_denser_masks_that_are_selected_anew_have_all_of_their_neurons_and_their_bound():
    model, batch = tiny_m2m100(), one_pair(random_batch(), 0)
    few, many = (random_masks(model, density=density) for density in (0.3, 0.8))
    with torch.no_grad(), gated(model, many, "mask"):
        expected = model(**batch).logits
    gate, other = gated(model, few), gated(model, many)
    with torch.no_grad(), gate:
        model(**batch)
        assert gate._sites[0]._shared.pair_bytes < other._sites[0]._shared.pair_bytes
        gate.replace_masks(many)
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
        assert gate._sites[0]._shared.pair_bytes == other._sites[0]._shared.pair_bytes


def test_a_composed_pair_is_sliced_too():
    model = tiny_m2m100()
    masks, batch = random_masks(model, pairs=["de-en", "en-fr"]), without_ids(random_batch())
    found = {}
    for mode in ("mask", "slice"):
        with gated(model, masks, mode, zero_shot="compose") as gate, torch.no_grad():
            gate.use("en-fr")
            model(**batch)
            gate.use("de-fr")
            found[mode] = model(**batch).logits
    torch.testing.assert_close(found["slice"], found["mask"], rtol=0, atol=1e-5)


def test_a_slice_that_inference_mode_cut_can_be_trained_with():
    model = tiny_m2m100()
    masks, batch = random_masks(model), one_pair(random_batch(), 0)
    with gated(model, masks):
        with torch.inference_mode():
            model(**batch)
        model.train()(**batch).loss.backward()
    assert model.model.encoder.layers[0].fc1.weight.grad.abs().sum() > 0


# ---- choices -----------------------------------------------------------------------------------------------


def test_few_tokens_are_masked_where_copying_would_cost_more_and_each_choice_is_logged_once(
    monkeypatch, caplog
):
    monkeypatch.setattr(slicing, "_SAVED_TOKENS", 16)
    monkeypatch.setattr(slicing, "_SAVED_TOKENS_KEPT", 4)
    model = tiny_m2m100()
    masks = random_masks(model)
    widths = {site.name: site.width for site in masks.sites}
    small = random_batch(rows=3, source_length=2, target_length=2)
    with caplog.at_level(logging.INFO, "nspec_hf"), gated(model, masks):
        for _ in range(2):
            assert widths_seen(model.train(), one_pair(small, 0)) == widths
            with torch.no_grad():
                assert widths_seen(model, one_pair(small, 0)) == widths
                assert widths_seen(model, small) == widths
                assert widths_seen(model, one_pair(random_batch(rows=9), 0)) != widths
                assert widths_seen(model, random_batch(rows=30)) != widths
        # The decoder's slices are used again.
        seen = widths_seen(model, {"batch": small, "pair_ids": [0] * 3}, partial(written, model))
        assert all((seen[name] == width) == ("encoder" in name) for name, width in widths.items())
    said = [record.message for record in caplog.records]
    assert len(said) == len(set(said))
    for part in ("of one pair are masked", "few tokens a pair are masked", "split by pair"):
        assert any(part in message for message in said)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("multiple_of", "length", "sliced"),
    [(1, 38, []), (1, 39, ["encoder"]), (1, 40, ["encoder", "decoder"]), (8, 47, []), (8, 48, ["encoder"])],
)
def test_a_pair_is_sliced_from_as_many_tokens_as_copying_costs(
    monkeypatch, rows, multiple_of, length, sliced
):
    """With 10 of 24 neurons off 16 tokens are saved of 39, with 8 of 20 of 40, with 8 of 24 of 48."""
    monkeypatch.setattr(slicing, "_SAVED_TOKENS", 16)
    model = tiny_m2m100()
    masks = random_masks(model)
    assert {site.width: int(masks.keep[site.name][0].sum()) for site in masks.sites} == {24: 14, 20: 12}
    batch = random_batch(rows=rows, source_length=length, target_length=length)
    with gated(model, masks, multiple_of=multiple_of), torch.no_grad():
        seen = widths_seen(model, batch)
    assert all((seen[site.name] < site.width) == (site.side in sliced) for site in masks.sites)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m2m100", "mt5"])
@pytest.mark.parametrize("silence", ["neuron", "weights"])
def test_all_pairs_share_one_compiled_graph(name, silence):
    pairs = [f"en-{letter * 2}" for letter in "abcdefghijkl"]
    make = {
        "m2m100": tiny_m2m100,
        "mt5": lambda **changes: tiny_t5(gated=True, num_layers=1, num_decoder_layers=1),
    }
    model = make[name](encoder_layers=1, decoder_layers=1)
    batch = without_ids(random_batch())
    masks = random_masks(model, pairs=pairs)
    keep = dict(masks.keep)
    keep[next(iter(keep))][1, :9] = False
    masks = NeuronMasks(masks.pairs, keep)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    try:
        with torch.no_grad(), gated(model, masks, silence=silence) as gate:
            for pair in pairs:
                gate.use(pair)
                torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)
            assert counter.frame_count == 1
            batch["pair_ids"] = torch.tensor([3, 1, 4, 1])
            torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)
            assert counter.frame_count == 2
    finally:
        torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("silence", ["neuron", "weights"])
def test_compiled_training_steps_of_all_pairs_share_one_graph_and_give_the_gradients_of_masks(silence):
    model = tiny_m2m100(encoder_layers=1, decoder_layers=1).train()
    masks, batch = random_masks(model), random_batch()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with gated(model, masks, silence=silence) as gate, gated(twin, masks, "mask", silence=silence):
            for pair in (0, 1, 2, 1):
                twin.load_state_dict(model.state_dict())
                expected = results(twin, one_pair(batch, pair))
                gate.use(PAIRS[pair])
                optimizer.zero_grad()
                loss = compiled(**without_ids(batch)).loss
                loss.backward()
                found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
                torch.testing.assert_close(loss.detach(), expected["loss"], rtol=0, atol=1e-5)
                assert_close(found, {name: expected[name] for name in found})
                optimizer.step()
            assert len(found) == len(expected) - 2
            assert counter.frame_count == 1
    finally:
        torch._dynamo.reset()
