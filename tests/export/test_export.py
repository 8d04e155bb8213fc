"""Export: a pair's own model says what the gate says, in all three forms, and is as small as its masks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from nspec_hf.core import ArtifactError, ConfigError, ExportError, UnsupportedModelError
from nspec_hf.data import LanguageTags, VocabularyConfig, train_vocabulary
from nspec_hf.export import ExportConfig, export as export_file, export_model, greedy, load_pruned, pruned
from nspec_hf.export.prune import zeroed
from nspec_hf.gating import GateConfig, NeuronGate
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.helpers.models import SIX_ARCHITECTURES, random_batch
from tests.helpers.tiny_tokenizers import make_tokenizers

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


def random_masks(model, kinds=("ffn",), density=0.5) -> NeuronMasks:
    sites = {site.name: site.width for site in find_sites(model, kinds)}
    return NeuronMasks.random(sites=sites, pairs=PAIRS, density=density, seed=3)


def gated_logits(model, masks, pair, silence):
    batch = {key: value for key, value in random_batch().items() if key != "pair_ids"}
    with NeuronGate(model, masks, GateConfig(silence=silence)) as gate, torch.no_grad():
        gate.use(pair)
        return model(**batch).logits


def plain_logits(model):
    batch = {key: value for key, value in random_batch().items() if key != "pair_ids"}
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
    tokenizer = make_tokenizers(tmp_path / "vocabulary")[name]
    padding, size = tokenizer.pad_token_id, len(tokenizer) + more
    ids = {"vocab_size": size, "pad_token_id": padding, "eos_token_id": tokenizer.eos_token_id}
    start = padding if family in ("marian", "t5") else tokenizer.eos_token_id
    both = {"decoder_vocab_size": size} if family == "marian" else {}
    model = SIX_ARCHITECTURES[family](**ids, decoder_start_token_id=start, **both)
    sites = {site.name: site.width for site in find_sites(model)}
    masks = NeuronMasks.random(sites=sites, pairs=pairs, density=0.5, seed=3)
    config = ExportConfig(format="ctranslate2", max_new_tokens=10)
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


def test_a_model_that_says_something_else_is_not_left_behind(tokenizer, tmp_path, monkeypatch):
    model = make("m2m100", tokenizer)
    masks = random_masks(model)
    # The plain model in place of the baked one.
    monkeypatch.setattr(export_file, "zeroed", lambda model, *_: model)
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


def test_layers_that_are_no_plain_linears_are_refused():
    model = SIX_ARCHITECTURES["m2m100"]()
    masks = random_masks(model)

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.get_submodule(masks.sites[0].name).__class__ = Doubled
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.fc1.*Doubled.*merge"):
        zeroed(model, masks, "en-de")


@pytest.mark.parametrize(
    "wrong",
    [{"format": "onnx"}, {"multiple_of": 0}, {"agreement": 1.5}, {"quantization": "int8"}],
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
