"""Which pair each row belongs to: the order of the sources, and what is refused."""

import copy
import pickle

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from nspec_hf.core import ConfigError, Pair, RoutingError, UnknownLanguageError, UnknownPairError
from nspec_hf.data import LanguageTags
from nspec_hf.gating import GateConfig, NeuronGate, Routing, attachment_of
from nspec_hf.gating.route import Route
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from recipes.bench.workload import BlockConfig, BlockModel
from tests.helpers.gated import PAIRS, random_masks, without_ids
from tests.helpers.models import random_batch, tiny_m2m100

CODES = ("en", "de", "fr", "cs")
EN, DE, FR, CS = 40, 41, 42, 43


def word_tokenizer(spelling: str) -> PreTrainedTokenizerFast:
    """A tokenizer in memory whose language tags are spelled like a family's."""
    words = ["<s>", "<pad>", "</s>", *(f"w{index}" for index in range(3, EN))]
    tags = [spelling.format(code) for code in CODES]
    vocabulary = {token: index for index, token in enumerate([*words, *tags])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="w3")),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="w3",
        extra_special_tokens=tags,
    )


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_m2m100()


@pytest.fixture
def masks(model: PreTrainedModel) -> NeuronMasks:
    return random_masks(model)


def tagged_batch(sources, targets):
    """M2M-100's form: [source] x </s> → start [target] y, rows of different lengths."""
    batch = without_ids(random_batch(rows=len(sources), seed=5))
    for ids in (batch["input_ids"], batch["labels"], batch["decoder_input_ids"]):
        ids[ids >= EN] = 7
    batch["input_ids"][:, 0] = torch.tensor(sources)
    batch["labels"][:, 0] = torch.tensor(targets)
    batch["decoder_input_ids"][:, 1] = torch.tensor(targets)
    return batch


def test_pair_ids_come_before_the_chosen_pair_and_that_before_language_tokens(model, masks):
    batch = tagged_batch([EN, EN], [FR, FR])
    with NeuronGate(model, masks) as gate, torch.no_grad():
        expected = [model(**batch, pair_ids=torch.tensor([index, index])).logits for index in range(3)]
        assert not torch.allclose(expected[0], expected[1], atol=1e-2)
        assert not torch.allclose(expected[1], expected[2], atol=1e-2)
        gate.read_languages(word_tokenizer("__{}__"))
        assert torch.equal(model(**batch).logits, expected[2])
        gate.use("de-en")
        assert torch.equal(model(**batch).logits, expected[1])
        assert torch.equal(model(**batch, pair_ids=torch.tensor([0, 0])).logits, expected[0])
        gate.use(None)
        assert torch.equal(model(**batch).logits, expected[2])


def test_no_source_is_an_error_and_never_dense(model, masks):
    with NeuronGate(model, masks) as gate:
        model(**random_batch())
        for call in (model, model.model, lambda **kw: model.get_encoder()(kw["input_ids"])):
            with pytest.raises(RoutingError, match=r"pair_ids.*gate\.use"):
                call(input_ids=torch.tensor([[5, 6]]), decoder_input_ids=torch.tensor([[2, 6]]))
        with pytest.raises(RoutingError, match="pair_ids"):
            model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)
        with pytest.raises(RoutingError, match="gated layer"):
            model.model.encoder.layers[0].fc1(torch.zeros(1, 2, 16))
        gate.use("en-de")
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=2)


@pytest.mark.parametrize("ids", [[0, 3], [-1, 0]])
def test_an_index_outside_the_masks_names_the_pairs(model, masks, ids):
    with NeuronGate(model, masks), pytest.raises(UnknownPairError, match=r"0 en-de, 1 de-en, 2 en-fr"):
        model(**without_ids(random_batch(rows=2)), pair_ids=torch.tensor(ids))


