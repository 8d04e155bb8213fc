"""Several pairs in one export: each translates with its own neurons, as the model does under its gate."""

import dataclasses
import json

import pytest
import torch
from huggingface_hub import ModelCard
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM

from nspec_hf.core import ConfigError, ExportError, Pair
from nspec_hf.data import LanguageTags, PairCollator
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.export import ExportConfig, export as export_file, export_model, load_pruned, pruned
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import RecordConfig, find_sites, load_model, record
from nspec_hf.serving import BatchingTranslator, load
from tests.export.test_trim import by_argmax, setting, texts as text_of
from tests.helpers import tiny_text
from tests.helpers.models import SIX_ARCHITECTURES, random_batch
from tests.helpers.tiny_text import masks, model, texts, tokenizer

GROUP = ["en-de", "de-en", "fr-en"]
SHORT = TranslateConfig(num_beams=1, length_ratio=1.0, length_extra=3, progress=False)
pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def mixed(seed=4):
    """Return sentences of all pairs of the group in turn, and their pairs."""
    said = texts(5, seed, pairs=GROUP)
    rows = [(each.sources[i], str(each.pair)) for i in range(5) for each in said]
    return [row[0] for row in rows], [row[1] for row in rows]


def one_by_one(network, chosen, silence="neuron"):
    """Translate each sentence with a copy of the model that has its pair's neurons alone."""
    copies = {
        pair: Translator(pruned(network, chosen, pair, silence)[0], tokenizer(), None, SHORT)
        for pair in GROUP
    }
    return [copies[pair].translate(text, pair) for text, pair in zip(*mixed(), strict=True)]


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("form", ["zeroed", "padded", "pruned", "ctranslate2"])
def test_each_pair_of_a_group_translates_with_its_own_neurons_mixed_with_the_others(form, silence, tmp_path):
    pytest.importorskip("ctranslate2")
    network = model()
    chosen = masks(network)
    config = ExportConfig(format=form, silence=silence, multiple_of=1 if form == "zeroed" else 4)
    report = export_model(network, tokenizer(), chosen, GROUP, tmp_path / form, config)
    assert report.same == 1.0 > report.alone
    right = one_by_one(network, chosen, silence)
    together = Translator(pruned(network, chosen.subset(GROUP).union("all"), "all", silence)[0], tokenizer())
    assert right != together.translate(*mixed(), num_beams=1, max_new_tokens=20)
    loaded = load(tmp_path / form, translate=SHORT)
    assert loaded.translate(*mixed()) == right
    assert loaded.pairs == GROUP
    with BatchingTranslator(loaded) as service:
        assert service.translate(*mixed()) == right
    if form != "ctranslate2":
        sliced = load(tmp_path / form, translate=SHORT, gate=GateConfig(mode="slice", silence=silence))
        assert sliced.translate(*mixed()) == right


@pytest.mark.parametrize("name", ["mbart", "marian", "t5", "mt5"])
@pytest.mark.parametrize("form", ["padded", "pruned"])
def test_masks_of_every_family_are_renumbered_to_the_neurons_that_are_left(name, form, tmp_path):
    """Logits of the small model under its masks, against a copy of the whole one with the pair's neurons."""
    size = len(tokenizer())
    both = {"decoder_vocab_size": size} if name == "marian" else {}
    network = SIX_ARCHITECTURES[name](vocab_size=size, **both)
    chosen = masks(network, density=0.3)
    config = ExportConfig(format=form, max_new_tokens=4, sample=2)
    export_model(network, tokenizer(), chosen, GROUP, tmp_path / "out", config)
    small = (load_pruned if form == "pruned" else load_model)(tmp_path / "out")
    assert small.num_parameters() < network.num_parameters()
    batch = {key: value for key, value in random_batch().items() if key != "pair_ids"}
    logits = {}
    for pair in GROUP:
        with torch.no_grad(), NeuronGate(small, NeuronMasks.from_pretrained(tmp_path / "out")) as gate:
            gate.use(pair)
            logits[pair] = small(**batch).logits
            expected = pruned(network, chosen, pair)[0](**batch).logits
        torch.testing.assert_close(logits[pair], expected, rtol=0, atol=1e-5)
    assert not torch.allclose(logits["en-de"], logits["de-en"], atol=1e-2)


