"""Recording equals a plain loop over unpadded sentences, one at a time, and leaves the model as it was."""

import copy

import peft
import pytest
import torch
from accelerate import cpu_offload
from torch.nn import functional
from transformers.models.mbart.modeling_mbart import shift_tokens_right

from nspec_hf.core import (
    ConfigError,
    EmptyPairError,
    RoutingError,
    SiteMismatchError,
    UnknownPairError,
    UnsupportedModelError,
)
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import KINDS, RecordConfig, find_sites, record, site_activation
from tests.helpers.families import DECODERS, TWO_SIDED, audio_batch, tiny_led, tiny_llama, tiny_whisper
from tests.helpers.gated import without_ids
from tests.helpers.models import (
    VOCABULARY,
    random_batch,
    tiny_bart,
    tiny_m2m100,
    tiny_marian,
    tiny_mbart,
    tiny_pegasus,
    tiny_t5,
)

PAIRS = ["en-de", "de-en", "en-fr"]


def batches_of(count=3):
    return [random_batch(seed=seed) for seed in range(count)]


def sentences_in(batches, two_sided=True):
    """Yield each row without its padding, as a batch of one: the pair, the model's inputs, the labels."""
    for batch in batches:
        for row in range(len(batch["pair_ids"])):
            source = int(batch["attention_mask"][row].sum())
            target = int((batch["labels"][row] != -100).sum()) if two_sided else source
            inputs = {"input_ids": batch["input_ids"][row : row + 1, :source]}
            if two_sided:
                inputs["decoder_input_ids"] = batch["decoder_input_ids"][row : row + 1, :target]
            yield int(batch["pair_ids"][row]), inputs, batch["labels"][row : row + 1, :target]


def watch(model, sites, seen):
    """Put each site's neurons into `seen` at every forward pass, and keep their gradients."""

    def keep(name, tensor):
        seen[name] = tensor
        if tensor.requires_grad:
            tensor.retain_grad()

    for site in sites:
        module = model.get_submodule(site.down or site.name)
        if site.down:
            module.register_forward_pre_hook(lambda _m, args, name=site.name: keep(name, args[0]))
        else:
            module.register_forward_hook(lambda _m, _a, out, name=site.name: keep(name, out))


def plain_loop(model, batches, kinds, two_sided=True):
    """Return counts of tokens, counts of sentences, Σ|h| and Σ|∂L/∂h · h| by site, one sentence at a time."""
    model = copy.deepcopy(model)
    sites = find_sites(model, kinds)
    seen = {}
    watch(model, sites, seen)
    sums = {
        what: {site.name: torch.zeros(len(PAIRS), site.width, dtype=torch.float64) for site in sites}
        for what in ("tokens", "sentences", "av", "te")
    }
    for pair, inputs, labels in sentences_in(batches, two_sided):
        logits = model(**inputs).logits
        if not two_sided:
            logits, labels = logits[:, :-1], labels[:, 1:]
        functional.cross_entropy(logits[0], labels[0], reduction="sum").backward()
        for name, hidden in seen.items():
            values = hidden.detach().reshape(-1, hidden.shape[-1])
            grad = hidden.grad.reshape(values.shape)
            sums["tokens"][name][pair] += (values > 0).sum(0)
            sums["sentences"][name][pair] += (values > 0).any(0)
            sums["av"][name][pair] += values.abs().sum(0)
            sums["te"][name][pair] += (grad * values).abs().sum(0)
    return sums


def same(found, expected):
    return all(torch.equal(found[name], expected[name].to(found[name].dtype)) for name in expected)


def close(found, expected):
    return all(torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-13) for name in expected)


