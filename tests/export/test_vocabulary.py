"""A model without the rows of other tokens: the kept ones have their logits, ids have new numbers."""

import sys

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from nspec_hf.core import ConfigError, Pair, UnsupportedModelError
from nspec_hf.data import LanguageTags, PairText
from nspec_hf.export.prune import plain_copy
from nspec_hf.export.vocabulary import cut_vocabulary, kept_tokens
from tests.helpers.families import tiny_seamless
from tests.helpers.models import SIX_ARCHITECTURES, VOCABULARY, tiny_m2m100, tiny_marian, tiny_t5
from tests.helpers.subword_tokenizers import PAIRS, make, sentences

KEPT = [0, 1, 2, 5, 8, 9, 14, 20, 21, 33, 40, 47]
FAMILIES = {**SIX_ARCHITECTURES, "untied t5": lambda: tiny_t5(gated=True, tie_word_embeddings=False)}


def logits(model, ids, decoder_ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), decoder_input_ids=torch.tensor(decoder_ids)).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kept_tokens_have_their_logits_and_the_model_itself_stays_as_it_was(name, tmp_path):
    model = FAMILIES[name]()
    if isinstance(getattr(model, "final_logits_bias", None), torch.Tensor):
        model.final_logits_bias.normal_()
    source, target = [[5, 9, 47, 2], [14, 14, 2, 1]], [[2, 8, 40], [2, 33, 21]]
    new = KEPT.index
    before = logits(model, source, target)
    small = plain_copy(model)
    cut_vocabulary(small, KEPT)
    found = logits(
        small, [[new(i) for i in row] for row in source], [[new(i) for i in row] for row in target]
    )
    torch.testing.assert_close(found, before[:, :, KEPT], atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, source, target), before)
    rows = sum(weight[0].numel() for weight in model.parameters() if len(weight) == VOCABULARY)
    gone = (VOCABULARY - len(KEPT)) * rows
    assert model.num_parameters() - small.num_parameters() == gone > 0
    small.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(
        logits(again, [[3, 4, 2]], [[2, 4]]), logits(small.to(again.dtype), [[3, 4, 2]], [[2, 4]])
    )
    assert again.config.vocab_size == len(KEPT)


def test_rows_of_weights_that_are_released_are_copied_before_they_go(monkeypatch):
    monkeypatch.setattr("nspec_hf.export.vocabulary._ROWS", 7)
    model = tiny_m2m100(vocab_size=5000)
    kept = [*range(5), *range(17, 4980, 3), 4999]
    weight = model.get_input_embeddings().weight
    expected = weight.detach()[kept].clone()
    cut_vocabulary(model, kept, release=True)
    assert torch.equal(model.get_input_embeddings().weight, expected)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    if sys.platform == "linux":  # whole pages of it were given back, and read as zeros
        assert (weight == 0).all(dim=1).sum() > 4800


def test_ids_in_configs_get_their_new_numbers_and_words_that_are_gone_are_forgotten():
    model = SIX_ARCHITECTURES["m2m100"]()
    model.generation_config.update(
        eos_token_id=[2, 9],
        forced_bos_token_id=40,
        bad_words_ids=[[5, 8], [6], [47]],
        suppress_tokens=[3, 14],
        sequence_bias=[[[8, 9], -2.0], [[6], 3.0]],
    )
    cut_vocabulary(model, KEPT)
    generation = model.generation_config
    assert (model.config.pad_token_id, model.config.eos_token_id) == (1, 2)
    assert generation.eos_token_id == [2, 5]
    assert generation.forced_bos_token_id == 10
    assert generation.bad_words_ids == [[3, 4], [11]]
    assert generation.suppress_tokens == [6]
    assert generation.sequence_bias == [[[4, 5], -2.0]]
    assert model.get_input_embeddings().padding_idx == 1


def test_a_model_whose_forbidden_words_are_all_gone_generates_still():
    model = SIX_ARCHITECTURES["m2m100"]()
    model.generation_config.update(bad_words_ids=[[6]], suppress_tokens=[7], sequence_bias=[[[6], 3.0]])
    cut_vocabulary(model, KEPT)
    ids = torch.tensor([[3, 4, 2]])
    written = model.generate(input_ids=ids, max_new_tokens=4)
    special = {name: value for name, value in vars(model.generation_config).items() if "token_id" in name}
    model.generation_config = GenerationConfig(**special)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=4), written)


def test_models_of_more_than_one_vocabulary_are_refused():
    sides = tiny_marian(
        decoder_vocab_size=VOCABULARY + 2,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
    )
    for model in (sides, tiny_seamless()):
        with pytest.raises(UnsupportedModelError, match="more than one vocabulary"):
            cut_vocabulary(model, KEPT)