def test_an_index_outside_the_masks_is_an_error_in_a_compiled_model_too():
    """There no value is looked at: a negative one would count from the end, and run as the last pair."""
    model = BlockModel(BlockConfig(d_model=8, d_ff=24))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    hidden = torch.rand(2, 3, 8)
    try:
        with NeuronGate(model, random_masks(model)), torch.no_grad():
            expected = model(hidden, pair_ids=[1, 2])
            assert not torch.equal(expected, model(hidden, pair_ids=[2, 1]))
            torch.testing.assert_close(compiled(hidden, pair_ids=torch.tensor([1, 2])), expected)
            for ids in ([0, 3], [-1, 0], [-1, -1]):
                with pytest.raises(IndexError, match="out of bounds"):
                    compiled(hidden, pair_ids=torch.tensor(ids))
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([0]), "1 rows, the batch has 2"),
        (torch.tensor([0, 1, 2, 0]), "4 rows, the batch has 2"),
        (torch.tensor([[0], [1]]), r"shape \[2, 1\]"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (torch.tensor([True, False]), "bool"),
    ],
)
def test_ids_of_another_shape_or_type_are_refused(model, masks, ids, message):
    batch = without_ids(random_batch(rows=2))
    with NeuronGate(model, masks):
        with pytest.raises(RoutingError, match=message):
            model(**batch, pair_ids=ids)
        with pytest.raises(RoutingError, match=message):
            model.generate(batch["input_ids"], pair_ids=ids, max_new_tokens=2)


@pytest.mark.parametrize("name", ["input_ids", "inputs", "inputs_embeds", "input_features", "labels"])
def test_rows_are_counted_in_whatever_form_they_come(name):
    """Four rows and two pairs would be taken for two samples of two beams."""
    routing = Routing(PAIRS)
    for call in (routing.enter, lambda _, *of: routing.generation(*of).__enter__()):
        with pytest.raises(RoutingError, match="pair_ids has 2 rows, the batch has 4"):
            call(object(), torch.tensor([0, 1]), {name: torch.zeros(4, 3, 8)})


@pytest.mark.parametrize("ids", ["en-de", ["en-de", 1], [None, None]])
def test_ids_that_are_no_numbers_are_refused_by_name(model, masks, ids):
    with NeuronGate(model, masks), pytest.raises(RoutingError, match="pair_ids is one in"):
        model(**without_ids(random_batch(rows=2)), pair_ids=ids)


def test_a_batch_without_rows_is_refused_by_name(model, masks):
    none = {name: tensor[:0] for name, tensor in random_batch().items()}
    with NeuronGate(model, masks), pytest.raises(RoutingError, match="the batch has no rows"):
        model(**none)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_ids_of_any_integer_type_are_indices(model, masks, dtype):
    """PyTorch takes uint8 for booleans: [0, 1, 1] of three pairs would silently be pairs 1 and 2."""
    batch, ids = without_ids(random_batch(rows=3)), torch.tensor([0, 1, 1])
    with NeuronGate(model, masks), torch.no_grad():
        expected = model(**batch, pair_ids=ids).logits
        assert torch.equal(model(**batch, pair_ids=ids.to(dtype)).logits, expected)


def test_a_list_of_names_stands_for_their_indices(model, masks):
    batch = without_ids(random_batch(rows=2))
    with NeuronGate(model, masks), torch.no_grad():
        expected = model(**batch, pair_ids=torch.tensor([2, 0])).logits
        assert torch.equal(model(**batch, pair_ids=["en-fr", "en-de"]).logits, expected)
        with pytest.raises(UnknownPairError, match="en-xx"):
            model(**batch, pair_ids=["en-fr", "en-xx"])


def test_ids_may_be_a_list_and_names_are_what_use_takes(model, masks):
    batch = without_ids(random_batch(rows=2))
    with NeuronGate(model, masks) as gate, torch.no_grad():
        expected = model(**batch, pair_ids=torch.tensor([1, 1])).logits
        assert torch.equal(model(**batch, pair_ids=[1, 1]).logits, expected)
        gate.use("de-en")
        assert torch.equal(model(**batch).logits, expected)


def test_an_unknown_pair_is_refused_with_the_known_ones_and_the_way_out(model, masks):
    gate = NeuronGate(model, masks)
    with pytest.raises(UnknownPairError, match=r"de-fr.*de-en, en-de, en-fr.*compose"):
        gate.use("de-fr")


