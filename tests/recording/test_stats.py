"""Statistics add up, are kept whole or refused, and give the importance of the papers."""

import json

import pytest
import torch
from safetensors import safe_open

from nspec_hf.core import ConfigError, EmptyPairError, Pair, SiteMismatchError, UnknownPairError
from nspec_hf.recording import ActivationStats, RecordConfig

FC1 = "model.encoder.layers.0.fc1"
CROSS_K = "model.decoder.layers.0.encoder_attn.k_proj"
SITES = {FC1: 6, "model.decoder.layers.0.fc1": 5, CROSS_K: 4}


def made_up(seed=0, pairs=("en-de", "zh-CN->en"), **config):
    generator = torch.Generator().manual_seed(seed)
    stats = ActivationStats(
        pairs, SITES, RecordConfig(av=True, te=True, **config), base={"id": "me/base", "fingerprint": "ab"}
    )
    for name, tensor in stats.tensors().items():
        drawn = torch.randint(1, 99, tensor.shape, generator=generator)
        tensor.copy_(drawn / 7 if name.startswith(("av", "te")) else drawn)
    return stats


def bare(**config):
    """Statistics of the same base that lack a score, say."""
    return ActivationStats(made_up().pairs, SITES, RecordConfig(**config), made_up().base)


def equal(left, right):
    ours, theirs = left.tensors(), right.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_counts_are_read_by_pair_and_site():
    stats = made_up()
    assert stats.pairs == [Pair("en", "de"), Pair("zh-CN", "en")]
    assert torch.equal(stats["zh-CN->en"][FC1], stats.counts[FC1][1])
    assert stats["en-de"][FC1].dtype == torch.int64
    assert {name: len(counts) for name, counts in stats["en-de"].items()} == SITES
    with pytest.raises(UnknownPairError, match="zh-CN->en"):
        stats["en-fr"]


@pytest.mark.parametrize("site", SITES)
def test_a_pair_for_which_one_neuron_fired_once_is_not_empty_and_one_without_is(site):
    for neuron in range(SITES[site]):
        stats = made_up()
        for counts_PF in stats.counts.values():
            counts_PF[1] = 0
        with pytest.raises(EmptyPairError, match="no neuron ever fired for zh-CN->en:"):
            stats.refuse_empty()
        stats.counts[site][1, neuron] = 1
        stats.refuse_empty()


def test_tokens_are_told_by_side_and_together():
    stats = made_up()
    sides = [stats.tokens("en-de", side) for side in ("encoder", "decoder")]
    assert sides == [int(stats.token_counts[side][0]) for side in ("encoder", "decoder")]
    assert stats.tokens("en-de") == sum(sides)
    assert stats.sentences("en-de") == int(stats.sentence_counts[0])
    with pytest.raises(ConfigError, match="encoder"):
        stats.tokens("en-de", "middle")


def test_importance_is_the_mean_over_the_tokens_that_pass_through_the_site():
    stats = made_up()
    for score in ("av", "te"):
        theta = stats.importance(score)
        for pair in range(2):
            encoder, decoder = (int(stats.token_counts[side][pair]) for side in ("encoder", "decoder"))
            assert torch.equal(theta[FC1][pair], stats.sums[score][FC1][pair] / encoder)
            # k of cross-attention lies in the decoder, but runs over the encoder's tokens.
            assert torch.equal(theta[CROSS_K][pair], stats.sums[score][CROSS_K][pair] / encoder)
            name = "model.decoder.layers.0.fc1"
            assert torch.equal(theta[name][pair], stats.sums[score][name][pair] / decoder)


def test_importance_that_was_not_recorded_is_refused():
    stats = ActivationStats(["en-de"], SITES, RecordConfig(av=True))
    with pytest.raises(ConfigError, match=r"te.*recorded: av"):
        stats.importance("te")


def test_importance_of_a_pair_without_sentences_is_refused_by_name():
    stats = made_up()
    stats.sentence_counts[1] = 0
    with pytest.raises(EmptyPairError, match="zh-CN->en"):
        stats.importance("av")


def test_merging_adds_every_number_in_place():
    left, right = made_up(1), made_up(2)
    expected = {name: tensor + right.tensors()[name] for name, tensor in left.tensors().items()}
    assert left.merge(right) is left
    assert all(torch.equal(tensor, expected[name]) for name, tensor in left.tensors().items())
    assert equal(right, made_up(2))


def test_no_label_smoothing_is_none_or_zero():
    stats = made_up().merge(made_up(label_smoothing=0.0))
    assert torch.equal(stats.sums["te"][FC1], 2 * made_up().sums["te"][FC1])


