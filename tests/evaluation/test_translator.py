"""A translation is that of its text alone, by its pair's own neurons, in its target language."""

import copy
import warnings

import pytest
import torch

from nspec_hf.core import ConfigError, Pair, SiteMismatchError, UnknownLanguageError, UnknownPairError
from nspec_hf.data import LanguageTags, PairText
from nspec_hf.evaluation import TranslateConfig, Translator, translate_test_set
from nspec_hf.gating import GateConfig, NeuronGate, attachment_of
from nspec_hf.masks import NeuronMasks, Recipe
from tests.helpers.families import tiny_led
from tests.helpers.gated import zeroed_copy
from tests.helpers.models import SIX_ARCHITECTURES, tiny_mbart
from tests.helpers.tiny_text import PAIRS, masks, model, texts, tokenizer
from tests.helpers.tiny_tokenizers import make_tokenizer

BEAMS = TranslateConfig(num_beams=3, max_tokens=150, length_ratio=1.0, length_extra=4, progress=False)

# A tiny model with random weights seldom ends a sentence.
pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


def mixed(count=3):
    """Return texts of all pairs in turn, and their pairs."""
    said = texts(count, seed=2)
    rows = [(each.sources[i], each.pair) for i in range(count) for each in said]
    return [row[0] for row in rows], [row[1] for row in rows]


def by_hand(network, text, pair, config):
    """Translate one text with the library alone."""
    tags = LanguageTags(tokenizer())
    ids = tags.encode_source([text], pair)
    output = network.generate(
        input_ids=torch.tensor(ids),
        decoder_input_ids=torch.tensor([[tokenizer().eos_token_id, tags.tag_id(Pair(pair).target)]]),
        num_beams=config.num_beams,
        max_new_tokens=int(config.length_ratio * len(ids[0])) + config.length_extra,
    )
    return tokenizer().decode(output[0], skip_special_tokens=True)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_mixed_list_equals_each_text_alone_in_a_model_without_the_silenced_neurons(beams):
    network = model()
    chosen = masks(network)
    config = TranslateConfig(
        num_beams=beams, max_tokens=150, length_ratio=1.0, length_extra=4, progress=False
    )
    sources, pairs = mixed()
    found = Translator(network, tokenizer(), chosen, config).translate(sources, pairs)
    twins = {pair: zeroed_copy(network, chosen, pair) for pair in PAIRS}
    expected = [by_hand(twins[pair], text, pair, config) for text, pair in zip(sources, pairs, strict=True)]
    assert found == expected
    dense = Translator(network, tokenizer(), None, config).translate(sources, pairs)
    assert dense == [by_hand(network, text, pair, config) for text, pair in zip(sources, pairs, strict=True)]
    assert found != dense


def test_one_set_of_masks_with_levels_translates_at_the_coverage_that_is_asked_for():
    network = model()
    low, high = masks(network, seed=4), masks(network, seed=5)
    settings = Recipe(method="coverage", settings={"coverage": 0.6, "coverage_decoder": None})
    both = NeuronMasks(low.pairs, low.keep, recipe=settings, levels={0.9: high.keep})
    sources, pairs = mixed()
    found = {}
    for coverage, chosen in ((0.6, low), (0.9, high), (None, low)):
        found[coverage] = Translator(network, tokenizer(), both, BEAMS, coverage=coverage).translate(
            sources, pairs
        )
        twins = {pair: zeroed_copy(network, chosen, pair) for pair in PAIRS}
        assert found[coverage] == [
            by_hand(twins[pair], text, pair, BEAMS) for text, pair in zip(sources, pairs, strict=True)
        ]
    assert found[0.6] == found[None] != found[0.9]
    with pytest.raises(ConfigError, match=r"no masks of coverage 0\.8"):
        Translator(network, tokenizer(), both, BEAMS, coverage=0.8)
    with pytest.raises(ConfigError, match="levels of masks"):
        Translator(network, tokenizer(), None, BEAMS, coverage=0.9)


@pytest.mark.parametrize("mode", ["mask", "slice"])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_of_fixed_size_gives_what_each_text_alone_gives_with_a_growing_one(mode, beams):
    network = model()
    chosen = masks(network)
    config = TranslateConfig(
        num_beams=beams, max_tokens=150, length_ratio=1.0, length_extra=4, progress=False
    )
    sliced = {"multiple_of": 2} if mode == "slice" else {}
    translator = Translator(network, tokenizer(), chosen, config, GateConfig(mode=mode, **sliced))
    for pair in PAIRS:
        sources = next(each.sources for each in texts(3, seed=2) if each.pair == pair)
        twin = zeroed_copy(network, chosen, pair)
        expected = [by_hand(twin, text, pair, config) for text in sources]
        assert translator.translate(sources, pair, cache_implementation="static") == expected