@pytest.mark.parametrize("name", TWO_SIDED)
def test_recording_equals_a_loop_over_unpadded_sentences(name):
    model, batches = TWO_SIDED[name]().double(), batches_of()
    expected = plain_loop(model, batches, KINDS)
    stats = record(model, batches, PAIRS, RecordConfig(kinds=KINDS, av=True, te=True))
    assert same(stats.counts, expected["tokens"])
    assert close(stats.sums["av"], expected["av"])
    assert close(stats.sums["te"], expected["te"])
    assert same(
        record(model, batches, PAIRS, RecordConfig(kinds=KINDS, count="sentences")).counts,
        expected["sentences"],
    )
    assert not same(stats.counts, expected["sentences"])


def test_importance_may_be_that_of_the_smoothed_loss():
    """The loss by its equation: 1 − ε of the word's, and ε of the mean over the whole vocabulary."""
    model, batches = TWO_SIDED["m2m100"]().double(), batches_of()
    plain = functional.cross_entropy

    def smoothed(logits, labels, reduction):
        assert reduction == "sum"
        logs = logits.log_softmax(-1)
        return 0.9 * plain(logits, labels, reduction="sum") - 0.1 * logs.mean(-1).sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "cross_entropy", smoothed)
        expected = plain_loop(model, batches, KINDS)
    found = record(model, batches, PAIRS, RecordConfig(kinds=KINDS, te=True, label_smoothing=0.1))
    assert close(found.sums["te"], expected["te"])
    assert not close(found.sums["te"], plain_loop(model, batches, KINDS)["te"])


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_only_models_count_every_token_that_is_no_padding(name):
    model, batches = DECODERS[name]().double(), batches_of()
    for batch in batches:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        del batch["decoder_input_ids"]
    expected = plain_loop(model, batches, KINDS, two_sided=False)
    stats = record(model, batches, PAIRS, RecordConfig(kinds=KINDS, av=True, te=True))
    assert same(stats.counts, expected["tokens"])
    assert close(stats.sums["av"], expected["av"])
    assert close(stats.sums["te"], expected["te"])
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert sum(stats.tokens(pair, "decoder") for pair in PAIRS) == tokens
    assert stats.tokens("en-de", "encoder") == 0


def test_tokens_and_sentences_are_counted_without_padding():
    batches = batches_of()
    stats = record(tiny_m2m100(), batches, PAIRS)
    for index, pair in enumerate(PAIRS):
        rows = [(batch, batch["pair_ids"] == index) for batch in batches]
        assert stats.sentences(pair) == sum(int(mine.sum()) for _, mine in rows)
        encoder = sum(int(batch["attention_mask"][mine].sum()) for batch, mine in rows)
        decoder = sum(int((batch["labels"][mine] != -100).sum()) for batch, mine in rows)
        assert (stats.tokens(pair, "encoder"), stats.tokens(pair, "decoder")) == (encoder, decoder)
        assert encoder < sum(int(mine.sum()) for _, mine in rows) * 7


def test_padding_would_have_counted():
    model, batches = tiny_m2m100(), batches_of()
    padded = [
        {**batch, "attention_mask": torch.ones_like(batch["attention_mask"]), "labels": batch["labels"].abs()}
        for batch in batches
    ]
    site = find_sites(model)[0].name
    assert record(model, padded, PAIRS).counts[site].sum() > record(model, batches, PAIRS).counts[site].sum()


def test_what_a_neuron_counts_does_not_depend_on_its_batch():
    model, batches = tiny_m2m100().double(), batches_of()
    rows = [
        {name: value[row : row + 1] for name, value in batch.items()} for batch in batches for row in range(4)
    ]
    whole, alone = record(model, batches, PAIRS), record(model, rows, PAIRS)
    assert same(whole.counts, alone.counts)


def test_a_second_pass_adds_up_to_twice_the_counts():
    model, batches = tiny_m2m100(), batches_of()
    once = record(model, batches, PAIRS)
    twice = record(model, batches, PAIRS).merge(record(model, batches, PAIRS))
    assert all(torch.equal(twice.counts[name], 2 * counts) for name, counts in once.counts.items())
    assert same(record(model, batches * 2, PAIRS).counts, twice.counts)
    assert once.counts["model.decoder.layers.1.fc1"].sum() > 0


