"""One call from a folder or a repository to translations: what its parts, put together by hand, give."""

import copy
import json
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

import nspec_hf
from nspec_hf.adding import AddConfig, AddedPairs, Addition, layout_for, save_added
from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    SiteMismatchError,
    UnknownPairError,
    UnsupportedModelError,
)
from nspec_hf.data import PairCollator
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.export import ExportConfig, export_model, pruned
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks, Recipe
from nspec_hf.recording import RecordConfig, record, weight_fingerprint
from nspec_hf.serving import load
from tests.helpers.hub_stand_in import HubStandIn, run
from tests.helpers.models import tiny_marian
from tests.helpers.tiny_text import PAIRS, corpus, masks, model, texts, tokenizer

SHORT = TranslateConfig(num_beams=2, length_ratio=1.0, length_extra=3, progress=False)
pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def mixed(count=2):
    """Return texts of all pairs in turn, and their pairs."""
    said = texts(count, seed=2)
    rows = [(each.sources[i], str(each.pair)) for i in range(count) for each in said]
    return [row[0] for row in rows], [row[1] for row in rows]


def save(folder, network):
    """Write a model with its tokenizer."""
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def named(network, chosen, base, **more):
    """Return masks whose recipe names a base, with the fingerprint of its weights."""
    counted = weight_fingerprint(network)
    recipe = Recipe(method="random", base_model=str(base), weight_fingerprint=counted, **more)
    return NeuronMasks(chosen.pairs, chosen.keep, recipe=recipe)


def trained_by(folder, chosen, config=None, **others):
    """Write what a run says of how it trained the model in a folder."""
    gate = {"masks": chosen.fingerprint(), "gate": asdict(config or GateConfig())} | others
    (folder / "made_by.json").write_text(json.dumps({"gate": gate}))


def expected(network, chosen, config=None):
    return Translator(network, tokenizer(), chosen, SHORT, config).translate(*mixed())


@pytest.fixture
def network():
    return model()


@pytest.fixture
def chosen(network):
    return masks(network)


def test_the_name_is_public():
    assert nspec_hf.load is load


def test_masks_are_put_on_the_base_that_they_name(network, chosen, tmp_path):
    base = save(tmp_path / "base", network)
    named(network, chosen, base).save_pretrained(tmp_path / "masks")
    loaded = load(tmp_path / "masks", translate=SHORT)
    assert loaded.translate(*mixed()) == expected(network, chosen)
    assert loaded.translate(*mixed()) != expected(network, None)
    assert loaded.masks == chosen
    assert loaded.pairs == PAIRS
    assert loaded.gate.attached
    assert loaded.weights.startswith("as stated")
    assert (loaded.base, loaded.revision) == (str(base), "")


def test_a_model_that_is_named_beside_the_masks_is_taken_with_the_gate_that_is_stated(
    network, chosen, tmp_path
):
    trained, gate = model(seed=5), GateConfig(silence="weights")
    save(tmp_path / "trained", trained)
    named(network, chosen, tmp_path / "nowhere").save_pretrained(
        tmp_path / "masks", model=str(tmp_path / "trained"), use={"gate": asdict(gate)}
    )
    loaded = load(tmp_path / "masks", translate=SHORT)
    assert loaded.translate(*mixed()) == expected(trained, chosen, gate)
    assert loaded.gate.config == gate
    asked = load(tmp_path / "masks", translate=SHORT, gate=GateConfig())
    assert asked.translate(*mixed()) == expected(trained, chosen)


