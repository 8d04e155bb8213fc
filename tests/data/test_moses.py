"""Moses' tokenization and truecasing: against sacremoses alone, in a tokenizer that is saved and loaded."""

import sys

import pytest
import sacremoses
import torch
from transformers import M2M100ForConditionalGeneration

from nspec_hf.core import ConfigError, Pair
from nspec_hf.data import LanguageTags, PairText, VocabularyConfig, learned, load_tokenizer
from nspec_hf.evaluation import Translator
from nspec_hf.serving.exported import ConvertedTranslator
from nspec_hf.training import make_model, make_tokenizer

ENGLISH = [
    "The dog, it runs in Berlin.",
    "A man sees the dog.",
    "Here the man isn't in Berlin!",
    "Dogs: the best",
]
GERMAN = ["Der Hund läuft in Berlin.", "Ein Mann sieht der Hund.", "Hier ist der Mann (in Berlin)."]
TEXT = {"en": ENGLISH, "de": GERMAN}


def test_text_is_tokenized_as_by_the_library_and_put_together_again():
    moses = learned("tokenize", TEXT)
    for language, lines in TEXT.items():
        alone = sacremoses.MosesTokenizer(lang=language)
        words = moses.before(lines, language)
        assert words == [" ".join(alone.tokenize(line)) for line in lines]
        assert [moses.after(line, language) for line in words] == lines
    assert moses.before(["isn't it (5 > 3)?"], "en") == ["isn &apos;t it ( 5 &gt; 3 ) ?"]


def test_casing_is_what_the_library_learns_of_words_that_were_seen_twice():
    moses = learned("truecase", TEXT)
    alone = sacremoses.MosesTruecaser()
    alone.train([line.split() for line in learned("tokenize", {}).before(ENGLISH, "en")])
    # `the` and `Berlin` stand in the text's middle twice or more; `A` and `Dogs` only begin sentences.
    assert (
        {forms[0] for forms in moses.casing["en"]}
        == {"the", "Berlin", "in", "dog", "man"}
        <= set(alone.model["best"].values())
    )
    assert moses.before(["The Dog runs."], "en") == ["the dog runs ."]
    assert moses.before(["BERLIN sleeps."], "en") == ["Berlin sleeps ."]
    assert moses.after("the dog runs .", "en") == "The dog runs."
    # What another language has learned is not this one's.
    assert moses.before(["The dog."], "fr") == ["The dog ."]


@pytest.mark.parametrize("kind", ["tokenize", "truecase"])
def test_a_tokenizer_keeps_how_text_is_prepared_wherever_it_is_saved(tmp_path, kind):
    texts = [PairText(Pair("en-de"), ENGLISH[:3], GERMAN)]
    settings = VocabularyConfig(size=90, kind="bpe", target_on_source=True, moses=kind)
    make_tokenizer(texts, settings, tmp_path / "one").save_pretrained(tmp_path / "two")
    tokenizer = load_tokenizer(tmp_path / "two")
    tags, plain = LanguageTags(tokenizer), tokenizer
    assert tags.text.casing == (learned(kind, {"en": ENGLISH[:3], "de": GERMAN}).casing)
    ids = tags.encode_source(["The dog, it runs."], "en-de")[0]
    prepared = learned(kind, {"en": ENGLISH[:3]}).before(["The dog, it runs."], "en")
    assert ids[1:-1] == plain(prepared, add_special_tokens=False)["input_ids"][0]
    labels = tags.encode_target(["Ein Mann (in Berlin)."], "en-de")[0]
    assert (
        tags.text.after(tokenizer.decode(labels, skip_special_tokens=True), "de") == "Ein Mann (in Berlin)."
    )


def test_every_way_of_translating_reads_and_writes_text_as_people_do(tmp_path, monkeypatch):
    """Whatever decodes: what the model is given is tokenized, and what it writes is put together again."""
    settings = VocabularyConfig(size=90, kind="bpe", target_on_source=True, moses="tokenize")
    tokenizer = make_tokenizer([PairText(Pair("en-de"), ENGLISH[:3], GERMAN)], settings, tmp_path / "t")
    tags = LanguageTags(tokenizer)
    labels = tags.encode_target([GERMAN[2]], "en-de")[0]
    seen = []

    def generate(self, input_ids, decoder_input_ids, **settings):
        seen.append(input_ids[0].tolist())
        return torch.cat([decoder_input_ids, torch.tensor([labels])], dim=1)

    class Decoder:
        start = 2

        def __init__(self, *args):
            pass

        def decode(self, sources, prefixes, longest, **options):
            seen.append(list(sources[0]))
            return [labels]

    monkeypatch.setattr(M2M100ForConditionalGeneration, "generate", generate)
    monkeypatch.setattr("nspec_hf.serving.exported.Decoder", Decoder)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    sizes |= {"d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = make_model(tokenizer, sizes, seed=1)
    for translator in (Translator(model, tags), ConvertedTranslator(tmp_path, tags, ["en-de"])):
        assert translator.translate(["Here the man isn't in Berlin!"], "en-de") == [GERMAN[2]]
    words = tokenizer("Here the man isn &apos;t in Berlin !", add_special_tokens=False)["input_ids"]
    assert [ids[1:-1] for ids in seen] == [words, words]


def test_text_of_other_tokenizers_stays_as_it_is(tmp_path):
    tokenizer = make_tokenizer(
        [PairText(Pair("en-de"), ENGLISH[:3], GERMAN)], VocabularyConfig(size=90), tmp_path / "x"
    )
    text = LanguageTags(tokenizer).text
    assert text.before(["A (b), c."], "en") == ["A (b), c."]
    assert text.after("a , b", "en") == "a , b"


def test_the_library_is_missed_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(ConfigError, match=r"pip install 'nspec-hf\[moses\]'"):
        learned("tokenize", TEXT)