def test_importance_is_the_sum_divided_by_the_tokens_of_the_side():
    model, batches = tiny_m2m100().double(), batches_of()
    expected = plain_loop(model, batches, ("ffn",))
    stats = record(model, batches, PAIRS, RecordConfig(te=True))
    theta = stats.importance("te")
    for site in stats.sites:
        tokens = torch.tensor([[stats.tokens(pair, site.side)] for pair in PAIRS])
        assert torch.allclose(theta[site.name], expected["te"][site.name] / tokens, rtol=1e-9)


def test_gated_blocks_are_counted_on_the_product_or_on_the_gate():
    model, batches = tiny_t5(gated=True).double(), batches_of()
    by_product, by_gate = (
        record(model, batches, PAIRS, RecordConfig(active_on=on)) for on in ("product", "gate")
    )
    assert not same(by_product.counts, by_gate.counts)
    sites = find_sites(model)
    expected = {site.name: torch.zeros(len(PAIRS), site.width) for site in sites}
    gates = {}
    for site in sites:
        model.get_submodule(site.name).register_forward_hook(
            lambda _m, _a, out, site=site: gates.update({site.name: site_activation(model, site)(out)})
        )
    for pair, inputs, _ in sentences_in(batches):
        model(**inputs)
        for name, gate in gates.items():
            expected[name][pair] += (gate[0] > 0).sum(0)
    assert same(by_gate.counts, expected)


def test_whisper_counts_the_frames_that_are_no_padding():
    model, batch = tiny_whisper().double(), audio_batch()
    stats = record(model, [batch], ["en-de", "de-en"])
    # 32 frames become 16 positions; the row with 19 frames has 10.
    assert [stats.tokens(pair, "encoder") for pair in stats.pairs] == [16 + 10, 16]
    assert [stats.tokens(pair, "decoder") for pair in stats.pairs] == [10, 3]
    site, seen = find_sites(model)[0], {}
    watch(model, [site], seen)
    model(input_features=batch["input_features"], labels=batch["labels"])
    active = seen[site.name] > 0
    assert torch.equal(stats.counts[site.name][0], active[0].sum(0) + active[2, :10].sum(0))


def test_the_decoders_padding_is_told_by_its_mask_where_there_are_no_labels():
    model, batches = tiny_m2m100().double(), batches_of()
    masked = [
        {
            **{name: batch[name] for name in batch if name != "labels"},
            "decoder_attention_mask": batch["labels"] != -100,
        }
        for batch in batches
    ]
    assert same(record(model, masked, PAIRS).counts, record(model, batches, PAIRS).counts)


def test_decoder_inputs_are_made_from_labels_where_they_are_missing():
    model, batches = tiny_m2m100().double(), batches_of()
    shifted = [
        {name: value for name, value in batch.items() if name != "decoder_input_ids"} for batch in batches
    ]
    assert same(record(model, shifted, PAIRS).counts, record(model, batches, PAIRS).counts)


def test_other_columns_are_left_out():
    model, batches = TWO_SIDED["bart"](), batches_of(1)
    more = [{**batches[0], "pair": ["en-de"] * 4, "length": torch.arange(4)}]
    assert same(record(model, more, PAIRS).counts, record(model, batches, PAIRS).counts)


