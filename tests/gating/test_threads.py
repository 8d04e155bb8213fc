"""One model, several threads of calls: each request gets its own pair's neurons, by each way of routing."""

import copy
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nspec_hf.core import RoutingError
from nspec_hf.gating import GateConfig, NeuronGate, attachment_of, slice_mode as slicing
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import find_sites
from tests.gating.test_mask_mode import zeroed_copy
from tests.gating.test_routing import DE, EN, FR, PAIRS, tagged_batch, word_tokenizer
from tests.helpers.gated import random_masks
from tests.helpers.models import random_batch, tiny_m2m100

TAGS = {"en-de": (EN, DE), "de-en": (DE, EN), "en-fr": (EN, FR)}
GENERATION = {"max_new_tokens": 4, "min_new_tokens": 4, "no_repeat_ngram_size": 1}
THREADS = 4


@pytest.fixture(autouse=True)
def _switch_threads_often(monkeypatch):
    monkeypatch.setattr(slicing, "_SAVED_TOKENS", 0)
    monkeypatch.setattr(slicing, "_SAVED_TOKENS_KEPT", 0)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def request(pair, rows):
    """A batch of one pair that shows its languages; as many rows as requests of several sizes have."""
    source, target = TAGS[pair]
    batch = tagged_batch([source] * rows, [target] * rows)
    return {**batch, "input_ids": batch["input_ids"].roll(rows, 0)}


def by_ids(gate, model, pair, batch):
    return model(**batch, pair_ids=[PAIRS.index(pair)] * len(batch["input_ids"])).logits


def by_ids_in_generate(gate, model, pair, batch):
    ids = torch.tensor([PAIRS.index(pair)] * len(batch["input_ids"]))
    return model.generate(batch["input_ids"], pair_ids=ids, forced_bos_token_id=TAGS[pair][1], **GENERATION)


def by_choice(gate, model, pair, batch):
    gate.use(pair)
    return model(**batch).logits


def by_choice_in_generate(gate, model, pair, batch):
    gate.use(pair)
    return model.generate(batch["input_ids"], forced_bos_token_id=TAGS[pair][1], **GENERATION)


def by_language(gate, model, pair, batch):
    return model(**batch).logits


def by_language_in_generate(gate, model, pair, batch):
    return model.generate(batch["input_ids"], forced_bos_token_id=TAGS[pair][1], **GENERATION)


WAYS = [by_ids, by_ids_in_generate, by_choice, by_choice_in_generate, by_language, by_language_in_generate]


def right_answers(model, masks, generates):
    """What copies of the model give whose silenced neurons are zeros, for each pair and number of rows."""
    found = {}
    for pair in PAIRS:
        copied = zeroed_copy(model, masks, pair)
        for rows in (1, 2, 3):
            batch = request(pair, rows)
            if generates:
                forced = {"forced_bos_token_id": TAGS[pair][1], **GENERATION}
                found[pair, rows] = copied.generate(batch["input_ids"], **forced)
            else:
                found[pair, rows] = copied(**batch).logits
    return found


def wrong_answers(way, mode, requests):
    """How many of the requests of four threads are not answered as by a zeroed copy."""
    model = tiny_m2m100()
    masks = random_masks(model)
    generates = way.__name__.endswith("generate")
    with torch.no_grad():
        expected = right_answers(model, masks, generates)
    gate = NeuronGate(model, masks, GateConfig(mode=mode, **({"multiple_of": 1} if mode == "slice" else {})))
    if way.__name__.startswith("by_language"):
        gate.read_languages(word_tokenizer("__{}__"))
    start = threading.Barrier(THREADS)

    def serve(thread):
        start.wait()
        wrong = 0
        with torch.no_grad():
            for number in range(requests):
                pair, rows = PAIRS[(thread + number) % 3], 1 + (thread * 7 + number) % 3
                found = way(gate, model, pair, request(pair, rows))
                answer = expected[pair, rows]
                wrong += not (
                    torch.equal(found, answer) if generates else torch.allclose(found, answer, atol=1e-5)
                )
        return wrong

    with gate, ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(serve, range(THREADS)))


@pytest.mark.parametrize("mode", ["mask", "slice"])
@pytest.mark.parametrize("way", WAYS)
def test_four_threads_get_what_each_would_get_alone(way, mode):
    assert wrong_answers(way, mode, 12) == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mask", "slice"])
@pytest.mark.parametrize("way", WAYS)
def test_four_threads_of_two_hundred_requests_get_what_each_would_get_alone(way, mode):
    assert wrong_answers(way, mode, 200) == 0