def test_a_mask_in_the_folder_keeps_the_very_rows_that_it_kept_in_the_whole_model(tmp_path):
    network = model()
    kinds = ("ffn", "attention", "ffn_out")
    pairs, sites = [*GROUP, "en-fr"], find_sites(network, kinds)
    chosen = NeuronMasks.random(sites, pairs, 0.4, 5)
    general = {name: keep_PF.all(0) for name, keep_PF in chosen.keep.items()}
    chosen = NeuronMasks(pairs, chosen.keep, general=general)
    export_model(network, tokenizer(), chosen, GROUP, tmp_path / "out", ExportConfig(format="pruned"))
    small, own = load_pruned(tmp_path / "out"), NeuronMasks.from_pretrained(tmp_path / "out")
    assert own.pairs == GROUP
    for site in sites:
        for part in ("weight", "bias"):
            whole, cut = (getattr(each.get_submodule(site.name), part) for each in (network, small))
            if part == "weight" and site.kind == "ffn_out":
                continue  # its rows lost the columns of neurons that are gone
            for pair in GROUP:
                assert torch.equal(cut[own[pair][site.name]], whole[chosen[pair][site.name]])
            assert torch.equal(cut[own.general[site.name]], whole[general[site.name]])
    assert "renumbered" in own.recipe.derived[-1]


def levelled(network):
    """Return masks of the group at three coverages, chosen from what a few sentences were counted to fire."""
    loader = DataLoader(
        tiny_text.corpus(12, pairs=GROUP), batch_size=6, collate_fn=PairCollator(tokenizer(), GROUP)
    )
    stats = record(network, loader, GROUP, RecordConfig(progress=False))
    return NeuronMasks.from_coverage(stats, 0.7, levels=(1.0, 0.5, 0.3))


@pytest.mark.parametrize(
    ("form", "trimmed"), [("zeroed", False), ("padded", False), ("pruned", False), ("padded", True)]
)
def test_a_group_keeps_the_sparser_levels_of_its_masks(form, trimmed, tmp_path):
    """Each sentence by a copy of the whole model that has its pair's neurons of that level alone."""
    network = model()
    chosen = levelled(network)
    config = ExportConfig(format=form, max_new_tokens=20)
    counted = texts(40, seed=1, pairs=GROUP) if trimmed else None
    report = export_model(network, tokenizer(), chosen, GROUP, tmp_path / "out", config, counted=counted)
    assert report.levels == (0.3, 0.5)  # 1.0 would need neurons that are gone
    assert "coverages that may be chosen too: 0.3, 0.5" in str(report)
    found = {}
    for coverage in (0.7, 0.5, 0.3):
        loaded = load(tmp_path / "out", translate=SHORT, coverage=coverage)
        found[coverage] = loaded.translate(*mixed())
        if not trimmed:
            assert found[coverage] == one_by_one(network, chosen.at(coverage))
        densest = pruned(network, chosen.at(coverage).subset(GROUP), "en-de")[1]
        assert {site: int(keep_F.sum()) for site, keep_F in loaded.masks["en-de"].items()} == densest
    assert len({tuple(rows) for rows in found.values()}) == 3
    assert load(tmp_path / "out", translate=SHORT).translate(*mixed()) == found[0.7]
    with pytest.raises(ConfigError, match=r"no masks of coverage 1 .* 0\.3, 0\.5"):
        load(tmp_path / "out", coverage=1.0)
    below = export_model(network, tokenizer(), chosen.at(0.5), GROUP, tmp_path / "below", config)
    assert below.levels == (0.3,)
    assert load(tmp_path / "below", translate=SHORT).translate(*mixed()) == one_by_one(
        network, chosen.at(0.5)
    )


def test_a_level_with_other_neurons_is_not_left_behind(tmp_path, monkeypatch):
    network = model()
    right = export_file.renumbered

    def swapped(own, together, small):
        made = right(own, together, small)
        return NeuronMasks(
            made.pairs, made.keep, recipe=made.recipe, levels={0.3: made.levels[0.5], 0.5: made.levels[0.3]}
        )

    monkeypatch.setattr(export_file, "renumbered", swapped)
    with pytest.raises(ExportError, match="not written"):
        export_model(
            network, tokenizer(), levelled(network), GROUP, tmp_path / "out", ExportConfig(sample=20)
        )
    assert list(tmp_path.iterdir()) == []