def test_a_level_of_the_masks_is_run_wherever_they_lie(network, tmp_path):
    """Each sentence by a copy of the model that has its pair's neurons of that level alone."""
    loader = DataLoader(corpus(12), batch_size=6, collate_fn=PairCollator(tokenizer(), PAIRS))
    chosen = NeuronMasks.from_coverage(
        record(network, loader, PAIRS, RecordConfig(progress=False)), 0.9, levels=(0.4,)
    )
    base = save(tmp_path / "run/model", network)
    chosen.save_pretrained(tmp_path / "run/masks")
    trained_by(base, chosen)
    counted = weight_fingerprint(network)
    recipe = replace(chosen.recipe, base_model=str(base), weight_fingerprint=counted)
    alone = NeuronMasks(chosen.pairs, chosen.keep, recipe=recipe, levels=chosen.levels)
    alone.save_pretrained(tmp_path / "masks")
    layout = layout_for(network, ["en-xx"], AddConfig(), 0.5, ids=[4, 9], about={"base": str(base)})
    addition = Addition(network, layout).draw(network, 1, {})
    save_added(AddedPairs(network, [addition], chosen), tmp_path / "added")
    found = {}
    for coverage in (0.9, 0.4):
        copies = {
            pair: Translator(pruned(network, chosen.at(coverage), pair)[0], tokenizer(), None, SHORT)
            for pair in PAIRS
        }
        right = [copies[pair].translate(text, pair) for text, pair in zip(*mixed(), strict=True)]
        for place in ("run", "masks", "added"):
            loaded = load(tmp_path / place, translate=SHORT, coverage=coverage)
            assert loaded.translate(*mixed()) == right
            assert loaded.masks == chosen.at(coverage)
        found[coverage] = right
    assert found[0.9] != found[0.4]
    assert load(tmp_path / "run", translate=SHORT).translate(*mixed()) == found[0.9]
    export_model(network, tokenizer(), chosen, "en-de", tmp_path / "exported")
    refused = {
        "run": r"no masks of coverage 0\.5 .* 0\.4",
        "run/model": "has no masks",
        "exported": "holds no masks",
    }
    (base / "made_by.json").unlink()
    for place, said in refused.items():
        with pytest.raises(ConfigError, match=said):
            load(tmp_path / place, coverage=0.5)


def test_another_base_can_be_asked_for(network, chosen, tmp_path):
    other = model(seed=7)
    save(tmp_path / "other", other)
    named(network, chosen, tmp_path / "nowhere").save_pretrained(tmp_path / "masks")
    loaded = load(tmp_path / "masks", base=tmp_path / "other", translate=SHORT)
    assert loaded.translate(*mixed()) == expected(other, chosen)


def test_a_base_with_other_weights_than_were_counted_is_warned_about(network, chosen, tmp_path):
    save(tmp_path / "base", model(seed=9))
    named(network, chosen, tmp_path / "base").save_pretrained(tmp_path / "masks")
    with pytest.warns(UserWarning, match="trained or replaced since") as caught:
        loaded = load(tmp_path / "masks")
    assert weight_fingerprint(network) in str(caught[0].message)
    assert loaded.weights.startswith("others")


@pytest.mark.filterwarnings("error:.*trained or replaced since")
@pytest.mark.parametrize("is_added", [False, True])
def test_a_model_that_is_loaded_in_another_type_is_known_by_the_weights_that_were_saved(
    network, chosen, tmp_path, is_added
):
    pairs = ["en-fr", "fr-en"] if is_added else PAIRS
    base = str(save(tmp_path / "base", network))
    if is_added:
        layout = layout_for(network, pairs, AddConfig(), 0.5, ids=[7, 8], about={"base": base})
        acting = AddedPairs(network, [Addition(network, layout).draw(network, 1, {7: [9], 8: [9]})])
        save_added(acting, tmp_path / "it")
    else:
        named(network, chosen, base).save_pretrained(tmp_path / "it")
        acting = NeuronGate(network, chosen)
    loaded = load(tmp_path / "it", dtype=torch.bfloat16, translate=SHORT)
    assert loaded.weights.startswith("as stated")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    with acting:
        network.to(torch.bfloat16)
        rows = acting.include_all(pairs[:2])
        inputs = {"input_ids": torch.tensor([[7, 8, 9, 10]] * 2), "pair_ids": torch.tensor(rows)}
        inputs["decoder_input_ids"] = torch.tensor([[2, 8, 7]] * 2)
        with torch.no_grad():
            assert torch.equal(loaded.model(**inputs).logits, network(**inputs).logits)
    save(tmp_path / "base", model(seed=9))
    if is_added:
        with pytest.raises(SiteMismatchError, match="load that base"):
            load(tmp_path / "it", dtype=torch.bfloat16)
    else:
        with pytest.raises(UserWarning, match="trained or replaced since"):
            load(tmp_path / "it", dtype=torch.bfloat16)


def test_a_run_brings_its_model_its_masks_and_how_they_acted(network, chosen, tmp_path):
    save(tmp_path / "run" / "model", network)
    chosen.save_pretrained(tmp_path / "run" / "masks")
    gate = GateConfig(silence="weights", zero_shot="compose")
    trained_by(tmp_path / "run" / "model", chosen, gate)
    loaded = load(tmp_path / "run", translate=SHORT)
    assert loaded.translate(*mixed()) == expected(network, chosen, gate)
    assert loaded.translate(*mixed()) != expected(network, chosen)
    loaded.check("de-fr")
    # The masks alone, with that model, act so too.
    again = load(tmp_path / "run" / "masks", base=tmp_path / "run" / "model", translate=SHORT)
    assert again.gate.config == gate


