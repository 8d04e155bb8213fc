"""Parameter differentiation: which unit is split and how, what a copy begins with, the bound, killed runs."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st

from nspec_hf.core import ConfigError, UnknownPairError, as_pairs
from nspec_hf.data import EncodedCorpus
from nspec_hf.evaluation import Translator
from nspec_hf.recording import token_losses
from nspec_hf.systems import SYSTEMS, ExperimentConfig, Run, make_system, read_settings
from nspec_hf.systems.differentiation import (
    Differentiate,
    conflicts,
    cosines,
    pair_gradients,
    part_in_two,
    validation_batches,
)
from nspec_hf.systems.parts.clones import ClonedUnits, units_of
from nspec_hf.systems.parts.rowwise import RowwisePart
from nspec_hf.training import SpecializationTrainer, TrainConfig, load_weights, train
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100, tiny_t5
from tests.helpers.tiny_experiment import recipe, result, saving, scored
from tests.helpers.tiny_text import PAIRS as TEXT_PAIRS, corpus, model as text_model, tokenizer
from tests.training.test_run import config

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])
PLANTED = "model.decoder.layers.1.fc1"


def text(pair, same=True):
    """Return one batch of a pair; all pairs say the same, unless they are to differ."""
    index = PAIRS.index(pair)
    batch = random_batch(rows=4, seed=0 if same else index)
    return [{**batch, "pair_ids": torch.full((4,), index)}]


def weights_of(module):
    return sum(each.numel() for each in module.parameters())


def different(pair):
    return text(pair, same=False)


def plant(model, cloned, pair="de-en", name=PLANTED):
    """Turn the gradient of one unit around wherever rows of one pair run."""
    index = PAIRS.index(pair)
    for parameter in model.get_submodule(name).parameters():
        parameter.register_hook(lambda grad: -grad if int(cloned.last_rows[0]) == index else grad)


def cloned_model(seed=0, **changes):
    model = tiny_m2m100(seed, **changes)
    return model, ClonedUnits(model, PAIRS, "en").attach()


def plain_rows(batch, rows):
    return {name: tensor[rows] for name, tensor in batch.items() if name != "pair_ids"}


def test_linears_and_norms_of_the_layers_are_units_and_embeddings_are_not():
    found = units_of(tiny_m2m100())
    attention = ["k_proj", "v_proj", "q_proj", "out_proj"]
    own = [f"self_attn.{name}" for name in attention] + ["self_attn_layer_norm"]
    cross = [f"encoder_attn.{name}" for name in attention] + ["encoder_attn_layer_norm"]
    rest = ["fc1", "fc2", "final_layer_norm"]
    expected = {f"model.encoder.layers.{i}.{name}" for i in range(2) for name in own + rest}
    expected |= {f"model.decoder.layers.{i}.{name}" for i in range(2) for name in own + cross + rest}
    assert set(found) == expected
    assert len(found) == len(expected)
    assert not any("relative" in name or "shared" in name for name in units_of(tiny_t5()))
    assert "encoder.block.0.layer.0.layer_norm" in units_of(tiny_t5())


def test_the_unit_with_the_planted_conflict_is_split_and_no_other():
    model, cloned = cloned_model()
    plant(model, cloned)
    done = Differentiate(text).split(model, None)
    assert [cloned.clones.units[each.unit] for each in done] == [PLANTED]
    assert done[0].interference == pytest.approx(1, abs=1e-5)
    assert done[0].leaving == (1,)
    assert cloned.facts()["apart"] == {PLANTED: [["en-de", "en-fr"], ["de-en"]]}


def test_without_a_conflict_nothing_is_split():
    model, cloned = cloned_model()
    assert Differentiate(text).split(model, None) == []
    assert cloned.extra_parameters == 0


def test_gradients_are_those_of_each_pairs_loss_alone():
    model, cloned = cloned_model(dropout=0.3)
    model.train()
    found = pair_gradients(model, cloned, different, label_smoothing=0.1)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    plain = tiny_m2m100()
    for index, pair in enumerate(PAIRS):
        plain.zero_grad()
        batch = plain_rows(different(pair)[0], slice(None))
        labels = batch.pop("labels")
        token_losses(plain(**batch).logits, labels, 0.1).sum().backward()
        for name, gradients in zip(cloned.clones.units, found, strict=True):
            expected = [each.grad.flatten() for each in plain.get_submodule(name).parameters()]
            torch.testing.assert_close(gradients[index], torch.cat(expected), atol=1e-4, rtol=1e-4)


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 99))
def test_interference_is_the_largest_negative_cosine(pairs, size, seed):
    gradients = torch.randn(pairs, size, generator=torch.Generator().manual_seed(seed))
    gradients[0] = gradients[0] * (seed % 3)
    found = cosines(gradients)
    for i, one in enumerate(gradients.tolist()):
        for j, other in enumerate(gradients.tolist()):
            lengths = math.hypot(*one) * math.hypot(*other)
            dot = sum(a * b for a, b in zip(one, other, strict=True))
            assert found[i, j].item() == pytest.approx(dot / lengths if lengths else 0, abs=1e-6)


def slow_parts(cosines):
    """Join the two sets with the smallest mean distance until two are left, on plain lists."""
    sets = [[i] for i in range(len(cosines))]
    while len(sets) > 2:
        best = None
        for i in range(len(sets)):
            for j in range(i + 1, len(sets)):
                distances = [1 - cosines[a][b] for a in sets[i] for b in sets[j]]
                mean = sum(distances) / len(distances)
                if best is None or mean < best[0] - 1e-12:
                    best = (mean, i, j)
        _, i, j = best
        sets[i] = sorted(sets[i] + sets[j])
        del sets[j]
    return tuple(sets)


@given(st.integers(2, 7), st.integers(0, 999))
def test_pairs_are_parted_by_average_linkage(pairs, seed):
    vectors = torch.randn(pairs, 4, generator=torch.Generator().manual_seed(seed))
    found = part_in_two(cosines(vectors))
    assert found == slow_parts(cosines(vectors).tolist())
    assert found[0][0] == 0
    assert sorted(found[0] + found[1]) == list(range(pairs))


def test_two_opposite_groups_are_parted_as_they_are():
    direction = torch.randn(5, generator=torch.Generator().manual_seed(1))
    noise = 0.1 * torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    signs = torch.tensor([1.0, -1, -1, 1, -1])
    assert part_in_two(cosines(signs[:, None] * direction + noise)) == ([0, 3], [1, 2, 4])


def test_a_copy_begins_as_what_it_is_a_copy_of_and_with_its_momentum():
    model, cloned = cloned_model()
    optimizer = torch.optim.AdamW([{"params": list(model.parameters())[:5]}, {"params": []}], lr=0.1)
    optimizer.param_groups[1]["params"] = list(model.parameters())[5:]
    batch = random_batch(rows=6)
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before = model(**batch).logits
    plant(model, cloned)
    Differentiate(text).split(model, optimizer)
    assert torch.equal(model(**batch).logits, before)
    own, twin = model.get_submodule(PLANTED), cloned.clones.made[1]
    for name, parameter in own.named_parameters():
        other = twin.get_parameter(name)
        assert torch.equal(parameter, other)
        assert parameter is not other
        assert any(other is each for each in optimizer.param_groups[1]["params"])
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, optimizer.state[other][key])
            assert value is not optimizer.state[other][key]
    model(**batch).loss.backward()
    optimizer.step()
    assert not torch.equal(own.weight, twin.weight)


def differentiated(model):
    """Return a model with three copies of two units, all with other weights."""
    cloned = ClonedUnits(model, PAIRS, "en").attach()
    units = cloned.clones.units
    first = next(i for i, name in enumerate(units) if name.endswith(("fc1", "wi", "wi_0")))
    norm = next(i for i, name in enumerate(units) if "decoder" in name and "norm" in name)
    cloned.split(norm, 0, [1, 2])
    cloned.split(first, 0, [2])
    cloned.split(norm, 1, [2])
    with torch.no_grad():
        for parameter in cloned.clones.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return cloned


@pytest.mark.parametrize("family", SIX_ARCHITECTURES)
def test_each_row_runs_with_its_pairs_copies(family):
    model = SIX_ARCHITECTURES[family]()
    plain, batch = copy.deepcopy(model), random_batch(rows=5)
    cloned = differentiated(model)
    mixed = model(**batch).logits
    for pair in range(len(PAIRS)):
        alone = copy.deepcopy(plain)
        for unit, name in enumerate(cloned.clones.units):
            number = cloned.clones.numbers[unit][pair]
            if number:
                alone.get_submodule(name).load_state_dict(cloned.clones.made[number].state_dict())
        rows = batch["pair_ids"] == pair
        expected = alone(**plain_rows(batch, rows)).logits
        torch.testing.assert_close(mixed[rows], expected, atol=2e-5, rtol=1e-4)
        assert torch.allclose(mixed[rows], plain(**plain_rows(batch, rows)).logits, atol=1e-3) == (pair == 0)


def test_a_copy_gets_the_gradients_of_its_pairs_only():
    model = tiny_m2m100()
    cloned, batch = differentiated(model), random_batch(rows=4, pairs=1)
    model(**{**batch, "pair_ids": torch.ones(4, dtype=torch.long)}).loss.backward()
    assert [cloned.clones.made[number].weight.grad is None for number in (1, 2, 3)] == [False, True, True]


def test_it_is_removed_without_a_trace_and_copied_with_its_model():
    model, batch = tiny_m2m100(), random_batch()
    names, plain = set(model.state_dict()), model(**plain_rows(batch, slice(None))).logits
    cloned = differentiated(model)
    inside = model(**batch).logits
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in cloned.clones.parameters():
            parameter.zero_()
    cloned.detach()
    assert set(model.state_dict()) == names
    assert torch.equal(model(**plain_rows(batch, slice(None))).logits, plain)
    assert torch.equal(twin(**batch).logits, inside)


def rowwise_parts(attachment):
    """Return the parts that run key by key; others only hold the route at the model's entries."""
    return [part for part in attachment._parts if isinstance(part, RowwisePart)]