def test_plain_classes_load_the_neurons_of_all_and_the_folder_says_what_that_changes(tmp_path):
    network = model()
    chosen = masks(network)
    config = ExportConfig(format="padded", sample=6)
    report = export_model(network, tokenizer(), chosen, GROUP, tmp_path / "out", config)
    plain = Translator(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out"), tokenizer(), None, SHORT)
    union = pruned(network, chosen.subset(GROUP).union("all"), "all")[0]
    assert plain.translate(*mixed()) == Translator(union, tokenizer(), None, SHORT).translate(*mixed())
    page = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert ModelCard(page).data.language == ["de", "en", "fr"]
    assert f"that writes {report.alone:.1%} as each pair's own neurons do" in page
    assert "plain classes load it" in str(report)
    written = json.loads((tmp_path / "out/nspec_export.json").read_text(encoding="utf-8"))
    assert written["sharing"] == "gated"


def test_a_trimmed_vocabulary_goes_with_each_pairs_own_neurons(tmp_path):
    """A plain loop of argmax that may not write the tokens that are gone."""
    network, words, chosen = setting("recipe_unigram", tmp_path)
    config = ExportConfig(format="padded", max_new_tokens=8, sample=4)
    counted, held_out = text_of("recipe_unigram", 40), text_of("recipe_unigram", 20, seed=1)
    pairs = [str(each.pair) for each in counted]
    report = export_model(
        network, words, chosen, pairs, tmp_path / "out", config, counted=counted, held_out=held_out
    )
    assert report.same == 1.0
    loaded = load(tmp_path / "out", translate=TranslateConfig(num_beams=1, progress=False))
    before, after = LanguageTags(words), LanguageTags(loaded.tokenizer)
    old = {number: before._vocabulary[token] for token, number in after._vocabulary.items()}
    gone = sorted({*range(network.config.vocab_size)} - {*old.values()} | {words.pad_token_id})
    for text in held_out:
        small = pruned(network, chosen, text.pair)[0]
        for sentence in text.sources[:3]:
            (row,) = after.encode_source([sentence], text.pair)
            prompt = [old[number] for number in after.decoder_prefix(text.pair, after.tokenizer.eos_token_id)]
            row = [old[number] for number in row]
            ids = by_argmax(small, row, prompt, gone, words.eos_token_id, 8)
            said = words.decode(ids, skip_special_tokens=True)
            assert loaded.translate(sentence, str(text.pair), max_new_tokens=8) == said


def test_a_group_for_ctranslate2_is_a_model_a_pair_or_one_for_all_where_that_is_asked_for(tmp_path):
    pytest.importorskip("ctranslate2")
    network = model()
    chosen = masks(network)
    apart = export_model(
        network, tokenizer(), chosen, GROUP, tmp_path / "apart", ExportConfig(format="ctranslate2")
    )
    one = ExportConfig(format="ctranslate2", group="union")
    union = export_model(network, tokenizer(), chosen, GROUP, tmp_path / "union", one)
    sizes = {pair: (tmp_path / "apart" / pair / "model.bin").stat().st_size for pair in GROUP}
    assert apart.bytes == sum(sizes.values()) > union.bytes > max(sizes.values())
    assert apart.parameters == sum(pruned(network, chosen, pair)[0].num_parameters() for pair in GROUP)
    assert (apart.sharing, union.sharing) == ("apart", "union")
    assert "CTranslate2 has no masks" in str(apart)
    assert apart.alone == union.alone < 1
    assert set(load(tmp_path / "apart").model) == set(GROUP)
    loaded = load(tmp_path / "union", translate=SHORT)
    whole = Translator(pruned(network, chosen.subset(GROUP).union("all"), "all")[0], tokenizer(), None, SHORT)
    assert loaded.translate(*mixed()) == whole.translate(*mixed())
    assert (loaded.masks, loaded.gate) == (None, None)


def test_folders_of_a_group_have_names_that_every_system_takes_and_older_ones_are_still_read(tmp_path):
    pytest.importorskip("ctranslate2")
    network, codes = model(), {"zh-TW": "de"}
    pairs = [Pair("zh-TW", "en"), Pair("en", "zh-TW")]
    chosen = masks(network, pairs)
    form = ExportConfig(format="ctranslate2")
    export_model(network, tokenizer(), chosen, pairs, tmp_path / "made", form, codes=codes)
    names = [path.name for path in (tmp_path / "made").rglob("*")]
    assert not set("".join(names)) & set('<>:"|?*\\')
    assert {"zh-TW--en", "en--zh-TW"} <= set(names)
    rows = ["eins zwei drei", "one two three"]
    alone = [
        Translator(pruned(network, chosen, pair)[0], LanguageTags(tokenizer(), codes), None, SHORT)
        for pair in pairs
    ]
    expected = [one.translate(*each) for one, each in zip(alone, zip(rows, pairs, strict=True), strict=True)]
    assert load(tmp_path / "made", translate=SHORT, codes=codes).translate(rows, pairs) == expected
    for pair in pairs:
        (tmp_path / "made" / pair.file_name).rename(tmp_path / "made" / pair)
    assert load(tmp_path / "made", translate=SHORT, codes=codes).translate(rows, pairs) == expected


@pytest.mark.parametrize("quantization", ["int8", "int8_float32"])
def test_quantized_models_of_a_group_are_those_of_each_pair_alone_and_the_whole_one_is_untouched(
    quantization, tmp_path
):
    pytest.importorskip("ctranslate2")
    network = model()
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    config = ExportConfig(format="ctranslate2", quantization=quantization, sample=2, quantized_agreement=0.0)
    export_model(network, tokenizer(), masks(network), GROUP, tmp_path / "group", config)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    for pair in GROUP:
        fresh = model()
        export_model(fresh, tokenizer(), masks(fresh), pair, tmp_path / pair, config)
        alone, together = (tmp_path / pair / "model.bin", tmp_path / "group" / pair / "model.bin")
        assert alone.read_bytes() == together.read_bytes()


def test_quantized_weights_are_compared_with_float32_ones_and_refused_below_the_floor(tmp_path):
    """Both models by CTranslate2 itself, sentence by sentence; the gate's tokens are another number.

    How much 8 bits change depends on what multiplies them here: the first model of which they change some.
    """
    library = pytest.importorskip("ctranslate2")
    rows = [sentence for sentence in texts(40, seed=5, pairs=["en-de"])[0].sources]
    sample, tags = {"en-de": rows}, LanguageTags(tokenizer())
    for seed in range(2, 12):
        network, folder = model(seed=seed), tmp_path / str(seed)
        written = {}
        for kind in ("float32", "int8"):
            floor = {} if kind == "float32" else {"quantized_agreement": 0.0}
            config = ExportConfig(format="ctranslate2", quantization=kind, max_new_tokens=20, **floor)
            report = export_model(
                network, tokenizer(), masks(network), "en-de", folder / kind, config, sample
            )
            written[kind] = greedy(library, folder / kind, tags, rows)
        alike = sum(a == b for a, b in zip(written["float32"], written["int8"], strict=True)) / len(rows)
        assert report.quantized == alike
        if 0 < alike < 1:
            break
    if not 0 < alike < 1:
        pytest.skip("this processor's 8 bits change all sentences or none")
    assert f"{alike:.1%} of them have the tokens of the same model in float32" in str(report)
    stated = json.loads((folder / "int8/nspec_export.json").read_text(encoding="utf-8"))
    assert (stated["quantized"], stated["config"]["quantized_agreement"]) == (alike, 0.0)
    before = sorted(folder.iterdir())
    strict = dataclasses.replace(config, quantized_agreement=alike + 0.01)
    with pytest.raises(ExportError, match=r"as the same model in float32 does.* required \(quantized_agree"):
        export_model(network, tokenizer(), masks(network), "en-de", folder / "no", strict, sample)
    assert sorted(folder.iterdir()) == before
    held = dataclasses.replace(config, quantized_agreement=alike)
    export_model(network, tokenizer(), masks(network), "en-de", folder / "yes", held, sample)
    assert (folder / "yes/model.bin").read_bytes() == (folder / "int8/model.bin").read_bytes()


def greedy(library, folder, tags, rows):
    """Translate with CTranslate2 alone."""
    names = tags.tokenizer.convert_ids_to_tokens
    prefix = names(tags.decoder_prefix(Pair("en-de"), tags.tokenizer.eos_token_id))[1:]
    said = library.Translator(str(folder), intra_threads=1).translate_batch(
        [names(ids) for ids in tags.encode_source(rows, Pair("en-de"))],
        target_prefix=[prefix] * len(rows),
        beam_size=1,
        max_decoding_length=20 + len(prefix),
        suppress_sequences=[[tags.tokenizer.pad_token]],
    )
    return [each.hypotheses[0] for each in said]


def test_pairs_with_the_same_neurons_need_no_masks(tmp_path):
    network = model()
    first = masks(network, pairs=[Pair(GROUP[0])])
    keep = {name: keep_PF.repeat(3, 1) for name, keep_PF in first.keep.items()}
    report = export_model(network, tokenizer(), NeuronMasks(GROUP, keep), GROUP, tmp_path / "out")
    assert (report.sharing, report.alone) == ("", 1.0)
    assert not (tmp_path / "out/nspec_masks.safetensors").exists()


def test_masks_of_other_neurons_are_not_left_behind(tmp_path, monkeypatch):
    network = model()
    right = export_file.renumbered

    def turned(own, together, small):
        made = right(own, together, small)
        return NeuronMasks(made.pairs, {name: keep_PF.flip(1) for name, keep_PF in made.keep.items()})

    monkeypatch.setattr(export_file, "renumbered", turned)
    with pytest.raises(ExportError, match="not written"):
        export_model(network, tokenizer(), masks(network), GROUP, tmp_path / "out", ExportConfig(sample=20))
    assert not (tmp_path / "out").exists()


def test_a_group_that_is_no_choice_is_refused():
    with pytest.raises(ConfigError, match="own or union"):
        ExportConfig(group="all")
