"""A trimmed vocabulary: the export writes what the model does with the other tokens forbidden; measured."""

import dataclasses
import json
import math

import pytest
import sacrebleu
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from nspec_hf.cli.main import main
from nspec_hf.core import ConfigError, ExportError, Pair
from nspec_hf.data import LanguageTags, PairText
from nspec_hf.export import (
    ExportConfig,
    export as export_file,
    export_model,
    load_pruned,
    pruned,
    tokenizer_cut,
)
from nspec_hf.export.trim import measure, share_resegmented, trim
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import decoder_prompt, find_sites
from tests.helpers.models import SIX_ARCHITECTURES
from tests.helpers.subword_tokenizers import PAIRS, make, sentences

ARCHITECTURE = {
    "recipe_unigram": "m2m100",
    "recipe_bpe": "m2m100",
    "m2m100_unigram": "m2m100",
    "m2m100_bpe": "m2m100",
    "nllb": "m2m100",
    "mbart": "mbart",
    "mbart50": "mbart",
    "marian": "marian",
    "t5": "t5",
    "bart": "bart",
}
COUNTED, HELD_OUT = 40, 20


def texts(name, count, seed=0):
    german = {"en": ("en", "de"), "de": ("de", "en"), "deu_Latn": ("de", "en"), "de_DE": ("de", "en")}
    sides = {pair: german.get(Pair(pair).source, ("en", "de")) for pair in PAIRS[name]}
    return [
        PairText(Pair(pair), sentences(source, count, seed), sentences(target, count, seed))
        for pair, (source, target) in sides.items()
    ]


def setting(name, folder):
    """Return a model with random weights, its tokenizer and masks that keep half of each pair's neurons."""
    tokenizer = make(name, folder)
    family = ARCHITECTURE[name]
    size = max(LanguageTags(tokenizer)._vocabulary.values()) + 1 + 8 * name.startswith("m2m100")
    padding, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    both = {"decoder_vocab_size": size} if family == "marian" else {}
    model = SIX_ARCHITECTURES[family](
        vocab_size=size,
        pad_token_id=padding,
        eos_token_id=end,
        decoder_start_token_id=padding if family in ("marian", "t5") else end,
        **both,
    )
    sites = {site.name: site.width for site in find_sites(model)}
    return model, tokenizer, NeuronMasks.random(sites=sites, pairs=PAIRS[name], density=0.5, seed=3)


def by_argmax(model, row, prompt, forbidden, end, longest):
    """Decode greedily in a plain loop, without some tokens."""
    ids = list(prompt)
    while len(ids) < len(prompt) + longest:
        with torch.no_grad():
            inputs = {"input_ids": torch.tensor([row]), "decoder_input_ids": torch.tensor([ids])}
            scores = model(**inputs).logits[0, -1]
        scores[forbidden] = -torch.inf
        ids.append(int(scores.argmax()))
        if ids[-1] == end:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_plain_classes_load_what_writes_as_the_model_does_with_the_other_tokens_forbidden(name, tmp_path):
    model, tokenizer, masks = setting(name, tmp_path)
    config = ExportConfig(format="padded", max_new_tokens=8, sample=4)
    counted, held_out = texts(name, COUNTED), texts(name, HELD_OUT, seed=1)
    report = export_model(
        model, tokenizer, masks, PAIRS[name], tmp_path / "out", config, counted=counted, held_out=held_out
    )
    assert report.same == 1.0
    assert report.sentences == 4 * len(PAIRS[name])
    small, smaller = (
        kind.from_pretrained(tmp_path / "out") for kind in (AutoModelForSeq2SeqLM, AutoTokenizer)
    )
    before, after = LanguageTags(tokenizer), LanguageTags(smaller)
    whole = pruned(model, masks.subset(PAIRS[name]).union("all"), "all")[0]
    old = {number: before._vocabulary[token] for token, number in after._vocabulary.items()}
    gone = sorted({*range(model.config.vocab_size)} - {*old.values()} | {tokenizer.pad_token_id})
    assert len(gone) > 20
    for text in held_out:
        for sentence in text.sources[:3]:
            (row,) = after.encode_source([sentence], text.pair)
            prompt = decoder_prompt(small, after, text.pair)
            written = by_argmax(
                whole,
                [old[number] for number in row],
                [old[number] for number in prompt],
                gone,
                tokenizer.eos_token_id,
                8,
            )
            found = small.generate(
                input_ids=torch.tensor([row]),
                decoder_input_ids=torch.tensor([prompt]),
                decoder_start_token_id=prompt[0],
                num_beams=1,
                do_sample=False,
                max_new_tokens=8,
                forced_bos_token_id=None,
                forced_eos_token_id=None,
                suppress_tokens=[smaller.pad_token_id],
            )[0, len(prompt) :].tolist()
            found = [old[number] for number in found]
            assert found[: len(written)] == written
            assert found[len(written) :][:1] in ([], [tokenizer.eos_token_id])