def test_a_pair_that_was_not_trained_has_its_sources_encoder_and_its_targets_decoder():
    model = tiny_m2m100()
    cloned = differentiated(model)
    cloned.use("de-fr")
    numbers = {
        name: part._key_of(cloned.pairs[-1])
        for name, part in zip(cloned.clones.units, rowwise_parts(cloned), strict=True)
    }
    for unit, name in enumerate(cloned.clones.units):
        assert numbers[name] == cloned.clones.numbers[unit][1 if ".encoder." in name else 2]
    with pytest.raises(UnknownPairError, match="there is no pair 'fr-de'"):
        cloned.use("fr-de")


def test_a_unit_without_a_conflict_but_without_a_gradient_for_one_pair_stays_whole():
    model, cloned = cloned_model()
    for parameter in model.get_submodule(PLANTED).parameters():
        parameter.register_hook(lambda grad: grad * (int(cloned.last_rows[0]) != 1))
    worst = max(conflicts(cloned, pair_gradients(model, cloned, text)), key=lambda one: one.interference)
    assert (cloned.clones.units[worst.unit], worst.interference) == (PLANTED, 0)
    assert Differentiate(text, threshold=0.0).split(model, None) == []


def test_units_are_split_every_so_many_updates_and_not_behind_the_last():
    splitter, asked = Differentiate(text, every=4), []
    splitter.split = lambda model, optimizer, share, smoothing: asked.append((state.global_step, share))
    args = SimpleNamespace(label_smoothing_factor=0.1)
    for step in range(1, 21):
        state = SimpleNamespace(global_step=step, max_steps=20)
        splitter.on_step_end(args, state, None, model=None, optimizer=None)
    assert asked == [(4, 0.2), (8, 0.4), (12, pytest.approx(0.6)), (16, 0.8)]


