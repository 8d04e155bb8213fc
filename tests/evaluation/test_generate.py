"""Outputs that are kept are those of the very same system and text; a stopped evaluation goes on."""

import copy
import fcntl

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import decoders, normalizers

from nspec_hf.adding import AddConfig, AddedPairs, Addition, layout_for
from nspec_hf.core import FolderInUseError, Pair, UnknownPairError
from nspec_hf.data import LanguageTags, PairText, read_outputs
from nspec_hf.evaluation import TranslateConfig, Translator, generate as evaluation, translate_test_set
from nspec_hf.gating import GateConfig
from tests.helpers.tiny_text import PAIRS, masks, model, texts, tokenizer

CONFIG = TranslateConfig(num_beams=1, length_ratio=1.0, length_extra=2, progress=False)

pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


class Counting(Translator):
    """Remembers which pairs it was asked to translate."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []

    def translate(self, texts, pair, **generation):
        self.asked += dict.fromkeys(pair)
        return super().translate(texts, pair, **generation)


def system(network=None, chosen=None, config=CONFIG, gate_config=None):
    return Counting(network or model(), tokenizer(), chosen, config, gate_config)


def test_every_pair_is_translated_and_kept_in_its_file(tmp_path):
    said = texts(3)
    translator = system()
    found = translate_test_set(translator, said, tmp_path / "new")
    assert list(found) == PAIRS
    assert read_outputs(tmp_path / "new") == dict(sorted(found.items()))
    for text in said:
        assert found[text.pair] == translator.translate(text.sources, [text.pair] * 3)


def test_what_lies_there_is_not_translated_again(tmp_path):
    said = texts(3)
    first = translate_test_set(system(), said[:2], tmp_path)
    again = system()
    second = translate_test_set(again, said, tmp_path)
    assert again.asked == PAIRS[2:]
    assert {pair: second[pair] for pair in first} == first


def other_weights():
    network = model()
    with torch.no_grad():
        network.model.decoder.layers[1].fc2.bias[3] += 1
    return system(network)


def other_generation(**settings):
    network = model()
    network.generation_config.update(**settings)
    return system(network)


def other_config():
    network = model()
    network.config.scale_embedding = not network.config.scale_embedding
    return system(network)


def other_tokenizer(change):
    spelled = copy.deepcopy(tokenizer())
    change(spelled)
    return Counting(model(), spelled, None, CONFIG)


def read_lower_case(spelled):
    """Let it read capitals as it reads lower case."""
    spelled.backend_tokenizer.normalizer = normalizers.Lowercase()


def write_without_spaces(spelled):
    spelled.backend_tokenizer.decoder = decoders.Fuse()


@pytest.mark.parametrize(
    "other",
    [
        other_weights,
        lambda: other_generation(no_repeat_ngram_size=2),
        lambda: other_generation(repetition_penalty=1.7),
        lambda: other_generation(bad_words_ids=[[9], [10]]),
        lambda: other_generation(min_new_tokens=3),
        lambda: other_generation(forced_eos_token_id=5),
        other_config,
        lambda: other_tokenizer(write_without_spaces),
        lambda: Counting(model(), LanguageTags(tokenizer(), {"de": "fr", "fr": "de"}), None, CONFIG),
        lambda: system(chosen=masks(model())),
        lambda: system(config=TranslateConfig(num_beams=2, progress=False)),
    ],
)
def test_another_system_takes_nothing_that_lies_there(tmp_path, other):
    said = texts(3)
    translate_test_set(system(), said, tmp_path)
    translator = other()
    found = translate_test_set(translator, said[:2], tmp_path)
    assert translator.asked == PAIRS[:2]
    assert found == translate_test_set(other(), said[:2], tmp_path / "fresh")
    # The rest is still the first system's, and is not taken for this one's later.
    translate_test_set(translator, said, tmp_path)
    assert translator.asked == [*PAIRS[:2], *PAIRS[2:]]


def test_a_tokenizer_that_reads_the_text_otherwise_translates_it_again(tmp_path):
    capital = [PairText(text.pair, [s.upper() for s in text.sources], text.targets) for text in texts(3)[:2]]
    translate_test_set(system(), capital, tmp_path)
    translator = other_tokenizer(read_lower_case)
    translate_test_set(translator, capital, tmp_path)
    assert translator.asked == PAIRS[:2]


def test_how_a_loaded_model_is_called_does_not_count(tmp_path):
    said, network = texts(3), model()
    translate_test_set(system(network), said, tmp_path)
    network.config._name_or_path = network.generation_config.transformers_version = "elsewhere"
    again = system(network)
    translate_test_set(again, said, tmp_path)
    assert again.asked == []


@pytest.mark.parametrize("content", ["[]", "{", '{"maker": 1}', '{"texts": []}'])
def test_a_damaged_record_of_who_made_translations_makes_them_anew(tmp_path, content):
    translate_test_set(system(), texts(3), tmp_path)
    (tmp_path / evaluation.MAKER_FILE).write_text(content, encoding="utf-8")
    translator = system()
    translate_test_set(translator, texts(3), tmp_path)
    assert translator.asked == PAIRS


def test_other_text_is_translated_again(tmp_path):
    translate_test_set(system(), texts(3), tmp_path)
    translator = system()
    changed = [PairText(text.pair, ["one", *text.sources[1:]], text.targets) for text in texts(3)[:1]]
    translate_test_set(translator, [*changed, *texts(3)[1:]], tmp_path)
    assert translator.asked == PAIRS[:1]


def test_a_stopped_evaluation_loses_one_part(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_AT_ONCE", 2)
    said, translator = texts(3), system()
    plain = translator.translate

    def stopping(sources, pair):
        if pair[0] == PAIRS[2]:
            raise KeyboardInterrupt
        return plain(sources, pair)

    translator.translate = stopping
    with pytest.raises(KeyboardInterrupt):
        translate_test_set(translator, said, tmp_path)
    again = system()
    translate_test_set(again, said, tmp_path)
    assert again.asked == PAIRS[2:]


def test_a_line_break_in_a_translation_becomes_a_space(tmp_path):
    translator = system()
    translator.translate = lambda sources, pair: ["a\r\nb", "c\u2028d", ""]
    found = translate_test_set(translator, texts(3)[:1], tmp_path)
    assert found == read_outputs(tmp_path) == {Pair("en-de"): ["a b", "c\u2028d", ""]}


def test_zero_shot_pairs_are_composed_before_anything_is_translated(tmp_path):
    said = [*texts(2), *texts(2, pairs=["de-fr"])]
    refused = system(chosen=masks(model()))
    with pytest.raises(UnknownPairError, match="de-fr"):
        translate_test_set(refused, said, tmp_path)
    assert refused.asked == []
    for _ in range(2):
        composing = system(chosen=masks(model()), gate_config=GateConfig(zero_shot="compose"))
        translate_test_set(composing, said, tmp_path)
    assert composing.asked == []


def test_two_processes_do_not_translate_into_one_folder(tmp_path):
    """The lines of one would be kept under the name of the other."""
    with open(tmp_path / ".lock", "a", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        translator = system()
        with pytest.raises(FolderInUseError, match="another process is writing into"):
            translate_test_set(translator, texts(3), tmp_path)
        assert not translator.asked
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    translate_test_set(translator, texts(3), tmp_path)
    assert translator.asked == PAIRS


def tuned(acting, factor=1.0):
    """A model with two of PEFT's adapters that are not the identity, and the one that acts."""
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=2 * factor, target_modules=["fc1"], init_lora_weights=False)
    network = get_peft_model(model(), config, adapter_name="one")
    network.add_adapter("other", config)
    network.set_adapter(acting)
    return system(network)