@pytest.mark.parametrize("name", ["recipe_unigram", "m2m100_bpe", "nllb", "mbart", "marian", "t5"])
def test_ctranslate2_takes_a_trimmed_vocabulary(name, tmp_path):
    pytest.importorskip("ctranslate2")
    model, tokenizer, masks = setting(name, tmp_path)
    config = ExportConfig(format="ctranslate2", max_new_tokens=8, sample=4)
    report = export_model(
        model, tokenizer, masks, PAIRS[name], tmp_path / "out", config, counted=texts(name, COUNTED)
    )
    assert report.same == 1.0
    assert report.vocabulary.tokens < report.vocabulary.tokens_dense - 20


def test_what_is_measured_is_what_the_text_says(tmp_path):
    """Segmentation counted in a loop, and sacreBLEU on the translations of plain classes."""
    name = "recipe_unigram"
    model, tokenizer, _ = setting(name, tmp_path)
    held_out = texts(name, HELD_OUT, seed=1)
    config = ExportConfig(max_new_tokens=8, sample=10, min_count=10)
    report = export_model(
        model,
        tokenizer,
        None,
        PAIRS[name],
        tmp_path / "out",
        config,
        counted=texts(name, COUNTED),
        held_out=held_out,
    )
    assert (report.masks, report.density, report.widths) == ("", 1.0, {})
    smaller = AutoTokenizer.from_pretrained(tmp_path / "out")
    lines = [line for text in held_out for line in [*text.sources, *text.targets]]
    other = sum(smaller.tokenize(line) != tokenizer.tokenize(line) for line in lines)
    measured = report.vocabulary
    assert 0 < other < len(lines)
    assert measured.resegmented == other / len(lines)
    assert (measured.counted, measured.held_out) == (2 * COUNTED, 2 * HELD_OUT)
    assert measured.tokens == len(smaller)
    small = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    for which, network, each in ((measured.bleu, small, smaller), (measured.bleu_dense, model, tokenizer)):
        tags = LanguageTags(each)
        for text in held_out:
            prompt = decoder_prompt(network, tags, text.pair)
            rows = tags.encode_source(text.sources[:10], text.pair)
            found = [
                by_argmax(network, row, prompt, [each.pad_token_id], each.eos_token_id, 8) for row in rows
            ]
            found = each.batch_decode(found, skip_special_tokens=True)
            wanted = sacrebleu.corpus_bleu(found, [text.targets[:10]])
            assert math.isclose(which[text.pair], wanted.score)
    written = json.loads((tmp_path / "out/nspec_export.json").read_text())
    assert written["vocabulary"]["resegmented"] == measured.resegmented
    assert f"{measured.tokens:,} of {measured.tokens_dense:,} tokens" in str(report)


def test_without_held_out_text_the_first_of_the_counted_is_measured(tmp_path):
    name = "recipe_unigram"
    model, tokenizer, _ = setting(name, tmp_path)
    tokenizer.save_pretrained(tmp_path / "cut")
    counted, tags = texts(name, COUNTED), LanguageTags(tokenizer)
    trimmed = trim(model, tags, counted, 10, tmp_path / "cut")
    kept = [number for number in trimmed.kept if number not in tokenizer.all_special_ids][:5]
    written = {pair: [[number] for number in kept] for pair in PAIRS[name]}
    found = {pair: trimmed.new(each) for pair, each in written.items()}
    first = next(iter(found))
    found[first][0] = found[first][1]
    report = measure(trimmed, counted, [], 5, found, written)
    lines = [line for text in counted for line in [*text.sources[:5], *text.targets[:5]]]
    smaller = AutoTokenizer.from_pretrained(tmp_path / "cut")
    other = sum(smaller.tokenize(line) != tokenizer.tokenize(line) for line in lines)
    assert (report.held_out, report.resegmented) == (0, other / len(lines))
    whole = share_resegmented(trimmed, counted)
    assert 0 < report.resegmented != whole
    assert report.unchanged == 1 - 1 / sum(map(len, written.values()))