def test_copies_are_split_again_until_every_pair_has_its_own():
    _, cloned = cloned_model()
    planted = cloned.clones.units.index(PLANTED)
    gradients = [torch.ones(3, 2) for _ in cloned.clones.units]
    gradients[planted] = torch.tensor([[1.0, 0], [-1, 0.1], [-1, -0.1]])
    first = conflicts(cloned, gradients)[0]
    assert (first.unit, first.number, first.leaving) == (planted, 0, (1, 2))
    cloned.split(planted, 0, first.leaving)
    gradients[planted] = torch.tensor([[1.0, 0], [0, 1], [0, -1]])
    second = conflicts(cloned, gradients)[0]
    assert (second.unit, second.number, second.leaving) == (planted, 1, (2,))
    cloned.split(planted, 1, second.leaving)
    assert cloned.clones.users(planted) == {0: [0], 1: [1], 2: [2]}
    assert all(each.unit != planted for each in conflicts(cloned, gradients))


def test_the_bound_holds_at_every_time_and_what_still_fits_is_split():
    model, cloned = cloned_model()
    limit = 2 * weights_of(model.get_submodule(PLANTED))
    splitter = Differentiate(different, limit=limit)
    extra = []
    for share in (0.3, 0.6, 1.0):
        splitter.split(model, None, share)
        extra.append(cloned.extra_parameters)
        assert extra[-1] <= share * limit
    assert sorted(extra) == extra
    assert extra[-1] > extra[0]
    while splitter.split(model, None):
        assert cloned.extra_parameters <= limit
    left = conflicts(cloned, pair_gradients(model, cloned, different))
    sizes = [cloned.module(each.unit, each.number) for each in left if each.interference > 0]
    assert sizes
    assert all(weights_of(module) > limit - cloned.extra_parameters for module in sizes)