def test_a_composed_pair_equals_a_model_of_both_halves():
    network = model()
    chosen = masks(network, ["en-de", "de-en", "en-fr", "fr-en"])
    translator = Translator(network, tokenizer(), chosen, BEAMS, GateConfig(zero_shot="compose"))
    sources = texts(4, seed=3, pairs=["de-fr"])[0].sources
    found = translator.translate([*sources, "one two"], [*["de-fr"] * 4, "en-de"])
    twin = zeroed_copy(network, chosen.compose("de-fr"), "de-fr")
    assert found[:4] == [by_hand(twin, text, "de-fr", BEAMS) for text in sources]
    assert found[4] == by_hand(zeroed_copy(network, chosen, "en-de"), "one two", "en-de", BEAMS)


def test_the_gate_on_a_model_is_that_of_its_masks_after_it_has_composed_pairs_too():
    network = model()
    chosen = masks(network, ["en-de", "de-en", "en-fr", "fr-en"])
    with NeuronGate(network, chosen, GateConfig(zero_shot="compose")) as gate:
        gate.include("de-fr")
        translator = Translator(network, tokenizer(), chosen, BEAMS)
        assert translator.gate is gate
        found = translator.translate("one two", "en-de")
    assert found == by_hand(zeroed_copy(network, chosen, "en-de"), "one two", "en-de", BEAMS)


def test_one_text_gives_one_translation_and_no_text_none():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    assert translator.translate("one two", "en-de") == translator.translate(["one two"], ["en-de"])[0]
    assert translator.translate([], "en-de") == []
    assert translator.translate([], []) == []


def test_a_blank_text_has_a_blank_translation_and_keeps_its_place():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    found = translator.translate(["", "one two", " \t "], "en-de")
    assert found == ["", translator.translate("one two", "en-de"), ""]


def test_text_without_width_is_blank_and_no_model_is_asked(monkeypatch):
    translator = Translator(model(), tokenizer(), config=BEAMS)
    monkeypatch.setattr(translator.model, "generate", None)
    assert translator.translate(["\u200b", "\ufeff \u2060", "\u00ad"], "en-de") == ["", "", ""]


def test_batches_keep_to_the_budget_and_hold_every_row_once():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    sources, pairs = mixed(8)
    rows = translator._encode(sources, pairs)
    for one_pair in (False, True):
        batches = translator._batches(rows, {}, one_pair)
        assert sorted(row.number for batch in batches for row in batch) == list(range(len(sources)))
        for batch in batches:
            assert len(batch) * max(len(row.ids) for row in batch) * 3 <= 150 or len(batch) == 1
            assert not one_pair or len({row.pair for row in batch}) == 1
    assert max(map(len, translator._batches(rows, {}, False))) > 1


def test_a_text_that_is_too_long_is_cut_between_its_tags_and_warned_about():
    network = model(max_position_embeddings=20)
    translator = Translator(network, tokenizer(), config=BEAMS)
    long = "one two three " * 30
    with pytest.warns(UserWarning, match=r"1 texts are longer than 20 tokens .* text 1 with 92 tokens"):
        found = translator.translate(["one", long], "en-de")
    assert found[0] == translator.translate("one", "en-de")
    with pytest.warns(UserWarning, match="longer than 20"):
        row = translator._shortened(translator._encode([long], [Pair("en-de")]))[0]
    whole = LanguageTags(tokenizer()).encode_source([long], "en-de")[0]
    assert row.ids == [*whole[:19], whole[-1]]


def test_a_source_is_cut_at_the_encoders_positions_and_an_output_at_the_decoders():
    ids = tokenizer()
    special = {f"{each}_token_id": getattr(ids, f"{each}_token_id") for each in ("pad", "bos", "eos")}
    network, seen = tiny_led(vocab_size=len(ids), decoder_start_token_id=ids.eos_token_id, **special), []
    plain = network.generate
    network.generate = lambda **given: seen.append((given["input_ids"], plain(**given))) or seen[-1][1]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*texts are longer")
        Translator(network, ids, config=BEAMS).translate(
            "one two three four " * 10, "en-de", suppress_tokens=[ids.eos_token_id]
        )
    assert [[each.shape[1] for each in both] for both in seen] == [[42, 32]]


