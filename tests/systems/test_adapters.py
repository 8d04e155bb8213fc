"""Adapters: identity at first, their pair's rows alone, the papers' counts, families, and whole runs."""

import copy
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nspec_hf.analysis import language_tree
from nspec_hf.core import ArtifactError, ConfigError, Pair, as_pairs, english_centric
from nspec_hf.data import BatchConfig
from nspec_hf.recording import OWN_WEIGHTS, SIDES
from nspec_hf.systems.adapters import (
    Adapter,
    FamilyAdapters,
    PairAdapters,
    adapter_places,
    adapters as new_adapters,
    freeze_base,
)
from nspec_hf.systems.families import cut_tree, family_of, named_families
from nspec_hf.training import SpecializationTrainer, TrainConfig, load_weights, train
from tests.helpers.models import SIX_ARCHITECTURES, random_batch, tiny_m2m100
from tests.helpers.systems import TESTED, numbers, plain, run, shape, stopped, weights
from tests.helpers.tiny_experiment import result, scored
from tests.helpers.tiny_text import PAIRS as TRAINED, corpus, model as text_model, tokenizer
from tests.helpers.two_processes import run_in_processes

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def own_pair(pair):
    return str(pair) if pair in PAIRS else None


def adapters(model, per_layer=2, pairs=PAIRS, bottleneck=5, seed=1):
    return new_adapters(model, pairs, dict.fromkeys(SIDES, own_pair), bottleneck, per_layer, seed)


