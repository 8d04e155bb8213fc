"""Added pairs act on their own rows as a plain loop says, and on no bit of any other row."""

import copy
import threading

import pytest
import torch

from nspec_hf.adding import AddConfig, AddedPairs, Addition, layout_for, load_added, save_added
from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    Pair,
    SiteMismatchError,
    UnknownPairError,
    UnsupportedModelError,
)
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers.models import SIX_ARCHITECTURES, VOCABULARY, random_batch, tiny_m2m100

OLD, NEW = ["en-de", "de-en"], ["en-cs", "cs-en"]
EVERYTHING = AddConfig(width=0.3, lora=2, copies=["norms", "attention", "ffn"])
IDS = [5, 9, 30]


def addition(model, pairs=NEW, config=EVERYTHING, ids=IDS, trained=True, **more):
    """Return an addition with the weights of a training that moved them all."""
    width = 0 if config.width == "auto" else config.width
    begins_as = {number: [7, 8] for number in ids if number >= VOCABULARY}
    made = Addition(model, layout_for(model, pairs, config, width, ids=ids, **more)).draw(model, 1, begins_as)
    if trained:
        generator = torch.Generator().manual_seed(len(str(pairs)))
        with torch.no_grad():
            for weight in made.parameters():
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return made


def logits(model, **batch):
    with torch.no_grad():
        return model(**batch).logits


def mixed(seed=0, rows=6):
    """Return a batch, the pair of each row, and which rows are new; old and new ones in turn."""
    batch = random_batch(rows=rows, seed=seed)
    del batch["labels"], batch["pair_ids"]
    names = [(OLD + NEW)[(2 * row + row // 2) % 4] for row in range(rows)]
    return batch, names, torch.tensor([name in NEW for name in names])


def ids_of(added, names):
    return torch.tensor([added.include(name) for name in names])


@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_other_rows_of_a_mixed_batch_are_the_same_bits_and_new_ones_are_those_of_a_plain_merged_model(name):
    model = SIX_ARCHITECTURES[name]()
    config = EVERYTHING if name != "marian" else AddConfig(width=0.3, lora=2, copies=["norms", "attention"])
    added = AddedPairs(model, [addition(model, config=config)])
    batch, names, is_new = mixed()
    before, reference = logits(model, **batch), logits(added.merged(), **batch)
    with added:
        after = logits(model, **batch, pair_ids=ids_of(added, names))
    assert torch.equal(after[~is_new], before[~is_new])
    assert not torch.allclose(after[is_new], before[is_new], atol=1e-2)
    torch.testing.assert_close(after[is_new], reference[is_new], rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, **batch), before)


@pytest.mark.parametrize("name", ["m2m100", "mbart", "marian", "t5"])
def test_where_nothing_is_tied_encoder_decoder_and_output_layer_each_have_their_own_rows(name):
    untied = {"share_encoder_decoder_embeddings": False} if name == "marian" else {}
    model = SIX_ARCHITECTURES[name](tie_word_embeddings=False, **untied)
    sides = [part.get_input_embeddings() for part in (model.get_encoder(), model.get_decoder())]
    made = addition(model, config=AddConfig(width=0))
    batch, names, is_new = mixed()
    batch["input_ids"][0, 0], batch["decoder_input_ids"][1, 1] = IDS[0], IDS[1]
    added, before = AddedPairs(model, [made]), logits(model, **batch)
    by_hand = copy.deepcopy(model)
    parts = by_hand.get_encoder(), by_hand.get_decoder()
    tables = [part.get_input_embeddings().weight for part in parts] + [by_hand.get_output_embeddings().weight]
    with torch.no_grad():
        for table, which in zip(tables, ("embeddings", "targets", "outputs"), strict=True):
            table[IDS] = made.own_rows.of(which)
    with added:
        after = logits(model, **batch, pair_ids=ids_of(added, names))
    assert torch.equal(after[~is_new], before[~is_new])
    torch.testing.assert_close(after[is_new], logits(by_hand, **batch)[is_new], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(added.merged(), **batch)[is_new], after[is_new], rtol=1e-4, atol=1e-4)
    if sides[0].weight is not sides[1].weight:
        with pytest.raises(UnsupportedModelError, match="of its own on each side"):
            addition(model, ids=[5, VOCABULARY])


def test_new_neurons_are_the_sum_of_a_plain_loop_over_them():
    model = tiny_m2m100()
    made = addition(model, config=AddConfig(width=0.5), ids=[])
    site = find_sites(model)[0]
    layer = model.model.encoder.layers[0]
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(3))
    new = made.neurons_at(site.name)
    expected = layer.fc2(torch.relu(layer.fc1(x))).detach().clone()
    for row in (0, 2):
        for token in range(4):
            for w in range(12):
                z = (new.up.weight[w] @ x[row, token] + new.up.bias[w]).item()
                expected[row, token] += max(z, 0.0) * new.down.weight[:, w].detach()
    added = AddedPairs(model, [made])
    with added, torch.no_grad():
        rows = ids_of(added, ["en-cs", "en-de", "cs-en"])
        with added.routing.generation(rows, {"input_ids": torch.zeros(3, 4).long()}):
            out = layer.fc2(torch.relu(layer.fc1(x)))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(out[1], layer.fc2(torch.relu(layer.fc1(x)))[1])


def test_a_low_rank_change_is_pefts():
    peft = pytest.importorskip("peft")
    model = tiny_m2m100()
    made = addition(model, config=AddConfig(width=0, lora=4), ids=[])
    with_peft = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(made.layout.changed))
    )
    with torch.no_grad():
        for name in made.layout.changed:
            layer, change = (
                with_peft.base_model.model.get_submodule(name),
                made.change_of(name),
            )
            layer.lora_A["default"].weight.copy_(change.a.weight)
            layer.lora_B["default"].weight.copy_(change.b.weight)
    batch, _, _ = mixed()
    with AddedPairs(model, [made]) as added:
        added.use("en-cs")
        ours = logits(model, **batch)
    torch.testing.assert_close(ours, logits(with_peft, **batch), rtol=1e-5, atol=1e-5)


