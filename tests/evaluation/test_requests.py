"""What may be asked of a translator: functions reach the texts that they are meant for, or are refused."""

import copy
import random
import threading
import warnings

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import GenerationConfig, LogitsProcessor
from transformers.generation import RepetitionPenaltyLogitsProcessor

from nspec_hf.core import ConfigError, NotFiniteError, Pair, UnsupportedModelError
from nspec_hf.data import LanguageTags
from nspec_hf.evaluation import TranslateConfig, Translator
from nspec_hf.evaluation.requests import ScoreCheck, shortened
from nspec_hf.evaluation.translator import _Row
from tests.helpers.tiny_text import PAIRS, masks, model, texts, tokenizer
from tests.helpers.tiny_tokenizers import make_tokenizer

BEAMS = TranslateConfig(num_beams=3, max_tokens=150, length_ratio=1.0, length_extra=4, progress=False)
# Shorter and longer ones in turn, so that a batch has another order than the list.
MIXED = ["one", "one two three four five six", "two three", "one two three four", "three"]

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def words(text):
    return set(tokenizer().tokenize(text))


class Wish(LogitsProcessor):
    """Lets the text of each row write one token only; it must be told nothing but the rows themselves."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        beams = len(scores) // len(self.tokens)
        allowed = torch.tensor(self.tokens).repeat_interleave(beams)
        wished = torch.full_like(scores, -torch.inf)
        wished[torch.arange(len(scores)), allowed] = 0.0
        return scores + wished


def test_a_function_that_allows_tokens_is_told_the_number_of_its_text():
    numbers = [tokenizer().convert_tokens_to_ids(f"▁{word}") for word in ("one", "two", "six", "zwei", "un")]
    translator = Translator(model(), tokenizer(), config=BEAMS)
    found = translator.translate(
        MIXED, "en-de", prefix_allowed_tokens_fn=lambda number, ids: [numbers[number]], max_new_tokens=3
    )
    assert [words(text) for text in found] == [{"▁one"}, {"▁two"}, {"▁six"}, {"▁zwei"}, {"▁un"}]


@pytest.mark.parametrize("blank", [False, True])
def test_a_processor_of_rows_sees_all_texts_in_their_order(blank):
    said = [*MIXED[:4], "" if blank else MIXED[4]]
    ids = [tokenizer().convert_tokens_to_ids(f"▁{word}") for word in ("one", "two", "six", "zwei", "un")]
    translator = Translator(model(), tokenizer(), config=BEAMS)
    found = translator.translate(said, "en-de", logits_processor=[Wish(ids)], max_new_tokens=3)
    last = set() if blank else {"▁un"}
    assert [words(text) for text in found] == [{"▁one"}, {"▁two"}, {"▁six"}, {"▁zwei"}, last]


def test_a_processor_of_rows_with_more_texts_than_a_batch_is_refused_by_name():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    with pytest.raises(ConfigError, match=r"Wish may treat each row its own way.*max_tokens=150"):
        translator.translate(["one two three"] * 40, "en-de", logits_processor=[Wish([5] * 40)])
    alike = RepetitionPenaltyLogitsProcessor(1.5)
    expected = translator.translate(MIXED * 8, "en-de", repetition_penalty=1.5)
    assert translator.translate(MIXED * 8, "en-de", logits_processor=[alike]) == expected


@pytest.mark.parametrize(
    "name", ["decoder_input_ids", "decoder_start_token_id", "encoder_outputs", "attention_mask", "pair_ids"]
)
def test_what_a_translator_makes_itself_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=f"makes {name} itself"):
        Translator(model(), tokenizer(), config=BEAMS).translate("one", "en-de", **{name: torch.ones(1, 2)})


def test_several_translations_a_text_are_refused_wherever_they_are_asked_for():
    network = model()
    translator = Translator(network, tokenizer(), config=BEAMS)
    given = GenerationConfig(num_beams=2, num_return_sequences=2)
    with pytest.raises(ConfigError, match=r"^num_return_sequences is 1 for.*it is 2"):
        translator.translate("one", "en-de", generation_config=given)
    network.generation_config.num_return_sequences = 3
    with pytest.raises(ConfigError, match=r"^model\.generation_config\.num_return_sequences is 1.*it is 3"):
        translator.translate(MIXED, "en-de")


def test_a_generation_config_is_followed_as_its_settings_are():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    given = GenerationConfig(num_beams=1, no_repeat_ngram_size=1, max_new_tokens=6)
    found = translator.translate(MIXED, "en-de", generation_config=given)
    assert found == translator.translate(
        MIXED, "en-de", num_beams=1, no_repeat_ngram_size=1, max_new_tokens=6
    )
    assert found != translator.translate(MIXED, "en-de", max_new_tokens=6)
    # What is said by name comes before what the config says, as in `generate`.
    named = translator.translate(MIXED, "en-de", generation_config=given, num_beams=3, no_repeat_ngram_size=0)
    assert named == translator.translate(MIXED, "en-de", max_new_tokens=6)


def test_a_changed_copy_of_the_models_own_generation_config_is_taken():
    network = model()
    network.generation_config.forced_bos_token_id = 7
    translator = Translator(network, tokenizer(), config=BEAMS)
    own = copy.deepcopy(network.generation_config)
    own.repetition_penalty = 5.0
    said = translator.translate("one two three", "en-de", generation_config=own)
    assert said == translator.translate("one two three", "en-de", repetition_penalty=5.0)
    assert said != translator.translate("one two three", "en-de")
    own.decoder_start_token_id = 5
    with pytest.raises(ConfigError, match="decoder_start_token_id"):
        translator.translate("one two three", "en-de", generation_config=own)


def broken_decoder(network):
    network.model.decoder.layers[0].fc1.weight.data[3] = float("nan")


def broken_embedding_of_one_word(network):
    network.model.shared.weight.data[tokenizer().convert_tokens_to_ids("▁six")] = float("nan")


def overflowing_in_float16(network):
    layer = network.model.decoder.layers[1]  # the library clamps an encoder's layers, not a decoder's
    for linear in (layer.fc1, layer.fc2):
        linear.weight.data *= 2e3
    network.half()


@pytest.mark.parametrize("settings", [{}, {"num_beams": 1}, {"num_beams": 1, "do_sample": True}])
@pytest.mark.parametrize("spoil", [broken_decoder, broken_embedding_of_one_word, overflowing_in_float16])
def test_scores_that_are_not_finite_give_no_translations(spoil, settings):
    """`generate` alone makes text of them, without a word."""
    network = model()
    spoil(network)
    translator = Translator(network, tokenizer(), masks(network), BEAMS)
    with pytest.raises(NotFiniteError, match=r"NaN or infinite.*float16"):
        translator.translate(MIXED, "en-de", max_new_tokens=4, **settings)
    if spoil is overflowing_in_float16:
        network.float()  # as the error advises
        translator.translate(MIXED, "en-de", max_new_tokens=4, **settings)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_one_score_that_is_not_finite_at_any_step_is_seen(wrong, step):
    steps = [torch.rand(3, 5) for _ in range(3)]
    for scores in steps:
        scores[:, 1] = -torch.inf  # forbidden
    check = ScoreCheck()
    for scores in steps:
        assert check(torch.zeros(3, 1), scores) is scores
    check.refuse()
    steps[step][2, 4] = wrong
    for scores in steps:
        check(torch.zeros(3, 1), scores)
    with pytest.raises(NotFiniteError):
        check.refuse()


def test_what_is_forbidden_by_an_infinite_score_is_no_fault():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    for settings in ({"bad_words_ids": [[5], [6]]}, {"suppress_tokens": [7, 8]}, {"min_new_tokens": 3}):
        assert any(translator.translate(MIXED, "en-de", max_new_tokens=4, **settings))


@pytest.mark.parametrize(
    "wrong",
    [{"no_such": 1}, {"early_stopping": "sometimes"}, {"max_new_tokens": -1}, {"repetition_penalty": -2.0}],
)
def test_what_generate_refuses_is_an_error_of_ours(wrong):
    with pytest.raises(ConfigError, match="generate cannot follow these settings"):
        Translator(model(), tokenizer(), config=BEAMS).translate("one", "en-de", **wrong)


def test_a_space_before_a_question_mark_is_the_models_and_stays():
    spelled = copy.deepcopy(tokenizer())
    spelled.add_tokens(["?"])
    marks = [spelled.convert_tokens_to_ids(token) for token in ("▁un", "▁", "?")]
    spelled.clean_up_tokenization_spaces = True
    network = model()
    network.resize_token_embeddings(len(spelled))
    translator = Translator(network, spelled, config=BEAMS)
    found = translator.translate(
        "one", "en-fr", max_new_tokens=3, prefix_allowed_tokens_fn=lambda _, ids: [marks[(len(ids) - 2) % 3]]
    )
    assert found == spelled.decode(marks, clean_up_tokenization_spaces=False)
    assert found != spelled.decode(marks)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_a_model_with_a_tuned_prompt_is_refused_by_name(kind):
    network = model()
    sizes = {
        "token_dim": network.config.d_model,
        "num_layers": network.config.decoder_layers,
        "num_attention_heads": network.config.decoder_attention_heads,
    }
    tuned = get_peft_model(network, kind(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, **sizes))
    for wrapped in (tuned, torch.nn.DataParallel(tuned)):
        with pytest.raises(UnsupportedModelError, match=r"adapter 'default' is P.*_TUNING.*would be lost"):
            Translator(wrapped, tokenizer(), config=BEAMS)


def test_thousands_of_long_texts_are_cut_without_comparing_them_with_each_other(monkeypatch):
    translator = Translator(model(max_position_embeddings=20), tokenizer(), config=BEAMS)
    rows = translator._encode(["one two three " * 10] * 300, [*PAIRS[:2], PAIRS[0]] * 100)
    asked = []
    plain = LanguageTags.encode_source
    monkeypatch.setattr(_Row, "__eq__", None)
    monkeypatch.setattr(LanguageTags, "encode_source", lambda *a: asked.append(a[2]) or plain(*a))
    with pytest.warns(UserWarning, match="300 texts are longer than 20"):
        cut = translator._shortened(rows)
    assert {len(row.ids) for row in cut} == {20}
    assert sorted(asked) == sorted(PAIRS[:2])


@pytest.mark.parametrize("translators", [1, 4])
def test_four_threads_get_their_own_translations_from_one_model_with_dropout(translators):
    network = model(dropout=0.5)
    chosen = masks(network)
    shared = [Translator(network, tokenizer(), chosen, BEAMS) for _ in range(translators)]
    wanted = {
        (source, text.pair): shared[0].translate(source, text.pair)
        for text in texts(3, seed=5)
        for source in text.sources
    }
    # A call that ends puts the model back into this mode, while another one is running.
    network.train()
    wrong, errors = [], []

    def serve(number):
        draw = random.Random(number)
        for _ in range(8):
            asked = draw.sample(sorted(wanted), draw.randint(1, 4))
            try:
                found = shared[number % translators].translate(*map(list, zip(*asked, strict=True)))
                wrong.extend(each for each, text in zip(asked, found, strict=True) if text != wanted[each])
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not wrong
    assert network.training


def test_long_texts_of_several_pairs_are_cut_between_their_own_tags(tmp_path):
    """Where the tag of the source stands at the end, another pair's would be taken for words."""
    tags = LanguageTags(make_tokenizer(tmp_path, "mbart"))
    pairs, end = ["en_XX-de_DE", "de_DE-en_XX"], tags.tokenizer.eos_token_id
    rows = [tags.encode_source(["a small dog runs"], pair)[0] for pair in pairs]
    texts = [(number, Pair(pair), rows[number]) for number, pair in enumerate(pairs)]
    with pytest.warns(UserWarning, match=r"2 texts are longer than 6 tokens"):
        found = shortened(texts, 6, tags)
    codes = ["en_XX", "de_DE"]
    assert found == [[*row[:4], end, tags.tag_id(code)] for row, code in zip(rows, codes, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shortened(texts, len(rows[0]), tags) == rows