def shake(attachment, seed=7):
    """Let no adapter be the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.own.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return attachment


def by_hand(model, attachment, batch):
    """Return each row's logits, with the pair's adapters written out in hooks of a copy."""
    logits = []
    for row, pair in enumerate(batch["pair_ids"].tolist()):
        changed = copy.deepcopy(model)
        for place in adapter_places(model, 2):
            each = getattr(attachment.own, f"for_{PAIRS[pair]}")[place.name.replace(".", "_")]

            def adapted(module, args, output, each=each):
                x = output if isinstance(output, torch.Tensor) else output[0]
                mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
                normed = (x - mean) / (variance + 1e-5).sqrt() * each.norm.weight + each.norm.bias
                inner = (normed @ each.down.weight.T + each.down.bias).clamp(min=0)
                x = x + inner @ each.up.weight.T + each.up.bias
                return x if isinstance(output, torch.Tensor) else (x, *output[1:])

            changed.get_submodule(place.name).register_forward_hook(adapted)
        alone = {name: value[row : row + 1] for name, value in plain(batch).items()}
        logits.append(changed(**alone).logits)
    return torch.cat(logits)


def test_adapters_stand_after_each_layer_and_after_its_last_attention():
    names = [place.name for place in adapter_places(tiny_m2m100(encoder_layers=1, decoder_layers=1), 2)]
    assert names == [
        "model.encoder.layers.0.self_attn.out_proj",
        "model.encoder.layers.0",
        "model.decoder.layers.0.encoder_attn.out_proj",
        "model.decoder.layers.0",
    ]
    one = adapter_places(tiny_m2m100(), 1)
    assert [place.name for place in one] == [
        f"model.{s}coder.layers.{i}" for s in ("en", "de") for i in (0, 1)
    ]
    assert [place.side for place in one] == ["encoder", "encoder", "decoder", "decoder"]


@pytest.mark.parametrize("per_layer", [1, 2])
def test_new_adapters_change_nothing(per_layer):
    model, batch = tiny_m2m100(), random_batch()
    before = model(**plain(batch)).logits
    with adapters(model, per_layer):
        assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("family", SIX_ARCHITECTURES)
def test_a_mixed_batch_gives_each_row_what_its_pairs_adapters_give(family):
    model, batch = SIX_ARCHITECTURES[family](), random_batch(rows=5)
    attachment = shake(adapters(model))
    wanted, before = by_hand(model, attachment, batch), model(**plain(batch)).logits
    with attachment:
        found = model(**batch).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found, before, atol=1e-2)
    other = {**batch, "pair_ids": (batch["pair_ids"] + 1) % 3}
    assert not torch.allclose(found, by_hand(model, attachment, other), atol=1e-2)


def test_rows_of_a_pair_without_adapters_on_a_side_pass_that_side_as_they_are():
    model, batch = tiny_m2m100(), random_batch(rows=5)
    whose = {"encoder": lambda pair: None, "decoder": lambda pair: str(pair) if pair == "de-en" else None}
    attachment = shake(new_adapters(model, PAIRS, whose, 5, 1))
    wanted = model(**plain(batch)).logits
    with attachment:
        found = model(**batch).logits
        for row, pair in enumerate(batch["pair_ids"].tolist()):
            assert torch.allclose(found[row], wanted[row], atol=1e-5) == (PAIRS[pair] != "de-en")
        alone = model(**{**batch, "pair_ids": torch.zeros_like(batch["pair_ids"])}).logits
    torch.testing.assert_close(alone, wanted)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_changes_the_adapters_of_the_pairs_in_the_batch_and_nothing_else(weight_decay):
    model, batch = tiny_m2m100(), random_batch(rows=6)
    attachment = shake(adapters(model)).attach()
    freeze_base(model)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=weight_decay)

    def step(pair_ids):
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        model(**{**batch, "pair_ids": torch.tensor(pair_ids)}).loss.backward()
        optimizer.step()
        after = model.state_dict()
        return {name for name in before if not torch.equal(before[name], after[name])}

    # After this all adapters have momentum.
    everything = step([0, 1, 2, 0, 1, 2])
    own = {f"{OWN_WEIGHTS}.{name}" for name in attachment.own.state_dict()}
    assert everything == own
    for chosen, pair_ids in ({"de-en"}, [1] * 6), ({"en-de", "en-fr"}, [0, 2, 2, 0, 0, 2]):
        assert step(pair_ids) == {name for name in own if name.split(".")[1].removeprefix("for_") in chosen}


def count(model, bottleneck, per_layer, pairs, key_of=str):
    """Return how many parameters the adapters add to a model."""
    return numbers(new_adapters(model, pairs, dict.fromkeys(SIDES, key_of), bottleneck, per_layer).own)


@pytest.mark.parametrize(("width", "bottleneck"), [(16, 5), (512, 128), (1024, 128), (512, 512)])
def test_an_adapter_has_the_parameters_of_its_equation(width, bottleneck):
    norm, down, up = 2 * width, bottleneck * width + bottleneck, width * bottleneck + width
    assert numbers(Adapter(width, bottleneck)) == norm + down + up


def test_a_direction_costs_what_tan_et_al_count():
    small, big = shape(512, 1024, 4, 30_000), shape(1024, 4096, 16, 128_000)
    assert count(small, 128, 2, [Pair("en-de")]) == 24 * 132_736 == 3_185_664  # 3.2 M
    assert count(big, 128, 2, [Pair("en-de")]) == 24 * 265_344 == 6_368_256  # 6.4 M
    # EC30: 60 directions; source and target embeddings apart, the output tied to the target's.
    assert round(100 * 60 * 6_368_256 / (numbers(big) + 128_000 * 1024)) == 87
    # IWSLT-14: 16 directions; three matrices of about 29,000 subwords make the 76 M that 67 % stands for.
    small_base = numbers(small) - 30_000 * 512 + 3 * 29_000 * 512
    assert round(100 * 16 * 3_185_664 / small_base) == 67


def test_one_adapter_a_layer_costs_what_xie_et_al_count():
    model = shape(512, 2048, 8, 40_000)
    pairs = english_centric(["de", "nl", "it", "ro"])
    assert len(pairs) == 8
    assert count(model, 128, 1, pairs) == 12_742_656  # 12.74 M


def test_settings_say_what_is_trained():
    frozen = [PairAdapters(), PairAdapters(per_layer=1, frozen=True), FamilyAdapters()]
    assert not any(system.from_scratch for system in frozen)
    scratch = [PairAdapters(per_layer=1), PairAdapters(frozen=False)]
    assert all(system.from_scratch for system in scratch)
    for system in (*frozen, *scratch):
        model = tiny_m2m100()
        with adapters(model):
            system.freeze(model)
            trained = {name for name, each in model.named_parameters() if each.requires_grad}
            own = {name for name in trained if name.startswith(OWN_WEIGHTS)}
            assert len(own) == 3 * 8 * 6
            assert (trained == own) == (not system.from_scratch)


def test_shapes_that_are_none_are_refused():
    with pytest.raises(ConfigError, match="bottleneck is a positive width, got 0"):
        PairAdapters(bottleneck=0).check(None)
    with pytest.raises(ConfigError, match="got 3"):
        FamilyAdapters(per_layer=3).check(None)


def test_a_pair_that_was_not_trained_has_its_sources_encoder_and_its_targets_decoder():
    model, batch = tiny_m2m100(), random_batch(rows=2)
    config = SimpleNamespace(data=SimpleNamespace(pivot="en"))
    pairs = as_pairs(["en-de", "de-en", "en-fr", "fr-en"])
    bench = SimpleNamespace(pairs=pairs, config=config, seed=1)
    with shake(PairAdapters(bottleneck=4).attach(model, bench)) as attachment:
        assert attachment.knows("de-fr")
        assert not attachment.knows("de-cs")
        index = attachment.include("de-fr")
        found = model(**{**batch, "pair_ids": torch.tensor([index] * 2)}).logits
        rows = {name: {"pair_ids": torch.tensor([pairs.index(Pair(name))] * 2)} for name in pairs}
        states = model.model.encoder(batch["input_ids"], batch["attention_mask"], **rows["de-en"])
        wanted = model(**{**plain(batch), "encoder_outputs": states}, **rows["en-fr"]).logits
        torch.testing.assert_close(found, wanted)
        assert not torch.allclose(found, model(**{**batch, **rows["en-fr"]}).logits, atol=1e-2)


def test_the_pivot_counts_for_no_family():
    families = {"de": "Germanic", "en": "Germanic", "fr": "Romance", "es": "Romance"}
    sides = {
        pair: tuple(family_of(Pair(pair), side, families, "en") for side in ("encoder", "decoder"))
        for pair in ("en-fr", "fr-en", "de-fr", "fr-es", "de-xx")
    }
    assert sides == {
        "en-fr": ("Romance", "Romance"),
        "fr-en": ("Romance", "Romance"),
        "de-fr": ("Germanic", "Romance"),
        "fr-es": ("Romance", "Romance"),
        "de-xx": ("Germanic", None),
    }


def test_the_pivot_that_counts_for_no_family_is_that_of_the_experiment():
    data = SimpleNamespace(pivot="de", families={"en": "Germanic", "fr": "Romance"})
    pairs = as_pairs(["en-de", "de-en", "fr-de", "de-fr"])
    once = lambda name, work: dict(work())  # noqa: E731
    run = SimpleNamespace(pairs=pairs, config=SimpleNamespace(data=data), once=once)
    keys = FamilyAdapters().keys(tiny_m2m100(), run)
    sides = {pair: [keys[side](Pair(pair)) for side in SIDES] for pair in ("en-de", "de-fr", "en-fr")}
    assert sides == {
        "en-de": ["Germanic", "Germanic"],
        "de-fr": ["Romance", "Romance"],
        "en-fr": ["Germanic", "Romance"],
    }


def test_related_languages_share_adapters_and_zero_shot_is_defined_by_family():
    model, batch = tiny_m2m100(), random_batch(rows=3)
    pairs = as_pairs(["en-de", "nl-en", "en-fr"])
    families = {"de": "Germanic", "nl": "Germanic", "fr": "Romance", "es": "Romance"}
    keys = {side: partial(family_of, side=side, families=families, pivot="en") for side in SIDES}
    with shake(new_adapters(model, pairs, keys, 4, 1)) as attachment:
        assert [name for name, _ in attachment.own.named_children()] == ["for_Germanic", "for_Romance"]

        def run(*chosen):
            ids = torch.tensor([attachment.include(pair) for pair in chosen])
            return model(**{**batch, "pair_ids": ids}).logits

        torch.testing.assert_close(run("en-de", "en-de", "en-fr"), run("nl-en", "en-de", "en-fr"))
        assert not torch.allclose(run("en-de", "en-de", "en-de"), run("en-fr", "en-fr", "en-fr"), atol=1e-2)
        torch.testing.assert_close(run("es-nl", "es-nl", "es-nl"), run("fr-de", "fr-de", "fr-de"))
        assert not torch.allclose(run("es-nl", "es-nl", "es-nl"), run("en-fr", "en-fr", "en-fr"), atol=1e-2)
        assert not attachment.knows("de-cs")


def test_a_language_without_a_family_is_named():
    pairs = as_pairs(["en-de", "cs-en"])
    with pytest.raises(ConfigError, match=r"no family for cs; .* the pivot \(en\)"):
        named_families({"de": "Germanic"}, pairs, "en")
    assert named_families({"de": "G", "cs": "S", "ru": "S"}, pairs, "en") == {"de": "G", "cs": "S"}


def test_a_tree_is_cut_where_its_distances_jump_most_or_into_as_many_as_asked():
    languages = ("de", "nl", "fr", "es", "cs")
    iou = np.full((5, 5), 0.2)
    for one, other, value in (0, 1, 0.9), (2, 3, 0.8), (0, 4, 0.15), (1, 4, 0.15):
        iou[one, other] = iou[other, one] = value
    tree = language_tree(languages, iou)
    assert {frozenset(name.split("+")) for name in cut_tree(tree).values()} == {
        frozenset({"de", "nl"}),
        frozenset({"fr", "es"}),
        frozenset({"cs"}),
    }
    assert len(set(cut_tree(tree, 1).values())) == 1
    assert set(cut_tree(tree, 5).values()) == set(languages)
    assert all(code in name.split("+") for code, name in cut_tree(tree, 2).items())
    with pytest.raises(ConfigError, match="5 languages make 1 to 5 families, got 6"):
        cut_tree(tree, 6)


def train_a_few(index, count, folder):
    """One update of two batches, each of one pair: in two processes, or one after the other in one."""
    model = text_model()
    own = new_adapters(model, TRAINED, dict.fromkeys(SIDES, str), 5, 2).attach()
    freeze_base(model)
    arguments = {"max_steps": 1, "gradient_accumulation_steps": 2 // count, "weight_decay": 0.1}
    arguments |= {"warmup_steps": 0, "lr_scheduler_type": "constant", "save_strategy": "no"}
    settings = TrainConfig(arguments=arguments, batches=BatchConfig(max_tokens=64, mixed=False))
    train(model, tokenizer(), corpus(), settings, folder, gate=own, shows_progress=False)


@pytest.mark.slow
def test_two_processes_with_different_pairs_train_as_one_does(tmp_path):
    run_in_processes(train_a_few, 2, str(tmp_path / "two"))
    train_a_few(0, 1, tmp_path / "one")
    start = text_model()
    own = new_adapters(start, TRAINED, dict.fromkeys(SIDES, str), 5, 2).attach()
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
    changed = {name.split(".")[1] for name in two if not torch.equal(two[name], before[name])}
    # Each process had another pair; of the others not even the weights decay.
    assert len(changed) == 2
    assert changed < {name for name, _ in own.own.named_children()}


def test_the_best_adapters_are_kept_where_training_is_stopped_early(tmp_path):
    model = text_model()
    own = new_adapters(model, TRAINED, dict.fromkeys(SIDES, str), 5, 2).attach()
    freeze_base(model)
    # With the sign turned, the first evaluation is the best, and the second stops the training.
    arguments = {
        "max_steps": 4,
        "eval_steps": 1,
        "save_steps": 1,
        "greater_is_better": True,
        "save_total_limit": 4,
    }
    arguments |= {"warmup_steps": 0, "lr_scheduler_type": "constant"}
    settings = TrainConfig(arguments=arguments, batches=BatchConfig(max_tokens=64), patience=1)
    done = train(model, tokenizer(), corpus(), settings, tmp_path, corpus(4), own, shows_progress=False)
    losses = done.facts()["validation_loss"]
    best = max(losses, key=losses.get)
    assert (best, done.updates) == ("1", 2)
    wanted = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
    kept, last = weights(tmp_path), load_file(tmp_path / f"checkpoint-{done.updates}" / "model.safetensors")
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
    assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)
    assert not all(torch.equal(last[name], wanted[name]) for name in wanted)


def test_a_model_may_be_moved_and_cast_with_its_adapters():
    model, batch = tiny_m2m100().bfloat16(), random_batch()
    attachment = shake(adapters(model))
    assert all(each.dtype == torch.bfloat16 for each in attachment.own.parameters())
    with attachment:
        half = model(**batch).logits
        assert half.dtype == torch.bfloat16
        model.float()
        torch.testing.assert_close(model(**batch).logits, half.float(), atol=0.3, rtol=0.1)
        model.to("meta")
        assert all(each.device.type == "meta" for each in attachment.own.parameters())


def test_what_was_saved_is_loaded_again_and_the_plain_model_reads_it_too(tmp_path):
    model, batch = tiny_m2m100(), random_batch()
    with shake(adapters(model)):
        wanted = model(**batch).logits
        model.save_pretrained(tmp_path)
    again = tiny_m2m100(seed=3)
    with adapters(again, seed=9):
        load_weights(again, tmp_path)
        assert torch.equal(again(**batch).logits, wanted)
    bare = type(model).from_pretrained(tmp_path)
    assert torch.equal(bare(**plain(batch)).logits, model(**plain(batch)).logits)


def test_weights_that_are_missing_or_have_no_place_are_not_loaded(tmp_path):
    model = tiny_m2m100()
    model.save_pretrained(tmp_path / "plain")
    with adapters(model):
        model.save_pretrained(tmp_path / "adapted")
        with pytest.raises(ArtifactError, match=r"144 are missing \(nspec_own.for_en-de"):
            load_weights(model, tmp_path / "plain")
    with pytest.raises(ArtifactError, match=r"0 are missing \(none\), 144 are not this model's"):
        load_weights(model, tmp_path / "adapted")
    load_weights(model, tmp_path / "plain")


CASES = {
    "pair_adapters": ("pair_adapters", {"bottleneck": 6}),
    "scratch": ("pair_adapters", {"bottleneck": 6, "per_layer": 1}),
    "family_adapters": ("family_adapters", {"bottleneck": 6}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_trains_scores_and_is_not_done_again(based, case, monkeypatch):
    folder, file = based
    system, settings = CASES[case]
    run(file, system, case, settings)
    found = result(folder, case)
    per_layer, places = settings.get("per_layer", 2 if system == "pair_adapters" else 1), 2
    each = places * per_layer * (2 * 16 + 2 * 16 * 6 + 16 + 6)
    keys = 4 if system == "pair_adapters" else len(set(found["extraction"]["families"].values()))
    assert found["extra_parameters"] == keys * each
    assert ("pretraining" in found) == (case == "scratch")
    assert scored(found) == TESTED
    assert found["attachment"]["adapters"] == {"bottleneck": 6, "per_layer": per_layer}
    monkeypatch.setattr(SpecializationTrainer, "train", None)
    monkeypatch.setattr("nspec_hf.evaluation.translator.Translator.translate", None)
    run(file, system, case, settings)
    assert result(folder, case) == found


def test_families_that_the_experiment_names_are_taken(based):
    folder, file = based
    named = ["--data.families", '{"de": "West", "fr": "West", "en": "Other"}']
    run(file, "family_adapters", "named", {"bottleneck": 3}, named)
    found = result(folder, "named")
    assert found["extraction"]["families"] == {"de": "West", "fr": "West"}
    assert found["extraction"]["families_from"] == "data"
    assert found["attachment"]["of"] == {"encoder": ["West"], "decoder": ["West"]}
    assert scored(result(folder, "named")) == TESTED
    other = ["--data.families", '{"de": "North", "fr": "South"}']
    with pytest.raises(ConfigError, match="was begun with other families"):
        run(file, "family_adapters", "named", {"bottleneck": 3}, other)
    with pytest.raises(ConfigError, match="no family for fr"):
        run(file, "family_adapters", "short", {}, ["--data.families", '{"de": "West"}'])


def test_a_frozen_base_stays_what_it_is_and_the_adapters_do_not(based):
    folder, file = based
    system, settings = CASES["pair_adapters"]
    run(file, system, "pair_adapters", settings)
    base, after = weights(folder / "work" / "base"), weights(folder / "work" / "pair_adapters" / "s1")
    own = {name for name in after if name.startswith(OWN_WEIGHTS)}
    assert all(torch.equal(after[name], base[name]) for name in after.keys() - own)
    assert all(after[name].any() for name in own if name.endswith("up.weight"))
    assert {name.split(".")[1] for name in own} == {f"for_{pair}" for pair in TRAINED}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_same_weights(based, case, tmp_path):
    folder, file = based
    system, settings = CASES[case]
    run(file, system, case, settings)
    # The second checkpoint of the continuation.
    stopped(folder, file, tmp_path, 4 if case == "scratch" else 2, system, case, settings)
    one, other = weights(folder / "work" / case / "s1"), weights(tmp_path / case / "s1")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    text = (tmp_path / "results" / f"tiny.{case}.s1.json").read_text(encoding="utf-8")
    assert json.loads(text)["scores"] == result(folder, case)["scores"]