@pytest.mark.parametrize("te", [False, True])
def test_a_model_in_training_is_left_as_it_was(te):
    model = tiny_m2m100(dropout=0.5, activation_dropout=0.5, encoder_layerdrop=0.5)
    model.train()
    model.model.decoder.eval()
    model.model.encoder.layers[0].fc1.weight.requires_grad_(False)
    batch = random_batch()
    model(**{name: value for name, value in batch.items() if name != "pair_ids"}).loss.backward()
    before = {
        name: (p.detach().clone(), p.requires_grad, None if p.grad is None else p.grad.clone())
        for name, p in model.named_parameters()
    }
    training = [module.training for module in model.modules()]
    # Were it recorded in training mode, dropout would give other counts each time.
    config = RecordConfig(te=te)
    assert same(record(model, [batch], PAIRS, config).counts, record(model, [batch], PAIRS, config).counts)
    assert [module.training for module in model.modules()] == training
    for name, p in model.named_parameters():
        value, trained, grad = before[name]
        assert torch.equal(p, value)
        assert p.requires_grad == trained
        assert (p.grad is None) if grad is None else torch.equal(p.grad, grad)
    assert hooks_of(model) == 0


def hooks_of(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()
    )


@pytest.mark.parametrize("te", [False, True])
def test_a_pass_that_fails_leaves_nothing_behind(te, monkeypatch):
    model, calls = tiny_m2m100().train(), []
    plain = model.model.decoder.forward

    def fails_at_the_second_batch(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise IndexError("a layer fails")
        return plain(*args, **kwargs)

    monkeypatch.setattr(model.model.decoder, "forward", fails_at_the_second_batch)
    with pytest.raises(IndexError, match="a layer fails"):
        record(model, [random_batch(), random_batch()], PAIRS, RecordConfig(te=te))
    assert hooks_of(model) == 0
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_importance_is_recorded_under_no_grad_and_with_frozen_weights():
    model, batches = tiny_m2m100().double(), batches_of(1)
    expected = record(model, batches, PAIRS, RecordConfig(te=True))
    with torch.no_grad():
        found = record(model.requires_grad_(False), batches, PAIRS, RecordConfig(te=True))
    assert close(found.sums["te"], expected.sums["te"])
    assert not any(p.requires_grad for p in model.parameters())


def recomputed(module):
    forward = module.forward
    module.forward = lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
        forward, *args, use_reentrant=False, **kwargs
    )


def test_layers_that_run_again_in_the_backward_pass_are_counted_once():
    batches = batches_of()
    plain, again = tiny_m2m100().double(), tiny_m2m100().double()
    for layer in (*again.model.encoder.layers, *again.model.decoder.layers):
        recomputed(layer)
    config = RecordConfig(kinds=KINDS, av=True, te=True)
    expected, found = record(plain, batches, PAIRS, config), record(again, batches, PAIRS, config)
    assert same(found.counts, expected.counts)
    assert close(found.sums["av"], expected.sums["av"])
    assert close(found.sums["te"], expected.sums["te"])
    again.gradient_checkpointing_enable()
    assert same(record(again.train(), batches, PAIRS, config).counts, expected.counts)


def test_gates_that_run_again_in_the_backward_pass_are_counted_once():
    config = RecordConfig(active_on="gate", te=True)
    plain, again = tiny_t5(gated=True).double(), tiny_t5(gated=True).double()
    for block in again.encoder.block:
        recomputed(block.layer[-1])
    assert same(
        record(again, batches_of(), PAIRS, config).counts, record(plain, batches_of(), PAIRS, config).counts
    )