def test_only_so_many_are_split_a_round_and_those_with_most_interference():
    model, cloned = cloned_model()
    expected = conflicts(cloned, pair_gradients(model, cloned, different))[:2]
    assert Differentiate(different, at_once=2).split(model, None) == expected
    assert expected[0].interference >= expected[1].interference > 0


def run(folder, steps=4, **more):
    """Train with two rounds of splitting: after updates 2 and 3 of 4."""
    own = text_model(0, dropout=0.2)
    settings = TrainConfig(**{**vars(config(steps)), **more})
    cloned = ClonedUnits(own, TEXT_PAIRS, "en").attach()
    valid = corpus(count=4, seed=1)

    def batches(pair):
        index = TEXT_PAIRS.index(pair)
        ids = random_batch(rows=4, seed=index)
        return [{**ids, "pair_ids": torch.full((4,), index)}]

    splitter = Differentiate(batches, limit=3000, every=1)
    found = train(own, tokenizer(), corpus(), settings, folder, valid, gate=cloned, callbacks=[splitter])
    return own, cloned, found


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_a_run_that_is_killed_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    _, whole, _ = run(tmp_path / "whole")
    assert whole.extra_parameters > 0
    with saving(kill=lambda _folder, update, _begun: update == 4):
        run(tmp_path / "killed")
    with pytest.warns(UserWarning, match="checkpoint-4 is not whole"):
        _, killed, _ = run(tmp_path / "killed")
    assert killed.facts() == whole.facts()
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_run_that_has_ended_is_loaded_with_its_copies(tmp_path, monkeypatch):
    own, cloned, _ = run(tmp_path)
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    again, other, found = run(tmp_path)
    assert found.updates == 4
    assert other.facts() == cloned.facts()
    assert own.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in own.state_dict().items())


