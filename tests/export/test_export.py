"""Export: a pair's own model says what the gate says, in all three forms, and is as small as its masks."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from nspec_hf.adding import AddConfig, AddedPairs, Addition, layout_for
from nspec_hf.core import ArtifactError, ConfigError, ExportError, Pair, UnsupportedModelError
from nspec_hf.data import LanguageTags, VocabularyConfig, train_vocabulary
from nspec_hf.export import (
    Decoder,
    ExportConfig,
    export as export_file,
    export_model,
    gated_tokens,
    greedy,
    load_pruned,
    pruned,
)
from nspec_hf.export.prune import baked
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites, load_model
from tests.helpers.gated import without_ids, zeroed_copy
from tests.helpers.models import SIX_ARCHITECTURES, random_batch
from tests.helpers.tiny_tokenizers import make_tokenizer

PAIRS = ["en-de", "de-en", "en-fr"]
TEXT = [
    "a small dog runs in the park",
    "ein kleiner hund läuft im park",
    "un petit chien court",
    "two men talk",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary(TEXT * 20, ["en", "de", "fr"], VocabularyConfig(size=60))


def make(name, tokenizer, **changes):
    """A tiny model with the recipe's own vocabulary."""
    size = {
        "vocab_size": len(tokenizer),
        **({"decoder_vocab_size": len(tokenizer)} if name == "marian" else {}),
    }
    return SIX_ARCHITECTURES[name](**size, **changes)


def zeroed(model, masks, pair, silence="neuron"):
    return baked(model, masks, pair, "zeroed", silence)[0]


def random_masks(model, kinds=("ffn",), density=0.5) -> NeuronMasks:
    sites = {site.name: site.width for site in find_sites(model, kinds)}
    return NeuronMasks.random(sites=sites, pairs=PAIRS, density=density, seed=3)


def gated_logits(model, masks, pair, silence):
    batch = {key: value for key, value in random_batch().items() if key != "pair_ids"}
    with NeuronGate(model, masks, GateConfig(silence=silence)) as gate, torch.no_grad():
        gate.use(pair)
        return model(**batch).logits


def plain_logits(model):
    batch = without_ids(random_batch())
    del batch["labels"]
    for name in ("input_ids", "decoder_input_ids"):
        batch[name] = batch[name].clamp(max=model.config.vocab_size - 1)
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("name", SIX_ARCHITECTURES)
def test_baked_copies_have_the_gates_logits_and_the_model_stays_as_it_was(name, silence):
    model = SIX_ARCHITECTURES[name]()
    masks, before = random_masks(model), plain_logits(model)
    expected = gated_logits(model, masks, "de-en", silence)
    assert not torch.allclose(expected, before, atol=1e-2)
    with NeuronGate(model, masks) as gate:
        gate.use("en-fr")  # a gate on the model is not baked in
        twins = [zeroed(model, masks, "de-en", silence), pruned(model, masks, "de-en", silence)[0]]
        twins.append(pruned(model, masks, "de-en", silence, multiple_of=5)[0])
    for twin in twins:
        torch.testing.assert_close(plain_logits(twin), expected, rtol=0, atol=1e-5)
    assert torch.equal(plain_logits(model), before)