def test_of_several_masks_of_a_run_those_are_taken_that_its_model_was_trained_with(network, chosen, tmp_path):
    last = masks(network, seed=8)
    save(tmp_path / "model", network)
    chosen.save_pretrained(tmp_path / "masks")
    last.save_pretrained(tmp_path / "checkpoint-4" / "nspec_masks")
    trained_by(tmp_path / "model", last)
    assert load(tmp_path).masks == last
    trained_by(tmp_path / "model", masks(network, seed=9))
    with pytest.warns(UserWarning, match="was trained with masks"):
        load(tmp_path)


def test_masks_that_lie_in_the_models_own_folder_are_its(network, chosen, tmp_path):
    save(tmp_path, network)
    chosen.save(tmp_path / "nspec_masks.safetensors")
    assert load(tmp_path, translate=SHORT).translate(*mixed()) == expected(network, chosen)


def test_a_plain_model_runs_all_its_neurons(network, tmp_path):
    loaded = load(save(tmp_path, network), translate=SHORT)
    assert loaded.translate(*mixed()) == expected(network, None)
    assert (loaded.pairs, loaded.masks, loaded.gate) == (None, None, None)


@pytest.mark.parametrize("masked", [True, False])
def test_pairs_that_were_added_are_known_beside_those_of_the_masks(network, tmp_path, masked):
    save(tmp_path / "base", network)
    old, new = (masks(network, PAIRS[:2]) if masked else None), ["en-fr", "fr-en"]
    layout = layout_for(network, new, AddConfig(), 0.5, about={"base": str(tmp_path / "base")})
    other = copy.deepcopy(network)
    added = AddedPairs(other, [Addition(other, layout).draw(other, 1, {})], old)
    save_added(added, tmp_path / "added")
    loaded = load(tmp_path / "added", translate=SHORT)
    assert loaded.pairs == ([*new, *PAIRS[:2]] if masked else None)
    for pair in [*new, *PAIRS[:2]]:
        loaded.check(pair)
    if masked:
        with pytest.raises(UnknownPairError, match="de-fr"):
            loaded.check("de-fr")
    else:
        loaded.check("de-fr")


@pytest.mark.parametrize("form", ["zeroed", "pruned", "ctranslate2"])
def test_an_exported_model_translates_its_pairs_as_the_gate_does_and_no_other(
    network, chosen, tmp_path, form
):
    export_model(network, tokenizer(), chosen, "en-de", tmp_path / form, ExportConfig(format=form, sample=4))
    greedy = TranslateConfig(num_beams=1, length_ratio=1.0, length_extra=3, progress=False)
    loaded = load(tmp_path / form, translate=greedy)
    said = texts(6, seed=4, pairs=["en-de"])[0].sources
    gated = Translator(network, tokenizer(), chosen, greedy)
    assert loaded.translate([*said, " "], "en-de") == [*gated.translate(said, "en-de"), ""]
    assert loaded.pairs == ["en-de"]
    assert loaded.translate("one two", "en-de", max_new_tokens=4) == gated.translate(
        "one two", "en-de", max_new_tokens=4
    )
    for call in (loaded.check, lambda pair: loaded.translate("un", pair)):
        with pytest.raises(UnknownPairError, match=r"'fr-en' is not in the exported model.*en-de"):
            call("fr-en")
    with pytest.raises(ConfigError, match="baked in"):
        load(tmp_path / form, base="some/base")


@pytest.mark.parametrize("longest", [None, 100])
def test_a_converted_model_cuts_what_its_positions_do_not_hold_as_the_plain_one_does(tmp_path, longest):
    ids = tokenizer()
    network = tiny_marian(
        vocab_size=len(ids),
        decoder_vocab_size=len(ids),
        max_position_embeddings=12,
        pad_token_id=ids.pad_token_id,
        eos_token_id=ids.eos_token_id,
        decoder_start_token_id=ids.pad_token_id,
    )
    chosen = masks(network)
    export_model(
        network, ids, chosen, "en-de", tmp_path / "ct2", ExportConfig(format="ctranslate2", sample=4)
    )
    greedy = TranslateConfig(num_beams=1, length_ratio=3.0, length_extra=9, progress=False)
    long = ["one two three " * 9, "two"]
    with pytest.warns(UserWarning, match="1 texts are longer than 12 tokens"):
        expected = Translator(network, ids, chosen, greedy).translate(long, "en-de")
    loaded = load(tmp_path / "ct2", translate=greedy)
    assert loaded.translator.limit == 12
    with pytest.warns(UserWarning, match="1 texts are longer than 12 tokens"):
        found = loaded.translate(long, "en-de", **({"max_new_tokens": longest} if longest else {}))
    assert found == expected