def test_a_zero_shot_pair_is_composed_on_request(model, masks):
    batch = without_ids(random_batch())
    gate = NeuronGate(model, masks, GateConfig(zero_shot="compose"))
    composed = NeuronGate(model, masks.compose("de-fr", pivot="en"))
    with composed, torch.no_grad():
        expected = model(**batch, pair_ids=torch.full((4,), 3)).logits
    assert [gate.knows(pair) for pair in ("de-fr", "fr-de", "en-de")] == [True, False, True]
    with gate, torch.no_grad():
        gate.use("de-fr")
        assert gate.masks.pairs == [*PAIRS, "de-fr"]
        assert torch.equal(model(**batch).logits, expected)
        assert not torch.allclose(model(**batch, pair_ids=torch.zeros(4, dtype=torch.long)).logits, expected)
        with pytest.raises(UnknownPairError, match="fr-en"):
            gate.use("fr-de")


def test_a_pair_that_is_named_in_several_ways_is_one_pair_where_others_are_composed(model, masks):
    gate = NeuronGate(model, masks, GateConfig(zero_shot="compose"))
    assert gate.include_all(["en->de", "de->fr", "de-fr", "de--fr"]) == [masks.index("en-de"), 3, 3, 3]
    assert gate.masks.pairs == [*PAIRS, "de-fr"]


@pytest.mark.parametrize(
    "duplicate", [lambda gated: gated, copy.deepcopy, lambda gated: pickle.loads(pickle.dumps(gated))]
)
def test_zero_shot_pairs_that_a_batch_names_are_composed_as_use_composes_them(model, masks, duplicate):
    batch = without_ids(random_batch(rows=3))
    with NeuronGate(model, masks.compose("de-fr", pivot="en")), torch.no_grad():
        expected = model(**batch, pair_ids=torch.tensor([3, 0, 3])).logits
    with NeuronGate(model, masks, GateConfig(zero_shot="compose")), torch.no_grad():
        one = duplicate(model)
        assert torch.equal(one(**batch, pair_ids=["de-fr", "en-de", "de-fr"]).logits, expected)
        assert attachment_of(one).masks.pairs == [*PAIRS, "de-fr"]
        assert one is model or attachment_of(model).masks.pairs == PAIRS
        with pytest.raises(UnknownPairError, match="fr-en"):
            one(**batch, pair_ids=["fr-de", "en-de", "de-fr"])


def test_several_zero_shot_pairs_are_composed_together(model, monkeypatch):
    pairs = [Pair(a, b) for a, b in (("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en"))]
    masks, calls = NeuronMasks.random(find_sites(model), pairs, 0.5), []
    plain = NeuronMasks.compose
    monkeypatch.setattr(NeuronMasks, "compose", lambda *of, **how: calls.append(of) or plain(*of, **how))
    gate = NeuronGate(model, masks, GateConfig(zero_shot="compose"))
    assert gate.include_all(["fr-de", "en-de", "de-fr", "fr-de"]) == [4, 0, 5, 4]
    assert len(calls) == 1
    with pytest.raises(UnknownPairError, match="en-xx"):
        gate.include_all(["de-xx"])


def test_each_row_of_a_batch_of_composed_pairs_runs_as_its_two_parts_do(model):
    codes = ["de", "fr", "cs", "da", "nl"]
    own = [pair for code in codes for pair in (Pair("en", code), Pair(code, "en"))]
    new = [Pair(a, b) for a in codes for b in codes if a != b]
    masks = NeuronMasks.random(find_sites(model), own, 0.5, seed=2)
    batch = without_ids(random_batch(rows=len(new)))
    with NeuronGate(model, masks.compose(new)), torch.no_grad():
        mixed = model(**batch, pair_ids=torch.arange(len(own), len(own) + len(new))).logits
    for row, pair in enumerate(new):
        parts = masks[f"{pair.source}-en"], masks[f"en-{pair.target}"]
        keep = {name: parts["decoder" in name][name][None] for name in masks.keep}
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        with NeuronGate(model, NeuronMasks([pair], keep)), torch.no_grad():
            expected = model(**alone, pair_ids=torch.tensor([0])).logits
        torch.testing.assert_close(mixed[row : row + 1], expected)
    assert not torch.allclose(mixed[0], mixed[1])