def test_embeddings_of_new_pairs_are_looked_up_and_multiplied_one_by_one():
    model = tiny_m2m100()
    made = addition(model, config=AddConfig(width=0), ids=IDS)
    weight, own = model.model.shared.weight.detach(), made.own_rows.embeddings.detach()
    ids = torch.tensor([[5, 7, 30], [5, 9, 9]])
    h = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(2))
    added = AddedPairs(model, [made])
    with added, torch.no_grad():
        rows = ids_of(added, ["en-cs", "en-de"])
        with added.routing.generation(rows, {"input_ids": ids}):
            looked_up, out = model.model.encoder.embed_tokens(ids), model.lm_head(h)
    for row, owned in enumerate((True, False)):
        for token, number in enumerate(ids[row].tolist()):
            vector = own[IDS.index(number)] if owned and number in IDS else weight[number]
            torch.testing.assert_close(looked_up[row, token], vector * 4.0)
        for v in range(VOCABULARY):
            vector = own[IDS.index(v)] if owned and v in IDS else weight[v]
            torch.testing.assert_close(out[row, :, v], h[row] @ vector, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["m2m100", "t5", "mt5"])
def test_a_tag_that_the_model_has_no_embedding_for_is_a_column_that_other_rows_never_choose(name):
    model = SIX_ARCHITECTURES[name]()
    more = {"tokens": {"__cs__": VOCABULARY}, "vocabulary": VOCABULARY}
    made = addition(model, config=AddConfig(width=0.3), ids=[5, VOCABULARY], trained=False, **more)
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(made.own_rows.embeddings[1], (weight[7] + weight[8]) / 2)
    added = AddedPairs(model, [made])
    batch, names, is_new = mixed()
    before = logits(model, **batch)
    batch["decoder_input_ids"][is_new, 1] = VOCABULARY
    reference = logits(added.merged(), **batch)
    with added:
        after = logits(model, **batch, pair_ids=ids_of(added, names))
        old = {name: value[~is_new] for name, value in batch.items()}
        alone = logits(model, **old, pair_ids=ids_of(added, ["en-de"] * len(old["input_ids"])))
    assert after.shape[-1] == VOCABULARY + 1
    assert torch.equal(after[~is_new][..., :-1], before[~is_new])
    assert (after[~is_new][..., -1] == -torch.inf).all()
    torch.testing.assert_close(after[is_new], reference[is_new], rtol=1e-4, atol=1e-4)
    assert alone.shape[-1] == VOCABULARY