def test_a_converted_model_tells_how_many_translations_have_no_end(tmp_path):
    ids, network = tokenizer(), model(max_position_embeddings=24)
    with torch.no_grad():  # some translations end, after two tokens and more
        network.get_input_embeddings().weight[ids.eos_token_id] *= -4
    chosen = masks(network)
    export_model(network, ids, chosen, "en-de", tmp_path, ExportConfig(format="ctranslate2", sample=4))
    greedy = TranslateConfig(num_beams=1, length_ratio=1.0, length_extra=3, progress=False)
    said = texts(30, seed=4, pairs=["en-de"])[0].sources

    def told(translator, bound):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            translator.translate(said, "en-de", max_new_tokens=bound)
        return [str(each.message) for each in caught if "without an end" in str(each.message)]

    bounds = (None, 2, 3, 4, 5, 6, 9)
    expected = [told(Translator(network, ids, chosen, greedy), bound) for bound in bounds]
    assert len({str(each) for each in expected}) > 4
    assert [told(load(tmp_path, translate=greedy), bound) for bound in bounds] == expected


def test_what_would_be_passed_over_without_a_word_is_refused(network, chosen, tmp_path):
    export_model(network, tokenizer(), chosen, "en-de", tmp_path / "ct2", ExportConfig(format="ctranslate2"))
    with pytest.raises(ConfigError, match="CTranslate2, which takes no device, dtype"):
        load(tmp_path / "ct2", device="cuda", dtype=torch.float16)
    with pytest.raises(ConfigError, match="base_revision goes with base="):
        load(tmp_path, base_revision="main")


def test_a_converted_model_refuses_settings_that_its_library_does_not_have(network, chosen, tmp_path):
    export_model(network, tokenizer(), chosen, "en-de", tmp_path / "ct2", ExportConfig(format="ctranslate2"))
    with pytest.raises(ConfigError, match="CTranslate2 is not told do_sample"):
        load(tmp_path / "ct2").translate("one", "en-de", do_sample=True)
    loaded = load(tmp_path / "ct2")
    nothing = dict.fromkeys(["num_beams", "length_penalty", "no_repeat_ngram_size", "max_new_tokens"])
    assert loaded.translate("one two", "en-de", **nothing) == loaded.translate("one two", "en-de")


def test_what_cannot_be_loaded_is_refused_by_name(network, chosen, tmp_path):
    with pytest.raises(ArtifactError, match=r"neither masks .* a run .* nor a model"):
        load(tmp_path)
    NeuronMasks(chosen.pairs, chosen.keep).save_pretrained(tmp_path / "masks")
    with pytest.raises(ArtifactError, match="do not name their model; give base"):
        load(tmp_path / "masks")
    named(network, chosen, tmp_path / "nowhere").save_pretrained(tmp_path / "masks")
    with pytest.raises(ArtifactError, match="nowhere is no model's folder"):
        load(tmp_path / "masks")
    save(tmp_path / "run" / "model", network)
    trained_by(tmp_path / "run" / "model", chosen)
    with pytest.raises(ArtifactError, match="which do not lie beside it"):
        load(tmp_path / "run")
    with pytest.raises(ConfigError, match="no masks that a gate could apply"):
        load(save(tmp_path / "plain", network), gate=GateConfig())
    (tmp_path / "run" / "model" / "made_by.json").write_text('{"gate": {"bottleneck": 128}}')
    with pytest.raises(UnsupportedModelError, match=r"more than masks \(bottleneck\)"):
        load(tmp_path / "run")
    (tmp_path / "run" / "model" / "made_by.json").write_text(
        '{"gate": {"masks": "x", "gate": {"mode": "?"}}}'
    )
    with pytest.raises(ArtifactError, match="states a gate that cannot be"):
        load(tmp_path / "run")


def test_a_threads_translation_is_its_own(network, chosen, tmp_path):
    """Four threads, each a pair; `tests/gating/test_threads.py` looks at single passes."""
    from concurrent.futures import ThreadPoolExecutor

    save(tmp_path / "model", network)
    chosen.save_pretrained(tmp_path / "masks")
    loaded = load(tmp_path, translate=SHORT)
    said = texts(3, seed=6)
    right = {
        each.pair: Translator(copy.deepcopy(network), tokenizer(), chosen, SHORT).translate(
            each.sources, each.pair
        )
        for each in said
    }
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: loaded.translate(each.sources, each.pair), said * 3))
    assert found == [right[each.pair] for each in said * 3]