def test_bf16_and_autocast_are_recorded():
    batches = batches_of()
    half = tiny_m2m100().to(torch.bfloat16)
    found = record(half, batches, PAIRS, RecordConfig(av=True, te=True))
    seen, site = {}, find_sites(half)[0]
    watch(half, [site], seen)
    half(**{name: batches[0][name] for name in ("input_ids", "attention_mask", "decoder_input_ids")})
    mask = batches[0]["attention_mask"].bool()
    first = record(half, batches[:1], PAIRS).counts[site.name].sum(0)
    assert torch.equal(first, (seen[site.name] > 0)[mask].sum(0))
    assert all(torch.isfinite(total).all() for total in found.sums["te"].values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = record(tiny_m2m100(), batches, PAIRS, RecordConfig(te=True))
    assert under_autocast.sums["te"][site.name].sum() > 0


def test_a_compiled_model_is_recorded():
    model, batches = tiny_m2m100(encoder_layers=1, decoder_layers=1).double(), batches_of(1)
    expected = record(model, batches, PAIRS).counts
    assert same(record(torch.compile(model, backend="eager"), batches, PAIRS).counts, expected)
    model.compile(backend="eager")
    inputs = {name: batches[0][name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():  # compiled before the hooks come, for just the call that recording makes
        model(**inputs, use_cache=False)
    assert same(record(model, batches, PAIRS).counts, expected)


def test_a_gated_model_is_recorded_as_gated_whatever_the_order_of_its_pairs():
    model, batches = tiny_m2m100().double(), batches_of()
    sites = {site.name: site.width for site in find_sites(model)}
    masks = NeuronMasks.random(sites=sites, pairs=[*PAIRS[::-1], "en-cs"], density=0.5, seed=3)
    dense = record(model, batches, PAIRS)
    with NeuronGate(model, masks, GateConfig()):
        gated = record(model, batches, PAIRS, RecordConfig(te=True))
    for pair in PAIRS:
        for name, keep in masks[pair].items():
            assert int(gated[pair][name][~keep].sum()) == 0
            assert int(dense[pair][name][~keep].sum()) > 0
            assert int(gated[pair][name][keep].sum()) > 0
    assert not same(gated.counts, dense.counts)


def test_a_pair_that_the_gate_does_not_hold_is_refused_by_name():
    model = tiny_m2m100()
    masks = NeuronMasks.random(sites=find_sites(model), pairs=["en-de"], density=0.5)
    with NeuronGate(model, masks), pytest.raises(UnknownPairError, match="de-en"):
        record(model, batches_of(), PAIRS)


def test_batches_may_hold_lists_and_arrays():
    model, batches = tiny_m2m100(), batches_of()
    expected = record(model, batches, PAIRS)
    lists = [{name: value.tolist() for name, value in batch.items()} for batch in batches]
    arrays = [{name: value.numpy() for name, value in batch.items()} for batch in batches]
    for given in (lists, arrays):
        found = record(model, [{**batch, "pair": ["en-de"]} for batch in given], PAIRS)
        assert all(torch.equal(found.counts[name], counts) for name, counts in expected.counts.items())


def test_one_batch_in_place_of_a_list_is_refused():
    with pytest.raises(ConfigError, match=r"write \[batch\]"):
        record(tiny_m2m100(), random_batch(), PAIRS)


def test_importance_is_recorded_in_inference_mode_too():
    model, config = tiny_m2m100(), RecordConfig(te=True)
    expected = record(model, batches_of(), PAIRS, config)
    with torch.inference_mode():
        found = record(model, batches_of(), PAIRS, config)
    for name, sums in expected.sums["te"].items():
        torch.testing.assert_close(found.sums["te"][name], sums)


def test_a_limit_on_sentences_is_kept_exactly():
    model, batches = tiny_m2m100().double(), batches_of(4)
    stats = record(model, batches, PAIRS, RecordConfig(max_sentences=3, te=True))
    assert [stats.sentences(pair) for pair in PAIRS] == [3, 3, 3]
    first = {pair: 0 for pair in range(3)}
    chosen = []
    for batch in batches:
        for row, pair in enumerate(batch["pair_ids"].tolist()):
            first[pair] += 1
            if first[pair] <= 3:
                chosen.append({name: value[row : row + 1] for name, value in batch.items()})
    expected = record(model, chosen, PAIRS, RecordConfig(te=True))
    assert same(stats.counts, expected.counts)
    assert close(stats.sums["te"], expected.sums["te"])
    assert stats.tokens("en-de") == expected.tokens("en-de")


def test_a_limit_ends_an_endless_stream():
    def endless():
        while True:
            yield random_batch()

    stats = record(tiny_m2m100(), endless(), PAIRS, RecordConfig(max_sentences=5))
    assert [stats.sentences(pair) for pair in PAIRS] == [5, 5, 5]


def test_pairs_without_a_sentence_are_refused_by_name():
    with pytest.raises(EmptyPairError, match="en-cs, cs-en"):
        record(tiny_m2m100(), batches_of(), [*PAIRS, "en-cs", "cs-en"])
    with pytest.raises(EmptyPairError, match="en-de"):
        record(tiny_m2m100(), [], PAIRS)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"pair_ids": torch.tensor([0, 1, 2, 3])}, RoutingError, r"\[3\].*3 pairs"),
        ({"pair_ids": torch.tensor([0, 1, -1, 2])}, RoutingError, r"\[-1\]"),
        ({"pair_ids": torch.tensor([0, 1])}, RoutingError, r"\[4\].*\[2\]"),
        ({"pair_ids": None}, RoutingError, "PairCollator"),
        ({"attention_mask": None}, ConfigError, "attention_mask"),
        ({"labels": None}, ConfigError, "decoder_attention_mask"),
        ({"labels": torch.ones(4, 3, dtype=torch.long)}, SiteMismatchError, "decoder"),
    ],
)
def test_a_batch_that_cannot_be_counted_is_refused(change, error, reason):
    batch = {name: value for name, value in {**random_batch(), **change}.items() if value is not None}
    with pytest.raises(error, match=reason):
        record(tiny_m2m100(), [batch], PAIRS)


