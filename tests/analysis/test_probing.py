"""What is asked of a model: scores under given masks, gains of untrained masks, recordings of more text."""

import numpy as np
import pytest
import torch

from nspec_hf import ActivationStats, NeuronGate, NeuronMasks
from nspec_hf.analysis import masked_gains, recordings, scorer, stability
from nspec_hf.core import ConfigError
from nspec_hf.data import LanguageTags, encode_corpus
from nspec_hf.evaluation import TranslateConfig
from nspec_hf.recording import RecordConfig
from nspec_hf.training import record_corpus
from tests.helpers.gated import zeroed_copy
from tests.helpers.tiny_text import PAIRS, corpus, masks, model, texts, tokenizer

GREEDY = TranslateConfig(num_beams=1, progress=False, length_ratio=1.0, length_extra=4)
pytestmark = pytest.mark.filterwarnings("ignore:.*reached their longest length")


@pytest.fixture(scope="module")
def network():
    return model(seed=4)


def counts_of(stats):
    return torch.cat([stats.counts[site.name] for site in stats.sites], dim=1)


def recorded_alone(network, rows_by_pair):
    """Statistics of some sentences, encoded and recorded by themselves."""
    chosen = [
        type(text)(text.pair, [text.sources[i] for i in rows], [text.targets[i] for i in rows])
        for text, rows in zip(texts(24), rows_by_pair, strict=True)
    ]
    return record_corpus(network, tokenizer(), encode_corpus(chosen, LanguageTags(tokenizer())))


def test_the_score_of_masks_is_that_of_a_copy_with_zeroed_neurons(network):
    own = masks(network, density=0.3)
    found = scorer(network, LanguageTags(tokenizer()), texts(6), "chrf", GREEDY)(own)
    assert list(found) == PAIRS
    for text in texts(6):
        alone = scorer(
            zeroed_copy(network, own, text.pair), LanguageTags(tokenizer()), [text], "chrf", GREEDY
        )(None)
        assert found[text.pair] == alone[text.pair]
    assert len(set(found.values())) > 1


def test_other_masks_score_otherwise_and_the_model_is_left_as_it_was(network):
    ask = scorer(network, LanguageTags(tokenizer()), texts(8), "chrf", GREEDY)
    dense, sparse = ask(None), ask(masks(network, density=0.05))
    assert dense != sparse
    assert ask(None) == dense


def test_a_gate_that_is_on_the_model_is_off_meanwhile(network):
    ask = scorer(network, LanguageTags(tokenizer()), texts(8), "chrf", GREEDY)
    dense, sparse = ask(None), ask(masks(network, density=0.05))
    with NeuronGate(network, masks(network, density=0.3)) as gate:
        assert (ask(None), ask(masks(network, density=0.05))) == (dense, sparse)
        assert gate.attached


def test_more_text_contains_the_counts_of_less(network):
    found = recordings(network, LanguageTags(tokenizer()), corpus(24), sizes=(16, 4, 500), seeds=())
    assert list(found) == ["4", "16", "all"]
    for name, rows in (("4", range(4)), ("16", range(16)), ("all", range(24))):
        wanted = recorded_alone(network, [list(rows)] * len(PAIRS))
        assert torch.equal(counts_of(found[name]), counts_of(wanted))
        assert found[name].sentences(PAIRS[0]) == len(rows)
    assert not torch.equal(counts_of(found["4"]), counts_of(found["16"]))


def test_samples_are_drawn_by_seed_without_repetition(network):
    found = recordings(network, LanguageTags(tokenizer()), corpus(24), sizes=(6,), seeds=(1, 2))
    again = recordings(network, LanguageTags(tokenizer()), corpus(24), sizes=(6,), seeds=(2,))
    assert list(found) == ["6", "all", "6, seed 1", "6, seed 2"]
    draw = np.random.default_rng(1)
    rows = [sorted(draw.choice(24, 6, replace=False).tolist()) for _ in PAIRS]
    assert torch.equal(counts_of(found["6, seed 1"]), counts_of(recorded_alone(network, rows)))
    assert torch.equal(counts_of(found["6, seed 2"]), counts_of(again["6, seed 2"]))
    assert not torch.equal(counts_of(found["6, seed 1"]), counts_of(found["6, seed 2"]))
    assert stability(found, 0.8).iou.shape[:2] == (4, 4)


def test_too_little_text_for_any_size_is_refused(network):
    with pytest.raises(ConfigError, match="below the 24 sentences"):
        recordings(network, LanguageTags(tokenizer()), corpus(24), sizes=(24, 100))


def test_gains_of_untrained_masks_are_over_all_neurons():
    sites = {"model.encoder.layers.0.fc1": 12, "model.decoder.layers.0.fc1": 12}
    stats = ActivationStats(["en-de", "de-en"], sites, RecordConfig(te=True))
    generator = torch.Generator().manual_seed(0)
    for name in sites:
        stats.counts[name] += torch.randint(1, 50, (2, 12), generator=generator)
        stats.sums["te"][name] += torch.rand(2, 12, generator=generator).double()
    stats.sentence_counts += 5
    for side in stats.token_counts:
        stats.token_counts[side] += 10

    def kept(given):
        return {pair: 12.0 if given is None else float(given.density(pair)) * 12 for pair in stats.pairs}

    by_coverage, by_general = masked_gains(kept, stats, (0.9, 0.5), (0.25, 0.75))
    assert by_coverage.values == (0.5, 0.9)
    for row, k in enumerate((0.5, 0.9)):
        mean = NeuronMasks.from_coverage(stats, k).density() * 12 - 12
        assert by_coverage.mean[row, -1] == pytest.approx(float(mean))
    for row, general in enumerate((0.25, 0.75)):
        mean = NeuronMasks.from_importance(stats, "te", general, 0.7).density() * 12 - 12
        assert by_general.mean[row, -1] == pytest.approx(float(mean))
    assert by_general.groups == ("one-to-many", "many-to-one", "all")


def test_importance_that_was_not_recorded_is_asked_for():
    stats = ActivationStats(["en-de"], {"model.encoder.layers.0.fc1": 4}, RecordConfig())
    with pytest.raises(ConfigError, match="te=True"):
        masked_gains(lambda given: {"en-de": 1.0}, stats, generals=(0.9,))