PULL = """
import json, sys
from nspec_hf import load
from nspec_hf.evaluation import TranslateConfig

said, asked = json.loads(sys.argv[1]), json.loads(sys.argv[2])
short = TranslateConfig(num_beams=2, length_ratio=1.0, length_extra=3, progress=False)
found = []
for arguments in asked:
    try:
        loaded = load(translate=short, **arguments)
        found.append([loaded.translate(*said), loaded.revision, loaded.base, loaded.weights])
    except Exception as error:
        found.append(f"{type(error).__name__}: {error}")
print(json.dumps(found))
"""


def pull(hub, home, asked, said=None):
    """Return what `load` gives in a process whose Hub is the stand-in."""
    return run(hub, home, PULL, json.dumps(said or mixed()), json.dumps(asked), token=None)


def put(hub, repo, folder, inside="", branch="main"):
    """Put a folder's files into a repository of the stand-in; return the commit."""
    if repo not in hub.commits:
        hub.commits[repo], hub.downloads[repo] = [], 0
        hub.commit(repo, {})
    hub.branches.setdefault((repo, branch), hub.branches[repo, "main"])
    files = dict(hub.find(repo, branch)[1])
    for path in folder.rglob("*"):
        if path.is_file():
            files[f"{inside}{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    return hub.commit(repo, files, branch)


@pytest.mark.medium
def test_from_the_hub_come_masks_and_the_base_at_its_revision(network, chosen, tmp_path):
    with HubStandIn() as hub:
        first = put(hub, "some/base", save(tmp_path / "base", network))
        put(hub, "some/base", save(tmp_path / "newer", model(seed=4)))
        named(network, chosen, "some/base", revision=first).save_pretrained(tmp_path / "masks")
        old = put(hub, "me/masks", tmp_path / "masks")
        fewer = masks(network, density=0.3)
        named(network, fewer, "some/base", revision=first).save_pretrained(tmp_path / "fewer")
        new = put(hub, "me/masks", tmp_path / "fewer")
        put(hub, "me/masks", tmp_path / "masks", "sets/k60/")
        export_model(network, tokenizer(), chosen, "en-de", tmp_path / "small", ExportConfig(format="pruned"))
        put(hub, "me/small", tmp_path / "small")
        save(tmp_path / "run" / "model", network)
        chosen.save_pretrained(tmp_path / "run" / "masks")
        put(hub, "me/run", tmp_path / "run")
        asked = [
            {"repo_or_folder": "me/masks", "revision": old},
            {"repo_or_folder": "me/masks", "revision": new},
            {"repo_or_folder": "me/masks", "subfolder": "sets/k60"},
            {"repo_or_folder": "me/masks", "revision": old, "base": "some/base"},
            {"repo_or_folder": "me/masks", "revision": "v9"},
            {"repo_or_folder": "me/run"},
            {"repo_or_folder": "me/small"},
        ]
        found = pull(hub, tmp_path / "home", asked)
        said = texts(3, seed=1, pairs=["en-de"])[0].sources
        small = pull(hub, tmp_path / "home", asked[-1:], [said, "en-de"])
    right, right_fewer = expected(network, chosen), expected(network, fewer)
    assert right != right_fewer
    assert found[0][:3] == [right, old, f"some/base ({first})"]
    assert found[1][:2] == [right_fewer, new]
    assert found[2][0] == right
    assert found[3][0] == expected(model(seed=4), chosen)
    assert found[4].startswith("RevisionNotFoundError")
    assert found[5][0] == right
    assert found[6].startswith("UnknownPairError")
    assert small[0][0] == Translator(network, tokenizer(), chosen, SHORT).translate(said, "en-de")
    assert [each[3].split(" (")[0] for each in found[:3]] == ["as stated"] * 3


@pytest.mark.medium
def test_masks_that_were_altered_on_the_hub_are_refused(network, chosen, tmp_path):
    save(tmp_path / "base", network)
    chosen.save_pretrained(tmp_path / "masks")
    path = tmp_path / "masks" / "nspec_masks.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("keep/"))
    tensors[name] = torch.flip(tensors[name], [0])
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        save_file(tensors, path, file.metadata())
    with HubStandIn() as hub:
        put(hub, "me/masks", tmp_path / "masks")
        (found,) = pull(
            hub, tmp_path / "home", [{"repo_or_folder": "me/masks", "base": str(tmp_path / "base")}]
        )
    assert found.startswith("ArtifactError")
    assert "SHA-256" in found