def test_the_best_checkpoint_is_kept_with_the_copies_that_it_had(tmp_path):
    # A learning rate that spoils the model, so that the first evaluation is the best.
    spoiled = {**config(6).arguments, "learning_rate": 1.0, "max_steps": 6}
    own, cloned, _ = run(tmp_path, arguments=spoiled, patience=2)
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    best = tmp_path / state["best_model_checkpoint"].rsplit("/", 1)[1]
    assert best.name == "checkpoint-2"
    other = text_model(1)
    ClonedUnits(other, TEXT_PAIRS, "en").attach()
    load_weights(other, best)
    assert own.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in own.state_dict().items())
    later = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert later["global_step"] == 6
    text_model_6 = text_model(1)
    more = ClonedUnits(text_model_6, TEXT_PAIRS, "en").attach()
    load_weights(text_model_6, tmp_path / "checkpoint-6")
    assert more.extra_parameters > cloned.extra_parameters


@pytest.mark.parametrize("start", ["scratch", "base"])
def test_a_run_splits_trains_and_scores_and_is_not_done_twice(based, start, monkeypatch):
    folder, file = based
    command = [file, "--system", "differentiation", "--row", f"from_{start}", "--settings.start", start]
    command += ["--settings.every", "1", "--settings.upper_bound", "0.51"]
    recipe("specialize")(command)
    found = result(folder, f"from_{start}")
    base = sum(each.numel() for each in text_base(folder).parameters())
    assert 0 < found["extra_parameters"] <= 0.51 * base
    assert found["attachment"]["apart"]
    assert ("pretraining" in found) == (start == "scratch")
    assert found["updates"] == 2
    assert scored(found) == {*TEXT_PAIRS, "de-fr", "fr-de"}
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr(Translator, "translate", None)
    recipe("specialize")(command)
    assert result(folder, f"from_{start}") == found


def text_base(folder):
    return type(text_model()).from_pretrained(folder / "work" / "base" / "model")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("upper_bound", "0"), ("every", "-1"), ("at_once", "0"), ("threshold", "1"), ("sentences", "0")],
)
def test_settings_that_cannot_be_are_refused(based, setting, value):
    system = make_system(SYSTEMS["differentiation"], {setting: value})
    with pytest.raises(ConfigError, match=setting):
        system.check(None)


def test_the_settings_are_those_of_what_splits(based, tmp_path):
    own = Run(config=read_settings(ExperimentConfig, [based[1]])[0], folder=tmp_path)
    given = {"upper_bound": 0.5, "every": 3, "at_once": 2, "threshold": 0.25, "sentences": 1}
    model = own.base()
    [splitter] = make_system("differentiation", given).callbacks(model, own)
    assert (splitter.limit, splitter.every) == (weights_of(model) // 2, 3)
    assert (splitter.at_once, splitter.threshold) == (2, 0.25)
    assert sum(len(batch["labels"]) for batch in splitter.batches("de-en")) == 1


def test_gradients_are_taken_on_the_first_sentences_of_each_pair(based, tmp_path):
    own = Run(config=read_settings(ExperimentConfig, [based[1]])[0], folder=tmp_path)
    part = own.validation.subset("de-en")
    assert isinstance(part, EncodedCorpus)
    few = list(validation_batches(own.base(), own, 3, "de-en"))
    rows = [row for batch in few for row in batch["labels"].tolist()]
    assert sorted([token for token in row if token != -100] for row in rows) == sorted(
        part[i]["labels"] for i in range(3)
    )
    assert {int(pair) for batch in few for pair in batch["pair_ids"]} == {TEXT_PAIRS.index("de-en")}
    every = list(validation_batches(own.base(), own, None, "de-en"))
    assert sum(len(batch["labels"]) for batch in every) == len(part)