def test_a_second_language_after_the_first_leaves_it_and_the_base_alone():
    model = tiny_m2m100()
    first = addition(model, trained=True, tokens={"__cs__": 48}, ids=[5, 9, 48])
    second = addition(
        model, ["en-lb", "lb-de"], ids=[9, 11, 48, 49], tokens={"__lb__": 49}, vocabulary=49, trained=True
    )
    batch, _, _ = mixed(rows=6)
    names = ["en-cs", "en-de", "en-lb", "cs-en", "lb-de", "de-en"]
    with AddedPairs(model, [first]) as added:
        only_first = logits(
            model, **batch, pair_ids=ids_of(added, [*names[:2], "en-de", *names[3:4], "en-de", "de-en"])
        )
    base = logits(model, **batch)
    both = AddedPairs(model, [first, second])
    reference = logits(both.merged(1), **batch)
    with both:
        after = logits(model, **batch, pair_ids=ids_of(both, names))
    assert torch.equal(after[[1, 5]][..., :48], base[[1, 5]])
    assert torch.equal(after[[0, 3]][..., :49], only_first[[0, 3]])
    torch.testing.assert_close(after[[2, 4]], reference[[2, 4]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after[[2, 4]][..., :48], base[[2, 4]], atol=1e-2)
    both.freeze()
    assert {id(p) for p in model.parameters() if p.requires_grad} == set()
    assert all(p.requires_grad for p in second.parameters())
    assert not any(p.requires_grad for p in first.parameters())


def test_pairs_that_come_later_read_and_write_a_tag_that_an_addition_before_brought():
    model = tiny_m2m100()
    first = addition(model, ["en-lb"], ids=[5, VOCABULARY], tokens={"__lb__": VOCABULARY})
    second = addition(model, ["lb-de", "de-lb"], ids=[9, VOCABULARY], vocabulary=VOCABULARY + 1)
    added = AddedPairs(model, [first, second])
    batch, _, _ = mixed(rows=4)
    batch["input_ids"][0, 0] = VOCABULARY
    batch["decoder_input_ids"][1:3, 1] = VOCABULARY
    names = ["lb-de", "de-lb", "en-lb", "en-de"]
    merged = [added.merged(1), added.merged(1), added.merged(0)]
    with added:
        together = logits(model, **batch, pair_ids=ids_of(added, names))
        for row, reference in enumerate(merged):
            one = {name: value[[row]] for name, value in batch.items()}
            expected = logits(reference, **one)
            alone = logits(model, **one, pair_ids=ids_of(added, [names[row]]))
            torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together[[row]], expected, rtol=1e-4, atol=1e-4)


def test_beams_and_a_mixed_generate_translate_each_row_as_it_is_alone():
    model = tiny_m2m100()
    added = AddedPairs(model, [addition(model)])
    batch, names, is_new = mixed()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    how = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False}
    base = model.generate(**inputs, **how)
    merged = added.merged().generate(**inputs, **how)
    with added:
        out = model.generate(**inputs, **how, pair_ids=ids_of(added, names))
    wide = max(base.shape[1], merged.shape[1], out.shape[1])
    base, merged, out = (
        torch.nn.functional.pad(ids, (0, wide - ids.shape[1]), value=1) for ids in (base, merged, out)
    )
    assert torch.equal(out[~is_new], base[~is_new])
    assert torch.equal(out[is_new], merged[is_new])
    assert not torch.equal(merged, base)


def test_only_the_last_addition_learns_and_the_base_keeps_every_bit_under_weight_decay():
    model = tiny_m2m100()
    first, second = addition(model), addition(model, ["en-lb"], ids=[11])
    added = AddedPairs(model, [first, second]).attach()
    added.freeze()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5
    )
    for seed in range(3):
        batch = random_batch(seed=seed)
        batch["pair_ids"] = torch.full_like(batch["pair_ids"], added.include("en-lb"))
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if name.startswith("nspec_own.1.")}


def test_a_layer_that_the_model_gets_anew_would_not_have_what_was_added_so_it_is_refused():
    model, (batch, names, _) = tiny_m2m100(), mixed()
    added = AddedPairs(model, [addition(model)]).attach()
    model.resize_token_embeddings(VOCABULARY + 8)
    with pytest.raises(UnsupportedModelError, match=r"AddedPairs .*replaced: .*embed_tokens"):
        model(**batch, pair_ids=ids_of(added, names))


def test_a_fresh_addition_changes_nothing():
    model = tiny_m2m100()
    batch, _, _ = mixed()
    before = logits(model, **batch)
    with AddedPairs(model, [addition(model, trained=False)]) as added:
        added.use("cs-en")
        torch.testing.assert_close(logits(model, **batch), before, rtol=1e-5, atol=1e-5)