def test_a_model_whose_rows_are_other_tokens_is_not_left_behind(tmp_path, monkeypatch):
    model, tokenizer, masks = setting("recipe_unigram", tmp_path)
    cut = export_file.cut_vocabulary

    def cut_wrongly(model, kept, **others):
        cut(model, [*kept[:-9], *kept[-9:][::-1]], **others)

    monkeypatch.setattr(export_file, "cut_vocabulary", cut_wrongly)
    with pytest.raises(ExportError, match="not written"):
        export_model(
            model, tokenizer, masks, "en-de", tmp_path / "out", counted=texts("recipe_unigram", COUNTED)
        )
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_splits_kept_text_otherwise_is_not_left_behind(tmp_path, monkeypatch):
    model, tokenizer, masks = setting("recipe_bpe", tmp_path)
    monkeypatch.setattr(tokenizer_cut, "_on_the_way", lambda token, rank: set())
    with pytest.raises(ExportError, match="otherwise, although all of its tokens are kept"):
        export_model(model, tokenizer, masks, "en-de", tmp_path / "out", counted=texts("recipe_bpe", COUNTED))
    assert not (tmp_path / "out").exists()


def test_pairs_without_text_to_count_are_missed_by_name(tmp_path):
    model, tokenizer, masks = setting("recipe_unigram", tmp_path)
    with pytest.raises(ConfigError, match="no text for de-en, which trimming"):
        export_model(
            model,
            tokenizer,
            masks,
            ["en-de", "de-en"],
            tmp_path / "out",
            counted=texts("recipe_unigram", COUNTED)[:1],
        )


def test_text_to_count_that_comes_in_two_parts_is_refused_since_one_would_not_be_counted(tmp_path):
    model, tokenizer, masks = setting("recipe_unigram", tmp_path)
    parts = [texts("recipe_unigram", COUNTED, seed)[0] for seed in (0, 1)]
    with pytest.raises(ConfigError, match="named again: en-de"):
        export_model(model, tokenizer, masks, "en-de", tmp_path / "out", counted=parts)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_released_are_gone_and_the_export_is_the_same(tmp_path):
    model, tokenizer, masks = setting("recipe_unigram", tmp_path)
    config = ExportConfig(format="pruned", max_new_tokens=8, sample=4)
    reports = [
        export_model(
            model,
            tokenizer,
            masks,
            "en-de",
            tmp_path / str(release),
            config,
            counted=texts("recipe_unigram", COUNTED),
            release=release,
        )
        for release in (False, True)
    ]
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert dataclasses.replace(reports[1], folder=reports[0].folder) == reports[0]
    kept, given_up = (load_pruned(tmp_path / each) for each in ("False", "True"))
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), given_up.parameters(), strict=True))


def test_the_command_trims_to_the_text_of_its_pairs(tmp_path, capsys):
    model, tokenizer, masks = setting("recipe_unigram", tmp_path)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    masks.save_pretrained(tmp_path / "masks")
    for split, seed in (("train", 0), ("test", 1)):
        for code in ("en", "de"):
            lines = sentences(code, 30, seed)
            (tmp_path / f"{split}.{code}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = ["export", "--model", tmp_path / "model", "--pairs", "en-de,de-en", "--trim-vocabulary"]
    command += ["--export.max_new_tokens", "6", "--export.sample", "5"]
    assert main([*map(str, command), "--output", str(tmp_path / "no")]) == 2
    assert "--corpus.path" in capsys.readouterr().err
    command += ["--corpus.path", tmp_path, "--masks", tmp_path / "masks", "--output", tmp_path / "out"]
    assert main([*map(str, command), "--export.format", "padded"]) == 0
    printed = capsys.readouterr().out
    assert "100.0% of 10 sample sentences" in printed
    assert "counted on 60 sentence pairs" in printed
    assert "60 held-out pairs are split otherwise" in printed
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) < len(tokenizer)
    small = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert small.config.vocab_size < model.config.vocab_size
    assert small.config.encoder_ffn_dim < model.config.encoder_ffn_dim