@pytest.mark.parametrize("mode", ["mask", "slice", "gradient"])
def test_masks_that_are_selected_anew_are_composed_anew(model, mode):
    pairs = [Pair(a, b) for a, b in (("en", "de"), ("de", "en"), ("en", "fr"), ("fr", "en"))]
    old, other = (NeuronMasks.random(find_sites(model), pairs, 0.5, seed=seed) for seed in (1, 2))
    batch = without_ids(random_batch())
    gate = NeuronGate(model, old, GateConfig(mode=mode, zero_shot="compose"))
    gate.include("de-fr")
    gate.replace_masks(other)
    assert gate.masks == other.compose("de-fr")
    with gate, torch.no_grad():
        ids = torch.tensor([4, 0, 4, 3])
        found = model(**batch, pair_ids=ids).logits
    with NeuronGate(model, other.compose("de-fr"), GateConfig(mode=mode)), torch.no_grad():
        torch.testing.assert_close(found, model(**batch, pair_ids=ids).logits)
    with pytest.raises(ConfigError, match="same pairs"):
        gate.replace_masks(other.subset(pairs[:2]))
    fewer = {name: keep_PF for name, keep_PF in other.keep.items() if "encoder" in name}
    with pytest.raises(ConfigError, match="same pairs and sites"):
        gate.replace_masks(NeuronMasks(other.pairs, fewer))
    assert gate.masks == other.compose("de-fr")


def test_languages_are_read_row_by_row(model, masks):
    batch = tagged_batch([EN, DE, EN], [FR, EN, DE])
    with NeuronGate(model, masks) as gate, torch.no_grad():
        expected = model(**batch, pair_ids=torch.tensor([2, 1, 0])).logits
        gate.read_languages(word_tokenizer("__{}__"))
        assert torch.equal(model(**batch).logits, expected)
        assert gate.status().route.endswith("by language tokens")
        with pytest.raises(RoutingError, match="decoder_input_ids"):
            model.get_encoder()(batch["input_ids"])


def test_languages_are_read_from_labels_and_from_tags_at_the_end(model, masks):
    tags = LanguageTags(word_tokenizer("__{}__"))
    batch = tagged_batch([EN, DE], [DE, EN])
    gate = NeuronGate(model, masks)
    gate.read_languages(tags)
    read = gate.routing.reader.read
    assert read({"input_ids": batch["input_ids"], "labels": batch["labels"]}).rows.tolist() == [0, 1]
    # mBART-25: x </s> [source], and the decoder starts from [target].
    source = torch.tensor([[7, 8, 2, EN], [7, 2, DE, 1]])
    assert read({"input_ids": source, "labels": torch.tensor([[7, 2, DE], [7, 2, EN]])}).rows.tolist() == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("sources", "targets", "error", "message"),
    [
        ([EN, 9], [DE, DE], RoutingError, "row 1 of input_ids shows no language"),
        ([EN, CS], [DE, DE], RoutingError, r"row 1 of input_ids shows no language.*de, en, fr"),
        ([EN, EN], [DE, EN], UnknownPairError, "en-en"),
        ([EN, FR], [DE, EN], UnknownPairError, "fr-en"),
    ],
)
def test_tokens_that_name_no_masked_pair_are_refused(model, masks, sources, targets, error, message):
    with NeuronGate(model, masks) as gate:
        gate.read_languages(word_tokenizer("__{}__"))
        with pytest.raises(error, match=message):
            model(**tagged_batch(sources, targets))