def test_what_is_zeroed_are_rows_bias_and_columns_and_what_is_pruned_is_gone():
    model = SIX_ARCHITECTURES["m2m100"]()
    masks = random_masks(model)
    twin, (small, widths) = zeroed(model, masks, "en-de"), pruned(model, masks, "en-de", multiple_of=4)
    for site in masks.sites:
        keep_F = masks["en-de"][site.name]
        up, down = twin.get_submodule(site.name), twin.get_submodule(site.down)
        assert torch.equal(up.weight.abs().sum(1) != 0, keep_F)
        assert torch.equal(up.bias != 0, keep_F)
        assert torch.equal(down.weight.abs().sum(0) != 0, keep_F)
        assert (
            widths[site.name]
            == small.get_submodule(site.name).weight.shape[0]
            == -(-int(keep_F.sum()) // 4) * 4
        )
        assert small.get_submodule(site.down).weight.shape[1] == widths[site.name]


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_a_layer_that_a_pair_keeps_nothing_of_has_the_fewest_neurons_all_silent(silence, multiple_of):
    model = SIX_ARCHITECTURES["m2m100"]()
    masks = random_masks(model)
    keep, name = dict(masks.keep), masks.sites[0].name
    keep[name][0] = False
    masks = NeuronMasks(masks.pairs, keep)
    small, widths = pruned(model, masks, "en-de", silence, multiple_of)
    assert widths[name] == small.get_submodule(name).out_features == multiple_of
    expected = gated_logits(model, masks, "en-de", silence)
    torch.testing.assert_close(plain_logits(small), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("silence", ["neuron", "weights"])
def test_attention_and_output_sites_are_zeroed_and_not_cut(silence):
    model = SIX_ARCHITECTURES["m2m100"]()
    masks = random_masks(model, ("ffn", "attention", "ffn_out"), density=0.8)
    small, widths = pruned(model, masks, "en-fr", silence)
    expected = gated_logits(model, masks, "en-fr", silence)
    torch.testing.assert_close(plain_logits(small), expected, rtol=0, atol=1e-5)
    assert set(widths) == {site.name for site in masks.sites if site.kind == "ffn"}


def tokens_of_gate(model, tokenizer, masks, pair, config):
    tags = LanguageTags(tokenizer)
    with NeuronGate(model, masks, GateConfig(silence=config.silence)) as gate:
        gate.use(pair)
        return greedy(model, tags, pair, tags.encode_source(TEXT, pair), 12)


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("name", ["m2m100", "marian", "t5", "mt5"])
def test_the_zeroed_checkpoint_is_a_plain_one_with_the_gates_tokens(name, silence, tokenizer, tmp_path):
    model = make(name, tokenizer)
    masks = random_masks(model)
    config = ExportConfig(silence=silence, max_new_tokens=12)
    report = export_model(model, tokenizer, masks, "en-de", tmp_path / "out", config)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(model)
    tags = LanguageTags(AutoTokenizer.from_pretrained(tmp_path / "out"))
    found = greedy(loaded, tags, "en-de", tags.encode_source(TEXT, "en-de"), 12)
    assert found == tokens_of_gate(model, tokenizer, masks, "en-de", config)
    assert (report.same, report.sentences, report.parameters) == (1.0, 8, report.parameters_dense)


@pytest.mark.parametrize("name", ["m2m100", "mt5"])
def test_the_pruned_checkpoint_is_smaller_by_exactly_its_silenced_neurons(name, tokenizer, tmp_path):
    model = make(name, tokenizer).to(torch.bfloat16).float()
    masks = random_masks(model)
    config = ExportConfig(format="pruned", max_new_tokens=12)
    report = export_model(model, tokenizer, masks, "en-de", tmp_path / "out", config)
    off = sum(int((~keep_F).sum()) for keep_F in masks["en-de"].values())
    # A neuron is a row of one matrix (and its bias), or of two, and a column of another.
    per_neuron = 3 * 16 if name == "mt5" else 2 * 16 + 1
    assert report.parameters_dense - report.parameters == off * per_neuron
    written = load_file(tmp_path / "out/model.safetensors")
    assert sum(tensor.numel() for tensor in written.values()) == report.parameters
    assert report.bytes == (tmp_path / "out/model.safetensors").stat().st_size
    loaded = load_pruned(tmp_path / "out")
    assert type(loaded) is type(model)
    tags = LanguageTags(tokenizer)
    found = greedy(loaded, tags, "en-de", tags.encode_source(TEXT, "en-de"), 12)
    assert found == tokens_of_gate(model, tokenizer, masks, "en-de", config)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    loaded.save_pretrained(tmp_path / "again")
    half = load_pruned(tmp_path / "out", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("sides", [("encoder", "decoder"), ("encoder",), ()])
def test_a_pruned_model_is_pruned_again_also_by_masks_of_one_side_or_none(sides, tokenizer, tmp_path):
    """Where masks say nothing the layers are still narrower than the config says."""
    model, config = make("mt5", tokenizer), ExportConfig(format="pruned", max_new_tokens=6, sample=2)
    group = NeuronMasks.random(find_sites(model), PAIRS, 0.4, 3)
    export_model(model, tokenizer, group.subset(PAIRS[:1]), "en-de", tmp_path / "first", config)
    first = load_pruned(tmp_path / "first")
    sites = [site for site in find_sites(first) if site.side in sides]
    again = NeuronMasks.random(sites, ["en-de"], 0.5, 4) if sides else None
    export_model(first, tokenizer, again, "en-de", tmp_path / "second", config)
    second = load_pruned(tmp_path / "second")
    assert (second.num_parameters() < first.num_parameters()) == bool(sides)
    expected = zeroed_copy(model, group, "en-de")
    for (
        site
    ) in sites:  # the neurons of the first that are off in the second, by their place in the whole model
        left = group["en-de"][site.name].nonzero()[:, 0]
        expected.get_submodule(site.name).weight.data[left[~again["en-de"][site.name]]] = 0
    torch.testing.assert_close(plain_logits(second), plain_logits(expected), rtol=0, atol=1e-5)
    assert not torch.allclose(plain_logits(second), plain_logits(model), atol=1e-2)


@pytest.mark.parametrize("silence", ["neuron", "weights"])
@pytest.mark.parametrize("name", ["m2m100", "t5"])
def test_ctranslate2_writes_the_gates_tokens_and_its_smaller_types_are_measured(
    name, silence, tokenizer, tmp_path
):
    pytest.importorskip("ctranslate2")
    model = make(name, tokenizer)
    masks = random_masks(model)
    texts = {"en-de": TEXT}
    sizes = []
    for quantization in ("float32", "int8_float32"):
        config = ExportConfig(
            format="ctranslate2", silence=silence, quantization=quantization, max_new_tokens=12
        )
        folder = tmp_path / quantization
        report = export_model(model, tokenizer, masks, "en-de", folder, config, texts)
        assert report.sentences == len(TEXT)
        assert quantization != "float32" or report.same == 1.0
        assert (folder / "model.bin").stat().st_size == report.bytes
        AutoTokenizer.from_pretrained(folder)
        sizes.append(report.bytes)
    assert sizes[1] < sizes[0]


FAMILIES = {
    "m2m100": ("m2m100", ["en-de", "en-fr"], 100 + 8),  # tags behind the vocabulary, then unused rows
    "nllb": ("m2m100", ["eng_Latn-deu_Latn", "eng_Latn-fra_Latn"], 3),
    "mbart": ("mbart", ["en_XX-de_DE", "en_XX-fr_XX"], 0),
    "mbart50": ("mbart", ["en_XX-de_DE", "en_XX-fr_XX"], 0),
    "marian": ("marian", ["en-deu", "en-fra"], 0),
    "marian_one_target": ("marian", ["en-de"], 0),  # padding in the middle of the vocabulary
    "t5": ("t5", ["en-de"], 5),
    "bart": ("bart", ["en-de"], 0),
}


@pytest.mark.filterwarnings("ignore:Recommended")
@pytest.mark.parametrize("name", FAMILIES)
def test_ctranslate2_takes_each_family_with_the_tokenizer_that_the_library_makes(name, tmp_path):
    """Decoded as a user of CTranslate2 does, against a plain loop of argmax over the pruned model."""
    library = pytest.importorskip("ctranslate2")
    family, pairs, more = FAMILIES[name]
    (tmp_path / "vocabulary").mkdir()
    tokenizer = make_tokenizer(tmp_path / "vocabulary", name)
    padding, size = tokenizer.pad_token_id, len(tokenizer) + more
    ids = {"vocab_size": size, "pad_token_id": padding, "eos_token_id": tokenizer.eos_token_id}
    start = padding if family in ("marian", "t5") else tokenizer.eos_token_id
    both = {"decoder_vocab_size": size} if family == "marian" else {}
    model = SIX_ARCHITECTURES[family](**ids, decoder_start_token_id=start, **both)
    sites = {site.name: site.width for site in find_sites(model)}
    masks = NeuronMasks.random(sites=sites, pairs=pairs, density=0.5, seed=3)
    config = ExportConfig(format="ctranslate2", group="union", max_new_tokens=10)
    texts = dict.fromkeys(pairs, TEXT)
    assert export_model(model, tokenizer, masks, pairs, tmp_path / "out", config, texts).same == 1.0
    small, tags = pruned(model, masks.union("all"), "all")[0], LanguageTags(tokenizer)
    translator = library.Translator(str(tmp_path / "out"), device="cpu")
    for pair in pairs:
        prompt = tags.decoder_prefix(pair, start)
        # mBART-25 starts from the language, so that CTranslate2 is given it.
        given = prompt if name == "mbart" else prompt[1:]
        for row in tags.encode_source(TEXT, pair):
            wanted = by_argmax(small, row, prompt, padding, tokenizer.eos_token_id, 10)
            (found,) = translator.translate_batch(
                [tokenizer.convert_ids_to_tokens(row)],
                target_prefix=[tokenizer.convert_ids_to_tokens(given)] if given else None,
                beam_size=1,
                max_decoding_length=10 + len(prompt) - 1,
                suppress_sequences=None if family == "marian" else [[tokenizer.pad_token]],
            )
            tokens, names = found.hypotheses[0][len(prompt) - 1 :], tokenizer.convert_ids_to_tokens(wanted)
            # A row without a token of its own has a made-up name.
            assert tokens == [given or token for token, given in zip(tokens, names, strict=True)]


def by_argmax(model, row, prompt, padding, end, longest):
    """Decode greedily in a plain loop; no padding is written."""
    ids = list(prompt)
    while len(ids) < len(prompt) + longest:
        with torch.no_grad():
            inputs = {"input_ids": torch.tensor([row]), "decoder_input_ids": torch.tensor([ids])}
            logits = model(**inputs).logits[0, -1]
        logits[padding] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == end:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


def test_several_pairs_share_a_model_that_has_the_neurons_of_all(tokenizer, tmp_path):
    model = make("m2m100", tokenizer)
    masks = random_masks(model)
    config = ExportConfig(format="pruned", max_new_tokens=12)
    report = export_model(model, tokenizer, masks, ["en-de", "en-fr"], tmp_path / "out", config)
    assert report.widths == {
        name: int((keep_PF[0] | keep_PF[2]).sum()) for name, keep_PF in masks.keep.items()
    }
    written = json.loads((tmp_path / "out/nspec_export.json").read_text())
    assert written["pairs"] == ["en-de", "en-fr"]
    assert written["same"] == 1.0
    assert written["versions"]["torch"]
    assert "en-de, en-fr" in str(report)


def test_what_sharing_neurons_changes_is_told(tokenizer, tmp_path):
    """The neurons of all pairs together, against each pair's own, in a loop."""
    model = make("m2m100", tokenizer)
    masks, tags = random_masks(model), LanguageTags(tokenizer)
    config = ExportConfig(format="pruned", max_new_tokens=5)
    texts = {pair: TEXT for pair in ("en-de", "en-fr")}
    report = export_model(model, tokenizer, masks, list(texts), tmp_path / "out", config, texts)
    same = []
    for pair in map(Pair, texts):
        rows = tags.encode_source(TEXT, pair)
        said = []
        for chosen in (masks.subset([pair]), masks.subset(list(texts)).union("all")):
            with NeuronGate(model, chosen) as gate:
                gate.use(chosen.pairs[0])
                said.append(greedy(model, tags, pair, rows, 5))
        same += [alone == together for alone, together in zip(*said, strict=True)]
    assert report.alone == sum(same) / len(same) < 1
    assert f"{report.alone:.1%} those of their pair's own neurons" in str(report)
    single = export_model(model, tokenizer, masks, "en-de", tmp_path / "one", config, {"en-de": TEXT})
    assert single.alone == 1
    assert "own neurons" not in str(single)


def test_a_model_that_says_something_else_is_not_left_behind(tokenizer, tmp_path, monkeypatch):
    model = make("m2m100", tokenizer)
    masks = random_masks(model)
    # The plain model in place of the baked one.
    monkeypatch.setattr(export_file, "baked", lambda model, *_, **__: (model, {}))
    with pytest.raises(ExportError, match=r"translates \d of 8 sample sentences.*not written"):
        export_model(model, tokenizer, masks, "en-de", tmp_path / "out", ExportConfig(max_new_tokens=12))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tokenizer, tmp_path):
    (tmp_path / "precious").touch()
    model = make("m2m100", tokenizer)
    with pytest.raises(ConfigError, match="there already"):
        export_model(model, tokenizer, random_masks(model), "en-de", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_only_pruned_folders_load_as_such(tokenizer, tmp_path):
    with pytest.raises(ArtifactError, match="no readable nspec_export"):
        load_pruned(tmp_path)
    model = make("m2m100", tokenizer)
    export_model(
        model, tokenizer, random_masks(model), "en-de", tmp_path / "out", ExportConfig(max_new_tokens=4)
    )
    with pytest.raises(ArtifactError, match="not exported as 'pruned'"):
        load_pruned(tmp_path / "out")


def test_who_loads_a_pruned_folder_as_a_plain_one_is_told_what_reads_it(tokenizer, tmp_path):
    model = make("m2m100", tokenizer)
    config = ExportConfig(format="pruned", max_new_tokens=4, sample=2)
    export_model(model, tokenizer, random_masks(model), "en-de", tmp_path / "out", config)
    with pytest.raises(ArtifactError, match=r"another shape.*as 'pruned' is read by load_pruned"):
        load_model(tmp_path / "out")


def test_layers_that_are_no_plain_linears_are_refused():
    model = SIX_ARCHITECTURES["m2m100"]()
    masks = random_masks(model)

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.get_submodule(masks.sites[0].name).__class__ = Doubled
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.fc1.*Doubled.*merge"):
        zeroed(model, masks, "en-de")


@pytest.mark.parametrize("form", ["pruned", "ctranslate2"])
def test_adapters_outside_the_sites_are_refused_and_once_merged_they_act(form, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(make("m2m100", tokenizer), lora)
    quantization = "int8" if form == "ctranslate2" else "float32"
    config = ExportConfig(format=form, quantization=quantization)
    with pytest.raises(UnsupportedModelError, match=r"[qv]_proj' is a Linear of PEFT.*merge_and_unload"):
        export_model(adapted, tokenizer, None, "en-de", tmp_path / "adapted", config)
    assert not (tmp_path / "adapted").exists()
    merged = adapted.merge_and_unload()
    config = dataclasses.replace(config, quantization="float32", max_new_tokens=4)
    assert export_model(merged, tokenizer, None, "en-de", tmp_path / "merged", config).same == 1


def test_pairs_that_were_added_are_refused_while_on_the_model_and_exported_once_merged(tokenizer, tmp_path):
    model = make("m2m100", tokenizer)
    made = Addition(model, layout_for(model, ["en-de"], AddConfig(), 0.5)).draw(model, 1, {})
    with torch.no_grad():
        for new in made.neurons.values():
            new.down.weight.normal_(generator=torch.Generator().manual_seed(1))
    config, inputs = ExportConfig(max_new_tokens=4), {"input_ids": torch.tensor([[9, 8, 7, 2]])}
    added, decoder = AddedPairs(model, [made]), {"decoder_input_ids": torch.tensor([[2, 6]])}
    with added, torch.no_grad():
        with pytest.raises(UnsupportedModelError, match=r"AddedPairs is on the model.*merged"):
            export_model(model, tokenizer, None, "en-de", tmp_path / "lost", config)
        expected = model(**inputs, **decoder, pair_ids=["en-de"]).logits
    assert not (tmp_path / "lost").exists()
    export_model(added.merged(), tokenizer, None, "en-de", tmp_path / "merged", config)
    with torch.no_grad():
        found = load_model(tmp_path / "merged")(**inputs, **decoder).logits
        base = model(**inputs, **decoder).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, base, atol=1e-2)


@pytest.mark.parametrize("form", ["zeroed", "padded"])
def test_a_model_that_was_cut_is_refused_where_plain_classes_are_to_load_it(form, tokenizer, tmp_path):
    model = make("m2m100", tokenizer)
    narrow, _ = pruned(model, random_masks(model), "en-de")
    for masks in (None, random_masks(narrow)):
        with pytest.raises(UnsupportedModelError, match=r"12 neurons.*config says 24.*as 'pruned'"):
            export_model(narrow, tokenizer, masks, "en-de", tmp_path / "out", ExportConfig(format=form))


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": "onnx"},
        {"multiple_of": 0},
        {"agreement": 1.5},
        {"quantized_agreement": -1},
        {"quantization": "int8"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        ExportConfig(**wrong)


def test_the_command_exports_from_folders(tokenizer, tmp_path, capsys):
    from nspec_hf.cli.main import main

    model = make("m2m100", tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    random_masks(model).save_pretrained(tmp_path / "masks")
    arguments = ["--model", tmp_path / "model", "--masks", tmp_path / "masks", "--pairs", "en-de,de-en"]
    arguments += ["--output", tmp_path / "out", "--export.format", "pruned", "--export.max_new_tokens", "6"]
    assert main(["export", *map(str, arguments)]) == 0
    assert "100.0% of 16 sample sentences" in capsys.readouterr().out
    assert isinstance(load_pruned(Path(tmp_path / "out")), type(model))


def test_weights_that_are_not_finite_are_refused_before_the_work(tokenizer, tmp_path, monkeypatch):
    model = make("m2m100", tokenizer)
    masks = random_masks(model)
    with torch.no_grad():
        model.get_submodule(masks.sites[0].name).weight[0, 0] = torch.nan
    monkeypatch.setattr(export_file, "gated_tokens", None)
    with pytest.raises(ArtifactError, match=r"not finite \(model\.encoder\.layers\.0\.fc1\.weight\)"):
        export_model(model, tokenizer, masks, "en-de", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_ctranslate2_that_is_missing_is_missed_by_name_and_before_the_work(tokenizer, tmp_path, monkeypatch):
    model = make("m2m100", tokenizer)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    monkeypatch.setattr(export_file, "gated_tokens", None)
    with pytest.raises(ConfigError, match=r"pip install nspec-hf\[export\]"):
        export_model(
            model,
            tokenizer,
            random_masks(model),
            "en-de",
            tmp_path / "out",
            ExportConfig(format="ctranslate2"),
        )
    assert not list(tmp_path.iterdir())


def test_what_ctranslate2_cannot_convert_is_an_error_of_ours_and_leaves_nothing(tokenizer, tmp_path):
    pytest.importorskip("ctranslate2")
    size = len(tokenizer)
    apart = SIX_ARCHITECTURES["marian"](
        vocab_size=size,
        decoder_vocab_size=size + 2,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
    )
    config = ExportConfig(format="ctranslate2", max_new_tokens=4)
    with pytest.raises(UnsupportedModelError, match="vocabulary for each side"):
        export_model(apart, tokenizer, random_masks(apart), "en-de", tmp_path / "out", config)
    odd = make("m2m100", tokenizer)
    odd.config.activation_function = "leaky_relu"  # read by the converter alone
    with pytest.raises(ExportError, match="CTranslate2 cannot convert this M2M100Config"):
        export_model(odd, tokenizer, random_masks(odd), "en-de", tmp_path / "out", config)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_ctranslate2_cannot_read_is_an_error_of_ours(tokenizer, tmp_path):
    pytest.importorskip("ctranslate2")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ExportError, match="CTranslate2 cannot translate with"):
        Decoder(tmp_path, tokenizer).decode([[5, 2]], [[]], 4)


def test_settings_for_generation_that_greedy_decoding_has_not_change_no_proof(tokenizer, tmp_path):
    model = make("m2m100", tokenizer)
    masks = random_masks(model)
    config = ExportConfig(format="pruned", max_new_tokens=6)
    plain = gated_tokens(*proof(model, tokenizer, masks))
    model.generation_config.update(
        num_return_sequences=3, num_beams=4, bad_words_ids=[[5]], length_penalty=2.0
    )
    assert gated_tokens(*proof(model, tokenizer, masks)) == plain
    assert export_model(model, tokenizer, masks, "en-de", tmp_path / "out", config).same == 1.0


@pytest.mark.parametrize("form", ["zeroed", "pruned", "ctranslate2"])
def test_a_proof_goes_no_further_than_the_model_has_positions(form, tokenizer, tmp_path):
    """Marian's tables hold 12 positions; sentences of the sample and translations were to be longer."""
    if form == "ctranslate2":
        pytest.importorskip("ctranslate2")
    model = make("marian", tokenizer, max_position_embeddings=12)
    masks = random_masks(model)
    model.generation_config.eos_token_id = model.config.eos_token_id = None  # no translation ends before
    config = ExportConfig(format=form, max_new_tokens=64)
    texts = {"en-de": [" ".join(TEXT), TEXT[3]]}
    with pytest.raises(IndexError):
        zeroed(model, masks, Pair("en-de"), "neuron").generate(torch.full((1, 3), 5), max_new_tokens=64)
    with pytest.warns(UserWarning, match="1 sample sentences are over the model's 12 positions"):
        report = export_model(model, tokenizer, masks, "en-de", tmp_path / "out", config, texts)
    assert (report.same, report.positions) == (1, 12)
    assert 8 < report.config.max_new_tokens < 12


def proof(model, tokenizer, masks):
    tags, pair = LanguageTags(tokenizer), Pair("en-de")
    return model, tags, masks.subset([pair]), {pair: tags.encode_source(TEXT, pair)}, "neuron", 6


@pytest.mark.parametrize("place", ["link", ".", "empty"])
def test_an_export_goes_into_a_link_to_a_folder_the_current_one_and_an_empty_one(
    place, tokenizer, tmp_path, monkeypatch
):
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    monkeypatch.chdir(target)
    folder = {"link": tmp_path / "link", ".": Path("."), "empty": target}[place]
    model = make("m2m100", tokenizer)
    config = ExportConfig(format="pruned", max_new_tokens=4)
    export_model(model, tokenizer, random_masks(model), "en-de", folder, config)
    assert isinstance(load_pruned(target), type(model))
    assert (tmp_path / "link").is_symlink()
    assert not [path for path in target.iterdir() if path.name.startswith(".")]


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("exists", [False, True])
def test_an_export_that_was_killed_at_any_write_is_done_again_as_if_it_had_not_been(
    exists, tokenizer, tmp_path, monkeypatch
):
    model = make("m2m100", tokenizer)
    masks, config = random_masks(model), ExportConfig(format="pruned", max_new_tokens=2, sample=2)
    export_model(model, tokenizer, masks, "en-de", tmp_path / "whole", config)
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    replace, kills = os.replace, 0
    for number in range(20):
        folder, left = tmp_path / f"out{number}", [number]
        if exists:
            folder.mkdir()

        def die(source, target, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            # What runs after a kill does not run at all.
            patch.setattr("nspec_hf.core.folders.shutil.rmtree", lambda *_, **__: None)
            try:
                export_model(model, tokenizer, masks, "en-de", folder, config)
            except Killed:
                kills += 1
            else:
                break
        try:
            export_model(model, tokenizer, masks, "en-de", folder, config)
        except ConfigError as error:
            # Some files had come to their place already.
            assert "there already" in str(error)  # noqa: PT017
            assert exists
            assert [path for path in folder.iterdir() if not path.name.startswith(".")]
            continue
        found = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
        report = {name: found.pop(name) for name in ["nspec_export.json"]}
        assert found == {name: content for name, content in wanted.items() if name not in report}
    assert kills >= 3


DAMAGES = {
    "report is no JSON": lambda folder: (folder / "nspec_export.json").write_text("{"),
    "report is a list": lambda folder: (folder / "nspec_export.json").write_text("[]"),
    "report has no widths": lambda folder: rewrite(folder, lambda content: content.pop("widths")),
    "widths are a list": lambda folder: rewrite(folder, lambda content: content.update(widths=[1])),
    "a width is text": lambda folder: rewrite(folder, lambda content: widths(content, "12")),
    "a width is zero": lambda folder: rewrite(folder, lambda content: widths(content, 0)),
    "a width is another": lambda folder: rewrite(folder, lambda content: widths(content, 3)),
    "a width is too large": lambda folder: rewrite(folder, lambda content: widths(content, 10**6)),
    "an unknown site": lambda folder: rewrite(
        folder, lambda content: content["widths"].update({"model.encoder.layers.7.fc1": 4})
    ),
    "a site is left out": lambda folder: rewrite(
        folder, lambda content: content["widths"].pop("model.encoder.layers.0.fc1")
    ),
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config is no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "another config": lambda folder: rewrite(folder, lambda c: c.update(encoder_layers=1), "config.json"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "cut weights": lambda folder: cut(folder / "model.safetensors", 1000),
    "empty weights": lambda folder: cut(folder / "model.safetensors", 0),
    "a pointer": lambda folder: (folder / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    ),
}


def rewrite(folder, change, name="nspec_export.json"):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def widths(content, width):
    content["widths"]["model.encoder.layers.0.fc1"] = width


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.fixture(scope="module")
def small(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pruned") / "out"
    model = make("m2m100", tokenizer)
    config = ExportConfig(format="pruned", max_new_tokens=4)
    export_model(model, tokenizer, random_masks(model), "en-de", folder, config)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pruned_folder_is_refused_by_name(damage, small, tmp_path):
    shutil.copytree(small, tmp_path / "out")
    assert load_pruned(tmp_path / "out") is not None
    DAMAGES[damage](tmp_path / "out")
    with pytest.raises(ArtifactError):
        load_pruned(tmp_path / "out")