def test_a_model_that_fills_up_to_its_window_is_recorded_on_what_is_filled_up_and_the_refusal_says_so():
    model, batch = tiny_led(), random_batch(pairs=3)
    with pytest.raises(SiteMismatchError, match=r"\[4, 8, 24\].*\[4, 7\].*pad_to_multiple_of"):
        record(model, [batch], PAIRS)
    full = {
        **batch,
        "input_ids": functional.pad(batch["input_ids"], (0, 1), value=1),
        "attention_mask": functional.pad(batch["attention_mask"], (0, 1)),
    }
    found, seen, sites = record(model, [full], PAIRS), {}, find_sites(model)
    expected = {site.name: torch.zeros(len(PAIRS), site.width) for site in sites}
    watch(model, sites, seen)
    for pair, inputs, _ in sentences_in([batch]):
        model(**inputs)
        for site in sites:
            tokens = inputs["input_ids" if site.side == "encoder" else "decoder_input_ids"].shape[1]
            expected[site.name][pair] += (seen[site.name][0, :tokens] > 0).sum(0)
    assert same(found.counts, expected)


def test_importance_without_labels_is_refused():
    batch = random_batch()
    batch["decoder_attention_mask"] = batch.pop("labels") != -100
    with pytest.raises(ConfigError, match="labels"):
        record(tiny_m2m100(), [batch], PAIRS, RecordConfig(te=True))


def test_a_model_whose_weights_are_offloaded_is_refused_with_the_reason():
    model = cpu_offload(tiny_m2m100(), execution_device=torch.device("cpu"))
    with pytest.raises(UnsupportedModelError, match=r"not in memory \(.*without offloading"):
        record(model, [random_batch()], ["en-de", "de-en", "en-fr"])


def test_a_layer_that_runs_twice_is_no_single_site():
    model = tiny_m2m100()
    fc1, fc2 = (getattr(model.model.encoder.layers[0], name) for name in ("fc1", "fc2"))
    model.model.encoder.layers[1].fc2.register_forward_hook(
        lambda *_: fc2(fc1(torch.ones(4, 7, 16))) and None
    )
    with pytest.raises(UnsupportedModelError, match="twice"):
        record(model, batches_of(), PAIRS)


def test_the_base_and_the_corpus_are_kept_with_the_numbers():
    model = tiny_m2m100()
    stats = record(model, batches_of(), PAIRS, corpus={"name": "made up"})
    assert stats.base["id"] == "M2M100ForConditionalGeneration"
    assert len(stats.base["fingerprint"]) == 16
    assert stats.corpus == {"name": "made up"}