def test_a_limit_of_ones_own_cuts_earlier():
    config = TranslateConfig(num_beams=1, max_source=8, progress=False)
    with pytest.warns(UserWarning, match="longer than 8 tokens"):
        Translator(model(), tokenizer(), config=config).translate("one two " * 6, "en-de")
    short = model(max_position_embeddings=20)
    own = [TranslateConfig(max_source=most) for most in (8, 50)]
    assert [Translator(short, tokenizer(), config=each).limit for each in own] == [8, 20]


def test_an_output_never_runs_beyond_the_models_positions():
    network = model(max_position_embeddings=20)
    config = TranslateConfig(num_beams=2, length_ratio=9.0, progress=False)
    seen = []
    plain = network.generate
    network.generate = lambda **settings: seen.append(plain(**settings)) or seen[-1]
    Translator(network, tokenizer(), config=config).translate("one two three four", "en-de")
    assert seen[0].shape[1] == 20


@pytest.mark.filterwarnings("default:.*reached their longest length")
def test_a_translation_without_an_end_is_counted_and_warned_about():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    with pytest.warns(UserWarning, match="2 of 3 translations reached their longest length"):
        translator.translate(["one", "", "two"], "en-de", suppress_tokens=[tokenizer().eos_token_id])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translator.translate("one", "en-de", forced_eos_token_id=tokenizer().eos_token_id)