def test_a_cache_of_keys_and_values_goes_on_with_the_pairs_that_filled_it_and_no_others(model, masks):
    source, target = torch.randint(3, 40, (2, 5)), torch.tensor([[2, 5, 7], [2, 6, 8]])

    def go_on(filled, **route):
        hidden = (filled.encoder_last_hidden_state,)
        return model(
            encoder_outputs=hidden,
            past_key_values=filled.past_key_values,
            decoder_input_ids=target[:, 2:],
            **route,
        )

    def fill(**route):
        return model(input_ids=source, decoder_input_ids=target[:, :2], use_cache=True, **route)

    with NeuronGate(model, masks) as gate, torch.no_grad():
        whole = model(input_ids=source, decoder_input_ids=target, pair_ids=[0, 2]).logits
        found = go_on(fill(pair_ids=[0, 2]), pair_ids=[0, 2]).logits
        torch.testing.assert_close(found[:, 0], whole[:, 2], rtol=0, atol=1e-5)
        for other in ([2, 0], [0, 0], [1, 2]):
            with pytest.raises(RoutingError, match=r"past_key_values were computed as en-de/en-fr"):
                go_on(fill(pair_ids=[0, 2]), pair_ids=other)
        gate.use("en-de")
        filled = fill()
        go_on(filled)
        gate.use("de-en")
        with pytest.raises(RoutingError, match=r"computed as en-de, but these rows are de-en"):
            go_on(filled)
        with pytest.raises(RoutingError, match="computed as en-de"):
            model.generate(source, past_key_values=filled.past_key_values, max_new_tokens=2)
        # Rows may be taken out of a cache, and those that are left are of the pairs that filled it.
        filled = fill(pair_ids=[0, 2])
        filled.past_key_values.batch_select_indices(torch.tensor([1]))
        one = {
            "encoder_outputs": (filled.encoder_last_hidden_state[1:],),
            "past_key_values": filled.past_key_values,
            "decoder_input_ids": target[1:, 2:],
        }
        with pytest.raises(RoutingError, match=r"computed as en-de/en-fr, but these rows are de-en"):
            model(**one, pair_ids=[1])
        found = model(**one, pair_ids=[2]).logits
        torch.testing.assert_close(found[:, 0], whole[1:, 2], rtol=0, atol=1e-5)
        # Nothing is left of a call that was refused, and another cache may be filled.
        gate.use("de-en")
        go_on(fill())


def test_sides_of_different_numbers_of_rows_are_refused_by_name(model, masks):
    gate = NeuronGate(model, masks)
    gate.read_languages(word_tokenizer("__{}__"))
    with pytest.raises(RoutingError, match="3 sources but 2 targets"):
        gate.routing.reader.read({"input_ids": torch.tensor([[EN]] * 3), "labels": torch.tensor([[DE]] * 2)})


def test_a_row_with_two_languages_is_refused(model, masks):
    batch = tagged_batch([EN, EN], [DE, DE])
    batch["input_ids"][1, 1] = FR
    with NeuronGate(model, masks) as gate:
        gate.read_languages(word_tokenizer("__{}__"))
        with pytest.raises(RoutingError, match="row 1 of input_ids shows 2 languages"):
            model(**batch)


def test_tokenizers_that_do_not_show_both_languages_are_refused(model, masks):
    gate = NeuronGate(model, masks)
    with pytest.raises(ConfigError, match=r"marian.*pair_ids"):
        gate.read_languages(word_tokenizer(">>{}<<"))
    with pytest.raises(UnknownLanguageError):
        NeuronGate(model, masks.compose("de-fr").subset(["de-fr"])).read_languages(
            LanguageTags(word_tokenizer("__{}__"), codes={"fr": "xx"})
        )