def test_fresh_weights_are_drawn_with_the_seed_alone():
    model = tiny_m2m100()

    def weights(seed, others):
        torch.manual_seed(others)  # what else is drawn in a process counts for nothing
        made = Addition(model, layout_for(model, NEW, EVERYTHING, 0.3)).draw(model, seed, {})
        return made, torch.cat([weight.detach().flatten() for weight in made.parameters()])

    (made, first), (_, again), (_, other) = weights(1, 5), weights(1, 6), weights(2, 5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for name in made.layout.changed:
        a = made.change_of(name).a.weight.detach()
        assert 0.7 < float(a.std()) * a.shape[1] ** 0.5 < 1.3  # outputs as large as the inputs


def test_an_embedding_begins_as_that_of_the_earlier_addition_that_brought_its_id():
    model = tiny_m2m100()
    first = addition(model, ["en-lb"], ids=[5, 48], tokens={"__lb__": 48})
    second = addition(model, ["en-cs"], ids=[5, 49], tokens={"__cs__": 49}, vocabulary=49)
    layout = layout_for(model, ["cs-lb"], AddConfig(width=0), 0, ids=[49, 7, 48], vocabulary=50)
    third = Addition(model, layout).draw(model, 1, {}, [first, second])
    assert third.own_rows.ids == [7, 48, 49]
    own = [each.own_rows.embeddings[1] for each in (first, second)]
    assert torch.equal(third.own_rows.embeddings, torch.stack([model.model.shared.weight[7], *own]))


def test_a_share_that_is_less_than_a_neuron_is_one():
    neurons = layout_for(tiny_m2m100(), NEW, AddConfig(width=0.001), 0.001).neurons
    assert set(neurons.values()) == {1}


def test_a_model_whose_last_linears_are_in_float32_gets_its_sum_in_float32():
    """As T5 is loaded in half precision."""
    model = SIX_ARCHITECTURES["t5"]().bfloat16()
    for name, linear in model.named_modules():
        if name.endswith(".wo"):
            linear.float()
    made = addition(model, config=AddConfig(width=0.3), ids=[])
    batch, names, is_new = mixed()
    before = logits(model, **batch)
    with AddedPairs(model, [made]) as added:
        after = logits(model, **batch, pair_ids=ids_of(added, names))
    assert torch.equal(after[~is_new], before[~is_new])
    assert not torch.equal(after[is_new], before[is_new])


def test_saved_and_loaded_it_computes_the_same_bits_and_another_base_is_refused(tmp_path):
    model = tiny_m2m100()
    added = AddedPairs(model, [addition(model), addition(model, ["en-lb"], ids=[11])])
    batch, _, _ = mixed()
    names = ["en-cs", "en-de", "en-lb", "cs-en", "en-lb", "de-en"]
    with added:
        expected = logits(model, **batch, pair_ids=ids_of(added, names))
    save_added(added, tmp_path / "cs")
    again = load_added(tmp_path / "cs", tiny_m2m100())
    with again:
        assert torch.equal(logits(again.model, **batch, pair_ids=ids_of(again, names)), expected)
    with pytest.raises(SiteMismatchError, match="load that base"):
        load_added(tmp_path / "cs", tiny_m2m100(seed=1))
    # LoRA on attention, merged: the feed-forward weights are still the base's.
    merged = tiny_m2m100()
    with torch.no_grad():
        merged.get_decoder().layers[0].self_attn.q_proj.weight[0, 0] += 0.01
    with pytest.raises(SiteMismatchError, match="load that base"):
        load_added(tmp_path / "cs", merged)
    path = tmp_path / "cs" / "nspec_added.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        load_added(tmp_path / "cs", tiny_m2m100())
    assert "en-lb" in (tmp_path / "cs" / "README.md").read_text()


def test_saved_while_it_is_on_the_model_it_is_loaded_all_the_same(tmp_path):
    model = tiny_m2m100()
    with AddedPairs(model, [addition(model)]) as added:
        save_added(added, tmp_path)
        assert load_added(tmp_path, model).pairs == added.pairs
    assert load_added(tmp_path, tiny_m2m100()).pairs == added.pairs


@pytest.mark.parametrize("silence", ["neuron", "weights"])
def test_a_base_with_masks_runs_its_pairs_as_its_gate_does(silence, tmp_path):
    model, how = tiny_m2m100(), GateConfig(silence=silence)
    masks = NeuronMasks.random({site.name: site.width for site in find_sites(model)}, OLD, density=0.6)
    batch, names, is_new = mixed()
    made = addition(model)
    gated = [name if name in OLD else "en-de" for name in names]
    with NeuronGate(model, masks, how):
        before = logits(model, **batch, pair_ids=torch.tensor([OLD.index(name) for name in gated]))
    with AddedPairs(model, [made]) as added:
        added.use("cs-en")
        dense = logits(model, **batch)
    added = AddedPairs(model, [made], masks, how)
    save_added(added, tmp_path)
    for one in (added, load_added(tmp_path, model)):
        with one:
            after = logits(model, **batch, pair_ids=ids_of(one, names))
        assert torch.equal(after[~is_new], before[~is_new])
        torch.testing.assert_close(after[is_new], dense[is_new], rtol=1e-5, atol=1e-5)
    with pytest.raises(UnknownPairError):
        added.include("fr-de")


def test_pairs_that_masks_of_old_ones_lack_are_composed_of_these_alone():
    model, how = tiny_m2m100(), GateConfig(zero_shot="compose")
    old = [*OLD, "en-fr", "fr-en"]
    masks = NeuronMasks.random({site.name: site.width for site in find_sites(model)}, old, density=0.6)
    batch, _, _ = mixed(rows=3)
    halves = {"encoder": masks["de-en"], "decoder": masks["en-fr"]}
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for site in find_sites(reference):
            keep_F, linear = halves[site.side][site.name], site.linear(reference)
            linear.weight[~keep_F] = linear.bias[~keep_F] = 0
    expected = logits(reference, **batch)
    with AddedPairs(model, [addition(model)], masks, how) as added:
        added.use("en-cs")
        new = logits(model, **batch)
        added.use(None)
        together = logits(model, **batch, pair_ids=ids_of(added, ["de-fr", "en-cs", "de-fr"]))
        torch.testing.assert_close(together[[0, 2]], expected[[0, 2]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together[1], new[1], rtol=1e-4, atol=1e-4)
        for pair in ("cs-de", "de-cs"):  # what was added for cs is no half
            with pytest.raises(UnknownPairError):
                added.include(pair)
    plain = AddedPairs(model, [addition(model)], masks)
    assert not plain.knows("de-fr")
    assert added.composes_pairs
    assert not plain.composes_pairs


def test_a_copied_model_has_additions_of_its_own():
    model = tiny_m2m100()
    batch, names, _ = mixed()
    with AddedPairs(model, [addition(model)]) as added:
        rows = ids_of(added, names)
        expected = logits(model, **batch, pair_ids=rows)
        twin = copy.deepcopy(model)
        for weight in model.nspec_own.parameters():
            weight.data.zero_()
        assert torch.equal(logits(twin, **batch, pair_ids=rows), expected)


def test_threads_that_share_a_model_get_their_own_rows():
    model = tiny_m2m100()
    added = AddedPairs(model, [addition(model)]).attach()
    batches = [mixed(seed=seed) for seed in range(4)]
    rows = [ids_of(added, names) for _, names, _ in batches]
    alone = [logits(model, **batch, pair_ids=row) for (batch, _, _), row in zip(batches, rows, strict=True)]
    same: list[bool] = []

    def work(number):
        for _ in range(5):
            same.append(
                torch.equal(logits(model, **batches[number][0], pair_ids=rows[number]), alone[number])
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 20


def test_a_pair_that_is_added_twice_is_refused():
    model = tiny_m2m100()
    with pytest.raises(ConfigError, match="cs-en"):
        AddedPairs(model, [addition(model), addition(model, ["cs-en"])])
    with pytest.raises(ConfigError, match="another model"):
        Addition(tiny_m2m100(encoder_layers=1), addition(model).layout)
    assert Pair("en-cs") in AddedPairs(model, [addition(model)]).pairs


def test_gradient_checkpointing_gives_the_same_gradients():
    found = []
    for again in (False, True):
        model = tiny_m2m100()
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        made = addition(model)
        added = AddedPairs(model, [made]).attach()
        added.freeze()
        model.train()
        batch = random_batch(rows=6)
        batch["pair_ids"] = ids_of(added, mixed()[1])
        model(**batch, use_cache=False).loss.backward()
        found.append({name: weight.grad for name, weight in made.named_parameters()})
    assert all(grad is not None for grad in found[0].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-6)