def test_each_of_several_tokens_that_end_a_translation_is_an_end():
    network, other = model(), tokenizer().convert_tokens_to_ids("__fr__")
    network.generation_config.eos_token_id = [tokenizer().eos_token_id, other]
    for ends in ({}, {"eos_token_id": [other]}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Translator(network, tokenizer(), config=BEAMS).translate(
                "one", "en-de", forced_eos_token_id=other, **ends
            )
    with pytest.warns(UserWarning, match="1 of 1 translations reached their longest length"):
        Translator(network, tokenizer(), config=BEAMS).translate(
            "one", "en-de", suppress_tokens=[other, tokenizer().eos_token_id]
        )


def test_an_end_that_a_model_forces_at_the_longest_length_is_none_of_a_neighbours():
    network, (sources, pairs) = model(), mixed()
    expected = [by_hand(network, text, pair, BEAMS) for text, pair in zip(sources, pairs, strict=True)]
    network.generation_config.forced_eos_token_id = tokenizer().eos_token_id  # as Marian's and mBART-50's
    translator, own = Translator(network, tokenizer(), None, BEAMS), copy.deepcopy(network.generation_config)
    for asked in ({}, {"generation_config": own}):
        with pytest.warns(UserWarning, match=f"{len(sources)} of {len(sources)} translations reached"):
            assert translator.translate(sources, pairs, **asked) == expected


def test_generation_settings_overrule_and_max_length_is_followed():
    network = model()
    network.generation_config.forced_bos_token_id = 7
    network.generation_config.max_length = 5
    translator = Translator(network, tokenizer(), config=BEAMS)
    seen = []
    plain = network.generate
    network.generate = lambda **settings: seen.append(plain(**settings)) or seen[-1]
    translator.translate("one two three", "en-de", suppress_tokens=[tokenizer().eos_token_id])
    translator.translate("one two three", "en-de", max_new_tokens=2)
    translator.translate("one two three", "en-de", max_length=4)
    assert [output.shape[1] for output in seen] == [2 + 5 + 4, 4, 4]
    assert {int(output[0, 1]) for output in seen} == {LanguageTags(tokenizer()).tag_id("de")}
    with pytest.raises(ConfigError, match="num_return_sequences is 1"):
        translator.translate("one", "en-de", num_return_sequences=2)
    with pytest.raises(ConfigError, match="returns text; call"):
        translator.translate("one", "en-de", return_dict_in_generate=True)
    before = translator.translate("one two three", "en-de")
    network.generation_config.return_dict_in_generate = True
    assert translator.translate("one two three", "en-de") == before


@pytest.mark.parametrize("asked", [{"max_new_tokens": 99}, {"max_length": 99}])
@pytest.mark.parametrize("name", ["m2m100", "marian"])
def test_a_bound_that_is_asked_for_ends_at_the_models_positions(name, asked):
    ids = tokenizer()
    special = {f"{each}_token_id": getattr(ids, f"{each}_token_id") for each in ("pad", "bos", "eos")}
    start = {"decoder_start_token_id": ids.eos_token_id}
    network = SIX_ARCHITECTURES[name](
        vocab_size=len(ids), max_position_embeddings=16, decoder_vocab_size=len(ids), **special, **start
    )
    seen = []
    plain = network.generate
    network.generate = lambda **settings: seen.append(plain(**settings)) or seen[-1]
    Translator(network, ids, config=BEAMS).translate(
        "one two three", "en-de", suppress_tokens=[ids.eos_token_id], **asked
    )
    assert seen[0].shape[1] == 16


def test_a_setting_that_is_none_is_as_if_it_had_not_been_asked_for():
    translator = Translator(model(), tokenizer(), config=BEAMS)
    usual = translator.translate(["one two three", "four"], "en-de")
    nothing = {"num_beams": None, "max_new_tokens": None, "max_length": None}
    assert translator.translate(["one two three", "four"], "en-de", **nothing) == usual


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    network = model(dropout=0.3).train(training)
    network.model.encoder.layers[0].train(not training)
    modes = [module.training for module in network.modules()]
    weights = copy.deepcopy(network.state_dict())
    translator = Translator(network, tokenizer(), masks(network), BEAMS)
    first = translator.translate("one two three", "en-de")
    assert first == translator.translate("one two three", "en-de")
    with pytest.raises(ValueError, match="wrong"):
        translator.translate("one", "en-de", stopping_criteria=[fail])
    assert modes == [module.training for module in network.modules()]
    assert attachment_of(network) is None
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


def fail(input_ids, scores, **kwargs):
    raise ValueError("wrong")


def test_a_gate_that_is_on_the_model_stays_and_keeps_its_choice():
    network = model()
    gate = NeuronGate(network, masks(network))
    expected = Translator(network, tokenizer(), masks(network), BEAMS).translate("one two", "en-de")
    with gate:
        gate.use("fr-en")
        status = gate.status()
        for given in (None, gate, masks(network)):
            translator = Translator(network, tokenizer(), given, BEAMS)
            assert translator.translate("one two", "en-de") == expected
            assert translator.acting_gate is gate
        assert gate.attached
        assert (gate.status().in_place, gate.status().route.split(";")[0]) == (
            status.in_place,
            status.route.split(";")[0],
        )
        with pytest.raises(ConfigError, match="has a gate already"):
            Translator(network, tokenizer(), masks(network, seed=8), BEAMS).translate("one two", "en-de")


def test_wrong_requests_are_refused_before_anything_is_translated():
    network = model()
    translator = Translator(network, tokenizer(), masks(network), BEAMS)
    network.generate = None
    with pytest.raises(ConfigError, match="2 texts but 1 pairs"):
        translator.translate(["one", "two"], ["en-de"])
    with pytest.raises(UnknownPairError, match=r"'de-fr'.*zero_shot='compose'"):
        translator.translate(["one", "eins"], ["en-de", "de-fr"])
    with pytest.raises(UnknownLanguageError, match="'xx'"):
        Translator(network, tokenizer(), config=BEAMS).translate(["one", "two"], ["en-de", "en-xx"])
    with pytest.raises(ConfigError, match="gate_config goes with masks"):
        Translator(network, tokenizer(), None, BEAMS, GateConfig())
    with pytest.raises(SiteMismatchError):
        Translator(network, tokenizer(), NeuronMasks.random({"x.fc1": 8}, ["en-de"], 0.5))
    for wrong in ({"num_beams": 0}, {"length_ratio": 0}, {"max_source": 3}):
        with pytest.raises(ConfigError):
            TranslateConfig(**wrong)


def test_text_of_one_pair_in_two_parts_is_refused_since_one_would_take_the_other_s_place(tmp_path):
    parts = [PairText(Pair("en-de"), [said], ["x"]) for said in ("one two", "three")]
    translator = Translator(model(), tokenizer(), config=BEAMS)
    with pytest.raises(ConfigError, match="named again: en-de"):
        translator.translate_corpus(parts)
    with pytest.raises(ConfigError, match="named again: en-de"):
        translate_test_set(translator, parts, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tag_on_the_source_alone_needs_no_prompt():
    ids = tokenizer(target_on_source=True)
    network = model()
    tags = LanguageTags(ids)
    sources, pairs = mixed(2)
    found = Translator(network, ids, config=BEAMS).translate(sources, pairs)
    for text, pair, translation in zip(sources, pairs, found, strict=True):
        row = tags.encode_source([text], pair)
        output = network.generate(
            input_ids=torch.tensor(row), num_beams=3, max_new_tokens=len(row[0]) + BEAMS.length_extra
        )
        assert translation == ids.decode(output[0], skip_special_tokens=True)


def test_your_own_codes_are_understood():
    network = model()
    plain = Translator(network, tokenizer(), config=BEAMS).translate("one two", "en-de")
    tags = LanguageTags(tokenizer(), {"eng": "en", "ger": "de"})
    mapped = Translator(network, tags, config=BEAMS)
    assert mapped.translate("one two", "eng-ger") == plain


def test_what_is_no_text_or_no_masks_is_refused_and_any_iterable_of_texts_is_taken():
    network = model()
    translator = Translator(network, tokenizer(), masks(network), TranslateConfig(num_beams=1))
    said = ["one two", "three"]
    expected = translator.translate(said, "en-de", max_new_tokens=4)
    assert translator.translate((text for text in said), "en-de", max_new_tokens=4) == expected
    with pytest.raises(ConfigError, match="text 1 is None"):
        translator.translate(["one", None], "en-de")
    with pytest.raises(ConfigError, match="text 1 holds half a character"):
        translator.translate(["one", "\ud800"], "en-de")
    with pytest.raises(ConfigError, match=r"from_pretrained reads saved ones\) or a gate, got str"):
        Translator(network, tokenizer(), "me/my-masks")


def test_a_model_that_starts_from_the_language_needs_no_start_token(tmp_path):
    """MBart-25 generates from the target's tag alone."""
    spelled = make_tokenizer(tmp_path, "mbart")
    network = tiny_mbart(
        vocab_size=len(spelled),
        pad_token_id=spelled.pad_token_id,
        eos_token_id=spelled.eos_token_id,
        max_position_embeddings=64,
    )
    tags = LanguageTags(spelled)
    network.config.decoder_start_token_id = network.generation_config.decoder_start_token_id = None
    found = Translator(network, spelled, config=BEAMS).translate(
        "a dog runs", "en_XX-de_DE", max_new_tokens=6
    )
    output = network.generate(
        input_ids=torch.tensor(tags.encode_source(["a dog runs"], "en_XX-de_DE")),
        decoder_input_ids=torch.tensor([[tags.tag_id("de_DE")]]),
        decoder_start_token_id=tags.tag_id("de_DE"),
        num_beams=3,
        max_new_tokens=6,
    )
    assert found == spelled.decode(output[0], skip_special_tokens=True)


def forgetful(network, most):
    """Let `generate` run out of memory, as on a GPU, with too many rows; return the rows of each call."""
    whole, calls = network.generate, []

    def generate(input_ids, **settings):
        calls.append(len(input_ids))
        outputs = whole(input_ids=input_ids, **settings)
        if len(input_ids) > most:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 162.00 MiB. GPU 0 has a total"
            )
        return outputs

    network.generate = generate
    return calls


@pytest.mark.parametrize("gate", [False, True])
def test_a_batch_that_memory_does_not_hold_is_translated_in_parts(gate):
    sources, pairs = mixed()
    config = TranslateConfig(num_beams=3, length_ratio=1.0, length_extra=4, progress=False)
    expected = Translator(model(), tokenizer(), masks(model()) if gate else None, config).translate(
        sources, pairs
    )
    network = model()
    calls = forgetful(network, 2)
    translator = Translator(network, tokenizer(), masks(network) if gate else None, config)
    with pytest.warns(UserWarning, match=r"memory ran out, .* took, \d+ \(now 4096\)") as told:
        assert translator.translate(sources, pairs) == expected
    assert len([each for each in told if "memory" in str(each.message)]) == 1
    assert calls[0] == len(sources) > 2
    assert sum(count for count in calls if count <= 2) == len(sources)
    calls.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*memory ran out")
        assert translator.translate(sources, pairs) == expected  # what does not fit is known by now
    assert max(calls) <= 2


def test_one_text_that_memory_does_not_hold_and_other_errors_are_the_user_s():
    network = model()
    calls = forgetful(network, 0)
    with pytest.raises(torch.OutOfMemoryError):
        Translator(network, tokenizer(), None, BEAMS).translate(*mixed())
    assert calls[-1] == 1
    network.generate = lambda **settings: (_ for _ in ()).throw(RuntimeError("a device-side assert"))
    with pytest.raises(RuntimeError, match="device-side"):
        Translator(network, tokenizer(), None, BEAMS).translate(*mixed())


def test_a_batch_whose_rows_a_function_tells_apart_is_not_parted():
    network = model()
    calls = forgetful(network, 2)
    with pytest.raises(torch.OutOfMemoryError):
        Translator(network, tokenizer(), None, TranslateConfig(progress=False)).translate(
            *mixed(1), logits_processor=[lambda ids, scores: scores]
        )
    assert calls == [len(PAIRS)]