def kept_of(name, folder, texts, least=1):
    """Return the tokens that stay, for a model as large as the tokenizer."""
    tokenizer = make(name, folder)
    tokenizer.save_pretrained(folder / "saved")
    tags = LanguageTags(tokenizer)
    size = max(tags._vocabulary.values()) + 9  # M2M-100 has 8 rows without a token
    model = SIX_ARCHITECTURES["m2m100"](vocab_size=size)
    kept = kept_tokens(model, tags, texts, least, folder / "saved")
    name_of = {number: token for token, number in tags._vocabulary.items()}
    return {name_of[number] for number in kept}, tags


def english_german(name):
    return [PairText(Pair(pair), sentences("en"), sentences("de")) for pair in PAIRS[name]]


@pytest.mark.parametrize("name", PAIRS)
def test_all_that_text_is_split_into_stays_and_letters_of_its_script_but_not_of_others(name, tmp_path):
    kept, tags = kept_of(name, tmp_path, english_german(name))
    text = [*sentences("en"), *sentences("de")]
    pair = Pair(PAIRS[name][0])
    used = {number for row in tags.encode_source(text, pair) for number in row}
    assert {tags._vocabulary[token] for token in kept} >= used
    letters = {token for token in tags._vocabulary if len(token) == 1}
    assert kept >= {letter for letter in letters if "a" <= letter <= "z"}
    cyrillic = {token for token in tags._vocabulary if any("а" <= letter <= "я" for letter in token)}  # noqa: RUF001
    # One of them may have the lowest score of all.
    assert name == "bart" or (len(cyrillic) > 40 and len(cyrillic & kept) <= 1)
    assert len(kept) < len(tags._vocabulary)


def test_a_word_that_is_quoted_in_another_script_does_not_bring_its_letters(tmp_path):
    (text, back) = english_german("recipe_unigram")
    quoting = PairText(text.pair, [*text.sources, "дом"], [*text.targets, "дом"])
    kept, _ = kept_of("recipe_unigram", tmp_path, [quoting, back])
    tokens = {token for token in kept if any("а" <= letter <= "я" for letter in token)}  # noqa: RUF001
    assert 1 <= len(tokens) <= 4  # the word's, and the one of the lowest score
    russian = PairText(Pair("en-ru"), text.sources, sentences("ru"))
    (tmp_path / "ru").mkdir()
    kept, tags = kept_of("recipe_unigram", tmp_path / "ru", [russian])
    assert kept >= {token for token in tags._vocabulary if len(token) == 1 and "а" <= token <= "я"}  # noqa: RUF001


def test_rare_subwords_go_where_more_occurrences_are_asked_for(tmp_path):
    texts = english_german("recipe_unigram")
    for folder in ("all", "often"):
        (tmp_path / folder).mkdir()
    everything, tags = kept_of("recipe_unigram", tmp_path / "all", texts)
    often, _ = kept_of("recipe_unigram", tmp_path / "often", texts, least=60)
    counts = dict.fromkeys(tags._vocabulary, 0)
    for text in texts:
        rows = tags.encode_source(text.sources, text.pair) + tags.encode_target(text.targets, text.pair)
        for token in tags.tokenizer.convert_ids_to_tokens([number for row in rows for number in row]):
            counts[token] += 1
    gone = everything - often
    assert gone
    assert all(counts[token] < 60 and len(token) > 1 for token in gone)
    assert (
        all(counts[token] >= 60 or len(token) == 1 or token[0] in "<_" for token in often)
        or len([token for token in often if counts[token] < 60 and len(token) > 1 and token[0] not in "<_"])
        == 1
    )  # the one of the lowest score


def test_a_token_that_the_model_has_no_row_for_is_named(tmp_path):
    tokenizer = make("recipe_unigram", tmp_path)
    model = tiny_m2m100(vocab_size=len(tokenizer))
    tokenizer.add_tokens(["<late>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    texts = [PairText(Pair("en-de"), sentences("en"), sentences("de"))]
    with pytest.raises(ConfigError, match=r"<late>.*resize_token_embeddings"):
        kept_tokens(model, LanguageTags(tokenizer), texts, 1, tmp_path)


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_no_text_keeps_no_vocabulary(lines, tmp_path):
    with pytest.raises(ConfigError, match="counts them on a corpus"):
        kept_of("recipe_unigram", tmp_path, [PairText(Pair("en-de"), lines, lines)])