@pytest.mark.parametrize("other", [lambda: tuned("other"), lambda: tuned("one", factor=30.0)])
def test_another_adapter_or_factor_of_the_same_weights_takes_nothing_that_lies_there(tmp_path, other):
    said = texts(3)
    translate_test_set(tuned("one"), said, tmp_path)
    found = translate_test_set(other(), said, tmp_path)
    assert found == translate_test_set(other(), said, tmp_path / "fresh")
    again = other()
    translate_test_set(again, said, tmp_path)
    assert again.asked == []


@pytest.mark.parametrize("is_on_the_model", [False, True])
def test_another_addition_of_the_same_layout_takes_nothing_that_lies_there(tmp_path, is_on_the_model):
    said = [PairText(Pair("fr-de"), ["a", "b a", "c"], ["a", "b", "c"])]

    def added(scale):
        network = model()
        made = Addition(network, layout_for(network, ["fr-de"], AddConfig(), 0.5)).draw(network, 1, {})
        with torch.no_grad():
            for new in made.neurons.values():
                new.down.weight += (
                    scale * torch.arange(new.down.weight.numel()).view_as(new.down.weight).sin()
                )
        acting = AddedPairs(network, [made])
        return system(network, acting.attach() if is_on_the_model else acting)

    first = translate_test_set(added(0.5), said, tmp_path)
    found = translate_test_set(added(5.0), said, tmp_path)
    assert first != found == translate_test_set(added(5.0), said, tmp_path / "fresh")
    again = added(5.0)
    assert translate_test_set(again, said, tmp_path) == found
    assert again.asked == []
