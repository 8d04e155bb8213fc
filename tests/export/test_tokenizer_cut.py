"""A cut tokenizer: text of kept tokens is split as before, with plain AutoTokenizer, in every family."""

import random

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nspec_hf.core import Pair, UnsupportedModelError
from nspec_hf.data import LanguageTags, vocabularies
from nspec_hf.export import tokenizer_cut
from nspec_hf.export.tokenizer_cut import cut_tokenizer, reachable
from tests.helpers.subword_tokenizers import PAIRS, all_text, make


def cut(tokenizer, tokens, folder):
    """Cut to these tokens, what was added, and what is needed to arrive at them."""
    tokenizer.save_pretrained(folder)
    ids, added = vocabularies(tokenizer)
    always = {*added, *tokenizer.all_special_tokens}
    kept = sorted({ids[token] for token in reachable(folder, tokens | always) if token in ids})
    return kept, cut_tokenizer(folder, tokenizer, kept)


def split(tags, text, pair):
    return tags.encode_source([text], pair)[0]


@pytest.mark.parametrize("name", PAIRS)
def test_text_whose_tokens_are_kept_is_split_as_before_and_other_text_is_still_read(name, tmp_path):
    tokenizer = make(name, tmp_path)
    before, pair = LanguageTags(tokenizer), Pair(PAIRS[name][0])
    ids = before._vocabulary
    name_of = {number: token for token, number in ids.items()}
    text = [*all_text(), "Strange wrds!", "ein Ωmega", ""]
    same = other = 0
    for seed in range(3):
        chosen = random.Random(seed).sample(text, 30)
        tokens = {name_of[number] for row in before.encode_source(chosen, pair) for number in row}
        folder = tmp_path / f"cut{seed}"
        kept, _ = cut(tokenizer, tokens, folder)
        assert len(kept) < len(ids)
        after = LanguageTags(AutoTokenizer.from_pretrained(folder))
        assert after.family == before.family
        for line in text:
            old, new = split(before, line, pair), split(after, line, pair)
            if set(kept).issuperset(old):
                assert [kept[number] for number in new] == old, line
                assert after.tokenizer.decode(new) == tokenizer.decode(old)
                same += line not in chosen
            else:
                assert [kept[number] for number in new] != old
                other += 1
    assert same > 10  # of sentences that were not chosen
    assert other > 10


@pytest.mark.parametrize("name", ["recipe_bpe", "m2m100_bpe", "nllb", "bart"])
def test_without_what_is_made_on_the_way_bpe_does_not_arrive_at_a_kept_token(name, tmp_path, monkeypatch):
    tokenizer = make(name, tmp_path)
    pair, line = Pair(PAIRS[name][0]), "Walkers talkers."
    before = LanguageTags(tokenizer)
    name_of = {number: token for token, number in before._vocabulary.items()}
    tokens = {name_of[number] for number in split(before, line, pair)}
    kept, _ = cut(tokenizer, tokens, tmp_path / "whole")
    whole = LanguageTags(AutoTokenizer.from_pretrained(tmp_path / "whole"))
    assert [kept[number] for number in split(whole, line, pair)] == split(before, line, pair)
    monkeypatch.setattr(tokenizer_cut, "_on_the_way", lambda token, rank: set())
    kept, _ = cut(tokenizer, tokens | set(line), tmp_path / "less")
    less = LanguageTags(AutoTokenizer.from_pretrained(tmp_path / "less"))
    assert [kept[number] for number in split(less, line, pair)] != split(before, line, pair)


def test_the_cost_of_a_character_without_a_piece_stays_where_the_worst_piece_is_not_needed(tmp_path):
    """Unigram charges it the lowest score less 10; the piece with that score is kept."""
    tokenizer = make("m2m100_unigram", tmp_path)
    tokenizer.save_pretrained(tmp_path / "saved")
    model = tokenizer.sp_model
    scores = {model.id_to_piece(i): model.get_score(i) for i in range(len(model)) if not model.is_control(i)}
    lowest = min(score for piece, score in scores.items() if piece != "<unk>")
    needed = reachable(tmp_path / "saved", {"a"})
    assert min(scores[piece] for piece in needed) == lowest


def test_a_piece_that_the_vocabulary_lacks_still_reads_as_unknown(tmp_path):
    """The vocabulary of Marian and M2M-100 has not all pieces of their SentencePiece models."""
    tokenizer = make("m2m100_bpe", tmp_path)
    missing = [line for line in all_text() if tokenizer.unk_token_id in tokenizer(line)["input_ids"]]
    assert missing
    tags = LanguageTags(tokenizer)
    name_of = {number: token for token, number in tags._vocabulary.items()}
    tokens = {name_of[number] for row in tags.encode_source(missing, "en-de") for number in row}
    kept, smaller = cut(tokenizer, tokens, tmp_path / "cut")
    for line in missing:
        assert [kept[number] for number in smaller(line)["input_ids"]] == tokenizer(line)["input_ids"]


def test_a_vocabulary_of_whole_words_is_refused_by_its_kind(tmp_path):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="kind WordLevel is not trimmed"):
        reachable(tmp_path, {"a"})


def test_a_tokenizer_that_loads_with_other_ids_is_refused(tmp_path):
    """M2M-100 numbers its tags by their place, so none may be left out."""
    tokenizer = make("m2m100_unigram", tmp_path)
    tokenizer.save_pretrained(tmp_path / "cut")
    ids, _ = vocabularies(tokenizer)
    with pytest.raises(UnsupportedModelError, match=r"M2M100Tokenizer cannot be cut: \d+ tokens"):
        cut_tokenizer(tmp_path / "cut", tokenizer, sorted(set(ids.values()) - {ids["__de__"]}))