def test_merging_with_itself_is_twice():
    stats = made_up()
    stats.merge(stats)
    assert torch.equal(stats.counts[FC1], 2 * made_up().counts[FC1])


@pytest.mark.parametrize(
    ("other", "error", "reason"),
    [
        (lambda: made_up(pairs=("zh-CN->en", "en-de")), ConfigError, "pairs"),
        (lambda: made_up(count="sentences"), ConfigError, "sentences"),
        (lambda: made_up(label_smoothing=0.1), ConfigError, r"label_smoothing=None and label_smoothing=0\.1"),
        (lambda: made_up(active_on="gate"), ConfigError, "active_on='product' and active_on='gate'"),
        (lambda: bare(te=True), ConfigError, "av=True and av=False"),
        (lambda: bare(av=True), ConfigError, "te=True and te=False"),
        (lambda: ActivationStats(["en-de", "zh-CN->en"], {FC1: 6}), SiteMismatchError, "k_proj"),
    ],
)
def test_statistics_that_mean_something_else_are_not_added(other, error, reason):
    stats = made_up()
    with pytest.raises(error, match=reason):
        stats.merge(other())
    assert equal(stats, made_up())


def test_statistics_of_another_base_are_not_added():
    other = made_up()
    other.base["fingerprint"] = "cd"
    with pytest.raises(ConfigError, match=r"ab.*cd"):
        made_up().merge(other)


def test_a_subset_holds_those_pairs_in_the_order_asked_for():
    stats = made_up(pairs=("en-de", "de-en", "en-fr"))
    chosen = stats.subset(["en-fr", "en-de"])
    assert chosen.pairs == ["en-fr", "en-de"]
    whole = stats.tensors()
    assert all(torch.equal(tensor, whole[name][[2, 0]]) for name, tensor in chosen.tensors().items())
    chosen.counts[FC1] += 1
    assert equal(stats, made_up(pairs=("en-de", "de-en", "en-fr")))


def test_merged_statistics_say_of_each_text_what_it_was_and_of_one_text_what_it_was(tmp_path):
    first, again, second, nameless = (made_up() for _ in range(4))
    first.corpus, again.corpus, second.corpus = {"name": "a"}, {"name": "a"}, {"name": "b", "files": ["x"]}
    assert first.merge(again).merge(nameless).corpus == {"name": "a"}
    first.merge(second)
    first.save(tmp_path / "stats")
    back = ActivationStats.load(tmp_path / "stats")
    assert back.merge(second).corpus == {"merged": [{"name": "a"}, {"name": "b", "files": ["x"]}]}
    assert nameless.merge(back).corpus == back.corpus
    assert made_up().merge(second).corpus == second.corpus == {"name": "b", "files": ["x"]}


def test_what_is_saved_is_read_back_exactly(tmp_path):
    stats = made_up(count="sentences", max_sentences=7)
    stats.corpus = {"name": "bible ünïcode", "lines": 3}
    stats.save(tmp_path / "new folder" / "stats.safetensors")
    back = ActivationStats.load(tmp_path / "new folder" / "stats.safetensors")
    assert equal(stats, back)
    assert (back.pairs, back.sites, back.config) == (stats.pairs, stats.sites, stats.config)
    assert (back.base, back.corpus) == (stats.base, stats.corpus)
    assert all(isinstance(pair, Pair) for pair in back.pairs)


def test_equal_statistics_give_equal_files_that_other_programs_can_read(tmp_path):
    for name in ("a", "b"):
        made_up().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", framework="pt") as file:
        assert torch.equal(file.get_tensor(f"counts/{FC1}"), made_up().counts[FC1])
        assert json.loads(file.metadata()["content"])["pairs"] == ["en-de", "zh-CN->en"]


def test_statistics_need_pairs_and_sites_each_once():
    for pairs, sites in (([], SITES), (["en-de"], {}), (["en-de", "en-de"], SITES)):
        with pytest.raises(ConfigError):
            ActivationStats(pairs, sites)


def test_statistics_that_were_made_in_inference_mode_are_added_to_outside(tmp_path):
    with torch.inference_mode():
        inside = made_up(1)
        inside.save(tmp_path / "stats.safetensors")
        loaded = ActivationStats.load(tmp_path / "stats.safetensors").subset(["en-de", "zh-CN->en"])
    expected = made_up(1).merge(made_up(2))
    assert equal(inside.merge(made_up(2)), expected)
    assert equal(loaded.merge(made_up(2)), expected)