def test_a_thread_that_chose_nothing_follows_the_others_until_they_differ():
    """As where `generate` with a streamer runs in a thread of its own, after `gate.use` in the main one."""
    model = tiny_m2m100()
    masks, batch = random_masks(model), request("en-de", 2)
    with torch.no_grad(), NeuronGate(model, masks) as gate, ThreadPoolExecutor(1) as other:
        gate.use("en-fr")
        started = other.submit(lambda: model.generate(batch["input_ids"], **GENERATION)).result()
        assert torch.equal(started, zeroed_copy_answer(model, masks, "en-fr", batch))
        other.submit(gate.use, "de-en").result()
        assert gate.status().route.startswith("gate.use('en-fr')")
        with ThreadPoolExecutor(1) as third, pytest.raises(RoutingError, match=r"Other threads .* differ"):
            third.submit(lambda: model(**batch)).result()
        # A copy is made by a thread, and has its choice.
        assert attachment_of(copy.deepcopy(model)).status().route.startswith("gate.use('en-fr')")
        gate.use("de-en")
        with ThreadPoolExecutor(1) as third:
            agreed = third.submit(lambda: model.generate(batch["input_ids"], **GENERATION)).result()
        assert torch.equal(agreed, zeroed_copy_answer(model, masks, "de-en", batch))


def zeroed_copy_answer(model, masks, pair, batch):
    plain = copy.deepcopy(model)
    attachment_of(plain).detach()
    return zeroed_copy(plain, masks, pair).generate(batch["input_ids"], **GENERATION)


def test_pairs_that_threads_compose_at_once_get_an_index_each():
    model = tiny_m2m100()
    sites = {site.name: site.width for site in find_sites(model)}
    languages = [f"{letter}{letter}" for letter in "abcdefgh"]
    trained = [f"en-{each}" for each in languages] + [f"{each}-en" for each in languages]
    masks = NeuronMasks.random(sites=sites, pairs=trained, density=0.6, seed=1)
    gate = NeuronGate(model, masks, GateConfig(zero_shot="compose"))
    wanted = [f"{a}-{b}" for a in languages for b in languages if a != b]
    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(wanted, pool.map(gate.include, wanted), strict=True))
    assert [gate.masks.pairs[index] for index in found.values()] == wanted
    one_by_one = masks.compose(wanted)
    assert all(
        torch.equal(gate.masks[pair][site], keep_F)
        for pair in wanted
        for site, keep_F in one_by_one[pair].items()
    )


# ---- backward passes ---------------------------------------------------------------------------------------


def checkpointed(reentrant):
    model = tiny_m2m100().double().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    return model


def gradients(model, batch):
    named = {name: parameter for name, parameter in model.named_parameters() if name != "lm_head.weight"}
    grads = torch.autograd.grad(model(**batch).loss, list(named.values()))
    return dict(zip(named, grads, strict=True))


def test_threads_that_train_get_the_gradients_of_their_own_pairs():
    plain = tiny_m2m100().double().train()
    masks = random_masks(plain)
    batches = [
        {**random_batch(seed=number), "pair_ids": torch.tensor([number % 3] * 4)} for number in range(4)
    ]
    with NeuronGate(plain, masks):
        expected = [gradients(plain, batch) for batch in batches]
    model = checkpointed(False)
    with NeuronGate(model, masks), ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            for found, right in zip(pool.map(lambda b: gradients(model, b), batches), expected, strict=True):
                for name, gradient in found.items():
                    torch.testing.assert_close(gradient, right[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_in_another_thread_finds_the_routes_of_its_forward_passes(reentrant):
    """As on a GPU, where PyTorch runs it in a thread of its own."""
    plain = tiny_m2m100().double().train()
    masks = random_masks(plain)
    batches = [random_batch(seed=1), {**random_batch(seed=2), "pair_ids": torch.tensor([2, 0, 1, 1])}]
    expected = []
    with NeuronGate(plain, masks):
        for batch in batches:
            plain.zero_grad()
            plain(**batch).loss.backward()
            expected.append({name: p.grad.clone() for name, p in plain.named_parameters()})
    model = checkpointed(reentrant)
    with NeuronGate(model, masks), ThreadPoolExecutor(2) as others, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = [model(**batch).loss for batch in batches]
        others.submit(lambda: model(**random_batch(seed=3)).loss).result()
        for loss, right in zip(losses, expected, strict=True):
            model.zero_grad()
            others.submit(loss.backward).result()
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(parameter.grad, right[name], rtol=0, atol=1e-12, msg=name)