def test_generation_reads_the_target_from_the_forced_token_or_the_prompt(model, masks):
    source = torch.tensor([[EN, 5, 6, 7, 2], [EN, 8, 9, 6, 2]])
    settings = {"max_new_tokens": 6, "num_beams": 2, "forced_bos_token_id": FR}
    prompt = torch.tensor([[2, DE], [2, FR]])
    with NeuronGate(model, masks) as gate:
        forced = model.generate(source, pair_ids=torch.tensor([2, 2]), **settings)
        prompted = model.generate(
            source, pair_ids=torch.tensor([0, 2]), decoder_input_ids=prompt, max_new_tokens=6
        )
        start = {"decoder_start_token_id": FR, "max_new_tokens": 6}  # as mBART-25 does
        started = model.generate(source, pair_ids=torch.tensor([2, 2]), **start)
        gate.read_languages(word_tokenizer("__{}__"))
        assert torch.equal(model.generate(source, **start), started)
        assert torch.equal(model.generate(source, **settings), forced)
        assert torch.equal(model.generate(source, decoder_input_ids=prompt, max_new_tokens=6), prompted)
        model.generation_config.forced_bos_token_id = FR
        assert torch.equal(model.generate(source, max_new_tokens=6, num_beams=2), forced)
        # A config may come by its name or by its place, and is before the model's.
        model.generation_config.forced_bos_token_id = DE
        config = GenerationConfig(**settings)
        assert torch.equal(model.generate(source, generation_config=config), forced)
        assert torch.equal(model.generate(source, config), forced)
        model.generation_config.forced_bos_token_id = None
        with pytest.raises(RoutingError, match="forced_bos_token_id"):
            model.generate(source, max_new_tokens=6)
        # A list is accepted by transformers, which then gives every row one language.
        with pytest.raises(RoutingError, match="2 languages"):
            model.generate(source, max_new_tokens=6, forced_bos_token_id=[DE, FR])


def test_rows_are_repeated_in_place_for_beams_and_flattened_tokens():
    route = Route(torch.tensor([0, 2]), None, "pair_ids")
    assert route.rows_for(torch.zeros(2, 5, 3)).tolist() == [0, 2]
    assert route.rows_for(torch.zeros(6, 1, 3)).tolist() == [0, 0, 0, 2, 2, 2]
    assert route.rows_for(torch.zeros(8, 3)).tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    with pytest.raises(RoutingError, match=r"5 rows.*2 samples"):
        route.rows_for(torch.zeros(5, 1, 3))
    assert Route(torch.tensor([1]), 1, "use").rows_for(torch.zeros(5, 1, 3)).tolist() == [1]


def test_a_call_that_was_interrupted_leaves_no_route_to_the_next_one():
    routing = Routing([])
    inner, outer = object(), object()
    batch = {"input_ids": torch.zeros(1, 2)}
    routing.pairs = PAIRS
    routing.enter(outer, torch.tensor([1]), batch, outermost=True)  # never left: Ctrl-C
    routing.enter(outer, torch.tensor([2]), batch, outermost=True)
    routing.enter(inner, None, batch)
    assert routing.leave(inner) is None
    assert routing.current().pair == 2
    assert routing.leave(outer).pair == 2
    with pytest.raises(RoutingError):
        routing.current()
    routing.enter(outer, torch.tensor([1]), batch, outermost=True)
    routing.choose(Route(torch.tensor([0]), 0, "use"))
    assert routing.current().pair == 0


def test_pair_ids_inside_a_call_that_has_a_route_are_refused():
    routing = Routing(PAIRS)
    batch = {"input_ids": torch.zeros(1, 2)}
    with routing.generation(torch.tensor([1]), batch):
        with pytest.raises(RoutingError, match="given again"):
            routing.enter(object(), torch.tensor([0]), batch)
        with routing.generation(None, batch):
            assert routing.current().pair == 1
        assert routing.current().pair == 1


def test_status_tells_where_the_route_comes_from(model, masks):
    gate = NeuronGate(model, masks)
    assert gate.status().route == "pair_ids, nothing else is set; no batch yet"
    assert gate.last_rows is None
    with gate:
        model(**{**random_batch(), "pair_ids": torch.tensor([2, 0, 2, 0])})
    assert gate.last_rows.tolist() == [2, 0, 2, 0]
    assert not gate.routes_itself
    assert gate.status().route.endswith("last batch: en-de, en-fr by pair_ids")
    gate.use("de-en")
    assert gate.status().route.startswith("gate.use('de-en')")
    assert gate.routes_itself