def test_a_model_without_an_encoder_is_not_shown_the_source_alone():
    """Its input_ids and labels are one sequence; of source and target apart, half would be counted."""
    apart = random_batch(source_length=6, target_length=6)
    together = {**apart, "labels": apart["input_ids"].masked_fill(apart["attention_mask"] == 0, -100)}
    alone = {name: value for name, value in apart.items() if name not in ("labels", "decoder_input_ids")}
    del together["decoder_input_ids"]
    for batch in (
        apart,
        {**together, "labels": apart["labels"]},
        {**together, "labels": together["labels"][:, 1:]},
    ):
        with pytest.raises(ConfigError, match="input_ids and labels are not one sequence"):
            record(tiny_llama(), [batch], PAIRS)
    assert same(record(tiny_llama(), [together], PAIRS).counts, record(tiny_llama(), [alone], PAIRS).counts)


@pytest.mark.parametrize("te", [False, True])
@pytest.mark.parametrize("place", ["encoder.layers.0.fc1.bias", "decoder.layers.1.fc2.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_numbers_are_not_finite_is_not_counted(place, value, te):
    model = tiny_m2m100()
    model.get_parameter(f"model.{place}").data[..., 3] = value
    with pytest.raises(UnsupportedModelError, match="not finite"):
        record(model, batches_of(), PAIRS, RecordConfig(te=te))


def test_a_pair_for_which_no_neuron_fired_is_refused():
    model = tiny_m2m100()
    for site in find_sites(model):
        site.linear(model).weight.data.zero_()
        site.linear(model).bias.data.fill_(-1)
    with pytest.raises(EmptyPairError, match="no neuron ever fired for en-de, de-en, en-fr"):
        record(model, batches_of(), PAIRS)


@pytest.mark.parametrize(
    ("make", "limit"), [(tiny_mbart, 64), (tiny_bart, 64), (tiny_marian, 64), (tiny_pegasus, 64)]
)
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_text_beyond_the_table_of_positions_is_refused_with_the_limit(make, limit, side):
    model = make(max_position_embeddings=limit)
    record(model, [random_batch(**{f"{side}_length": limit})], PAIRS)
    with pytest.raises(
        ConfigError, match=rf"of {limit + 1} tokens do not fit into the model's {limit} positions"
    ):
        record(model, [random_batch(**{f"{side}_length": limit + 1})], PAIRS)


@pytest.mark.parametrize("make", [tiny_m2m100, tiny_t5])
def test_a_text_of_any_length_fits_where_positions_are_computed(make):
    record(make(), [random_batch(source_length=90, target_length=80)], PAIRS)


@pytest.mark.parametrize("ends", [2, [2, 3], [2, 1]])
def test_the_pad_token_is_padding_in_labels_unless_it_also_ends_texts(ends):
    model, batch = tiny_m2m100(), random_batch()
    model.config.eos_token_id, model.config.pad_token_id = ends, 1
    batch["labels"][0, 0] = 1
    is_token = batch["labels"] != -100
    is_token[0, 0] = ends == [2, 1]
    stats = record(model, [batch], PAIRS)
    for number, pair in enumerate(PAIRS):
        assert stats.tokens(pair, "decoder") == is_token[batch["pair_ids"] == number].sum()


@pytest.mark.parametrize("make", [tiny_t5, tiny_m2m100])
def test_a_config_without_a_start_token_is_refused_before_the_pass(make):
    model, batch = make(), random_batch()
    model.config.decoder_start_token_id = None
    record(model, [batch], PAIRS)
    del batch["decoder_input_ids"]
    with pytest.raises(ConfigError, match="config needs decoder_start_token_id"):
        record(model, [batch], PAIRS)


def test_mbart_starts_from_the_last_token_of_the_labels_and_needs_no_start_token():
    model, batch = tiny_mbart(), random_batch()
    model.config.decoder_start_token_id = None
    batch["decoder_input_ids"] = shift_tokens_right(batch["labels"], model.config.pad_token_id)
    expected = record(model, [batch], PAIRS)
    del batch["decoder_input_ids"]
    assert same(record(model, [batch], PAIRS).counts, expected.counts)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_a_prompt_of_the_wrapper_is_not_left_out_without_a_word(kind):
    config = kind(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_layers=2, token_dim=16, num_attention_heads=2
    )
    prompted = peft.get_peft_model(tiny_m2m100(), config)
    for entry in (lambda: record(prompted, batches_of(), PAIRS), lambda: find_sites(prompted)):
        with pytest.raises(UnsupportedModelError, match=r"prompt or prefix.*use LoRA"):
            entry()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_dynamically_quantized_model_is_recorded_close_to_the_dense_one():
    model = tiny_m2m100()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)
    dense, coarse = record(model, batches_of(), PAIRS), record(quantized, batches_of(), PAIRS)
    assert coarse.base["fingerprint"] != dense.base["fingerprint"]
    assert len(coarse.base["fingerprint"]) == 16
    for name, counts_PF in dense.counts.items():
        assert (counts_PF - coarse.counts[name]).abs().sum() < 0.1 * counts_PF.sum()


@pytest.mark.parametrize("name", ["input_ids", "decoder_input_ids", "labels"])
@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_ids_that_the_model_has_no_embedding_for_are_refused(name, token):
    batch = random_batch()
    batch[name][0, 0] = token
    if name == "labels":
        del batch["decoder_input_ids"]
    with pytest.raises(ConfigError, match=rf"{name} from .* do not fit the model's {VOCABULARY} embeddings"):
        record(tiny_m2m100(), [batch], PAIRS)


def test_a_model_of_two_vocabularies_takes_the_ids_of_each():
    model = tiny_marian(decoder_vocab_size=VOCABULARY + 8, share_encoder_decoder_embeddings=False)
    batch = random_batch(rows=3)
    batch["decoder_input_ids"][0, 1] = batch["labels"][0, 0] = VOCABULARY + 7
    seen = []
    with model.model.decoder.layers[0].fc2.register_forward_pre_hook(
        lambda _, args: seen.append(args[0] > 0)
    ):
        model(**without_ids(batch))
    fired_BF = (seen[0] & (batch["labels"] != -100)[..., None]).sum(1)
    counts = record(model, [batch], PAIRS).counts["model.decoder.layers.0.fc1"]
    assert torch.equal(counts, fired_BF)
    batch["input_ids"][0, 0] = VOCABULARY
    with pytest.raises(ConfigError, match=rf"input_ids from .* the model's {VOCABULARY} embeddings"):
        record(model, [batch], PAIRS)
    batch["decoder_input_ids"][0, 1] = VOCABULARY + 8
    with pytest.raises(ConfigError, match=rf"the model's {VOCABULARY + 8} embeddings"):
        record(model, [{**batch, "input_ids": random_batch(rows=3)["input_ids"]}], PAIRS)


def test_importance_of_a_model_in_half_precision_is_a_product_in_double():
    model, batch = tiny_m2m100().bfloat16(), random_batch(rows=1)
    site = find_sites(model)[0]
    found = record(model, [batch], PAIRS[:1], RecordConfig(te=True)).sums["te"][site.name][0]
    seen = []

    def keep(module, args):
        args[0].retain_grad()
        seen.append(args[0])

    model.get_submodule(site.down).register_forward_pre_hook(keep)
    logits = model(
        **{name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    ).logits
    functional.cross_entropy(logits[0].float(), batch["labels"][0], reduction="sum").backward()
    wanted = (seen[0].double() * seen[0].grad.double()).abs().sum((0, 1))
    assert wanted.any()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
