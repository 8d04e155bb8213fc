import itertools
import math
import tracemalloc

import numpy as np
import pytest
from scipy.cluster.hierarchy import leaves_list, linkage
from transformers import M2M100Config, M2M100ForConditionalGeneration, set_seed

from nspec_hf.analysis import analyze, language_families, language_tree
from nspec_hf.analysis.language_families import FAMILIES, family_agreement, permutation_test
from nspec_hf.analysis.mask_overlap import Progression
from nspec_hf.core import ConfigError
from nspec_hf.data import LanguageFamilies, LanguageTags, SyntheticConfig, encode_corpus, train_vocabulary
from nspec_hf.demo.demo import demo_experiment
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import site_from_name
from nspec_hf.training import record_corpus, train

LANGUAGES = ("de", "fr", "nl", "es", "sv")
FAMILY = {"de": "Germanic", "nl": "Germanic", "sv": "Germanic", "fr": "Romance", "es": "Romance"}
IOU = np.array(
    [
        [1.0, 0.2, 0.9, 0.3, 0.7],
        [0.2, 1.0, 0.25, 0.8, 0.1],
        [0.9, 0.25, 1.0, 0.15, 0.6],
        [0.3, 0.8, 0.15, 1.0, 0.05],
        [0.7, 0.1, 0.6, 0.05, 1.0],
    ]
)
SITES = tuple(site_from_name(f"model.decoder.layers.{n}.fc1", 8) for n in range(2))


def course(*matrices, languages=LANGUAGES):
    return Progression(sites=SITES[: len(matrices)], languages=languages, iou=np.stack(matrices))


def difference(matrix, labels):
    within, across = [], []
    for i, j in itertools.combinations(range(len(labels)), 2):
        (within if labels[i] == labels[j] else across).append(matrix[i, j])
    return np.mean(within) - np.mean(across)


def test_the_tree_is_scipys_on_a_matrix_made_by_hand():
    tree = language_tree(LANGUAGES, IOU)
    condensed = [1 - IOU[i, j] for i, j in itertools.combinations(range(5), 2)]
    wanted = linkage(condensed, "complete", optimal_ordering=True)
    np.testing.assert_allclose(tree.linkage, wanted)
    assert tree.leaves == [LANGUAGES[i] for i in leaves_list(wanted)]
    # By hand: de+nl at 0.1, fr+es at 0.2, then sv joins at its farthest, 1 − 0.6, and all at 1 − 0.05.
    np.testing.assert_allclose(tree.linkage[:, 2], [0.1, 0.2, 0.4, 0.95])


def test_the_printed_tree_has_a_line_for_each_language_in_leaf_order():
    tree = language_tree(LANGUAGES, IOU)
    lines = tree.to_text().splitlines()
    assert [line.split()[-1] for line in lines] == tree.leaves
    assert lines[0].startswith("┬─")
    assert len([line for line in lines if "└" in line]) == 4


def test_the_cophenetic_correlation_is_that_of_joining_heights_and_distances():
    heights = {(0, 2): 0.1, (1, 3): 0.2, (0, 4): 0.4, (2, 4): 0.4}
    couples = list(itertools.combinations(range(5), 2))
    tree_distances = [heights.get(couple, 0.95) for couple in couples]
    distances = [1 - IOU[couple] for couple in couples]
    wanted = np.corrcoef(tree_distances, distances)[0, 1]
    assert language_tree(LANGUAGES, IOU).cophenetic == pytest.approx(wanted)
    different = [FAMILY[LANGUAGES[i]] != FAMILY[LANGUAGES[j]] for i, j in couples]
    found = family_agreement(course(IOU), FAMILY).tree_correlation[0]
    assert found == pytest.approx(np.corrcoef(tree_distances, different)[0, 1])


def test_languages_without_a_defined_overlap_are_left_out_by_name():
    matrix = IOU.copy()
    matrix[1, 4] = matrix[4, 1] = matrix[1, 3] = matrix[3, 1] = math.nan
    tree = language_tree(LANGUAGES, matrix)
    assert tree.left_out == ("fr",)
    assert tree.languages == ("de", "nl", "es", "sv")


def test_a_tree_of_one_language_is_refused():
    with pytest.raises(ConfigError, match="two languages"):
        language_tree(["de", "nl"], np.full((2, 2), math.nan))


def test_a_few_languages_are_relabeled_in_every_way():
    labels = [FAMILY[code] for code in LANGUAGES]
    relabelings = sorted(set(itertools.permutations(labels)))
    observed = difference(IOU, labels)
    hits = sum(difference(IOU, each) >= observed - 1e-12 for each in relabelings)
    p_value, count, exact = permutation_test(IOU, labels)
    assert (count, exact) == (math.comb(5, 2), True)
    assert p_value == pytest.approx(hits / len(relabelings))


def test_many_languages_are_relabeled_at_random_and_p_is_never_zero():
    generator = np.random.default_rng(0)
    labels = [family for family in "abcdef" for _ in range(5)]
    same = np.array([[a == b for b in labels] for a in labels])
    noise = generator.uniform(0, 0.1, same.shape)
    matrix = np.where(same, 0.8, 0.3) + noise + noise.T
    p_value, count, exact = permutation_test(matrix, labels, limit=999)
    assert (count, exact) == (999, False)
    assert p_value == pytest.approx(1 / 1000)
    unrelated = np.where(same, 0.0, 0.0) + noise + noise.T
    assert permutation_test(unrelated, labels, limit=999)[0] > 0.01


def test_relabelings_are_compared_some_at_a_time_and_all_of_them(monkeypatch):
    drawn = np.random.default_rng(5).random((9, 9))
    matrix, labels = drawn + drawn.T, list("aaabbbccc")
    at_once = permutation_test(matrix, labels), permutation_test(matrix, labels, limit=100)
    tracemalloc.start()
    permutation_test(np.random.default_rng(6).random((40, 40)), [f"{i % 5}" for i in range(40)])
    assert tracemalloc.get_traced_memory()[1] < 60e6  # all at once, 780 couples 10,000 times, took 195e6
    tracemalloc.stop()
    monkeypatch.setattr(language_families, "_AT_ONCE", 100)  # three of the couples of nine languages
    assert (permutation_test(matrix, labels), permutation_test(matrix, labels, limit=100)) == at_once


def test_drawn_relabelings_agree_with_all_of_them():
    generator = np.random.default_rng(4)
    noise = generator.uniform(size=(8, 8))
    matrix, labels = noise + noise.T, list("aaabbbcc")
    exact, count, complete = permutation_test(matrix, labels)
    drawn, _, all_of_them = permutation_test(matrix, labels, limit=500)
    assert complete
    assert count == 560
    assert not all_of_them
    assert drawn == pytest.approx(exact, abs=0.08)


def test_agreement_holds_means_within_and_across_at_every_site():
    other = IOU[::-1, ::-1].copy()
    result = family_agreement(course(IOU, other), FAMILY)
    for number, matrix in enumerate((IOU, other)):
        couples = list(itertools.combinations(range(5), 2))
        same = [FAMILY[LANGUAGES[i]] == FAMILY[LANGUAGES[j]] for i, j in couples]
        found = [matrix[couple] for couple in couples]
        assert result.within[number] == pytest.approx(
            np.mean([v for v, s in zip(found, same, strict=True) if s])
        )
        assert result.across[number] == pytest.approx(
            np.mean([v for v, s in zip(found, same, strict=True) if not s])
        )
    assert result.within[0] > result.across[0]
    assert result.p_value[0] == pytest.approx(0.1)


def test_languages_without_a_family_take_no_part():
    known = {code: family for code, family in FAMILY.items() if code != "sv"}
    result = family_agreement(course(IOU), known)
    assert result.within[0] == pytest.approx((0.9 + 0.8) / 2)
    assert set(result.families) == {"de", "nl", "fr", "es"}


@pytest.mark.parametrize("family", ["all alone", "one family", "nobody"])
def test_where_families_cannot_be_compared_nothing_is_claimed(family):
    families = {
        "all alone": {code: code for code in LANGUAGES},
        "one family": dict.fromkeys(LANGUAGES, "x"),
        "nobody": {},
    }[family]
    result = family_agreement(course(IOU), families)
    assert np.isnan([result.p_value[0], result.within[0], result.across[0]]).all()


def test_the_families_of_the_papers_languages_are_known():
    assert {FAMILIES[code] for code in "de nl sv da af lb".split()} == {"Germanic"}
    assert {FAMILIES[code] for code in "ar he ha mt ti am".split()} == {"Afro-Asiatic"}
    assert FAMILIES["kn"] != FAMILIES["hi"]


@pytest.fixture(scope="module")
def families_of_the_demo(tmp_path_factory):
    """An analysis of a model that was trained on the demo's languages for a tenth of the demo's updates."""
    folder = tmp_path_factory.mktemp("families")
    world = LanguageFamilies(SyntheticConfig())
    config = demo_experiment(world, folder, updates=100)
    for split, sentences in (("train", 1000), ("valid", 100)):
        world.write(config.data.corpus.path, split, sentences)
    texts, validation = config.data.read("train"), config.data.read("valid")
    sentences = {text.pair.source: text.sources for text in texts}.values()
    tokenizer = train_vocabulary(itertools.chain(*sentences), config.data.languages, config.vocabulary)
    tags, ids = LanguageTags(tokenizer), {"decoder_start_token_id": tokenizer.eos_token_id}
    ids |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    set_seed(1)
    model = M2M100ForConditionalGeneration(M2M100Config(vocab_size=len(tokenizer), **ids, **config.model))
    train(model, tokenizer, encode_corpus(texts, tags), config.pretrain, folder / "base")
    stats = record_corpus(model, tokenizer, encode_corpus(validation, tags), config.record)
    masks = NeuronMasks.from_config(stats, config.select)
    return analyze(masks, stats, families=config.data.families)


@pytest.mark.slow
def test_neurons_of_a_model_trained_on_synthetic_families_are_shared_within_them(families_of_the_demo):
    found = families_of_the_demo.agreement
    first = [(site.side, site.layer) for site in found.sites].index(("decoder", 0))
    assert found.within[first] > found.across[first] + 0.02
    # All 9! / (3!)³ ways to deal three names to nine languages; the six that keep the families are as good.
    assert (found.exact[first], found.relabelings[first]) == (True, 1680)
    assert found.p_value[first] == pytest.approx(6 / 1680)
    assert found.tree_correlation[first] > 0.3


@pytest.mark.slow
def test_families_that_were_dealt_out_at_random_share_no_neurons(families_of_the_demo):
    course, known = families_of_the_demo.progression, families_of_the_demo.families
    # Each made-up family has one language of every true one.
    mixed = {code: str(number % 3) for number, code in enumerate(sorted(known))}
    assert all(len({known[c] for c in mixed if mixed[c] == name}) == 3 for name in "012")
    assert (family_agreement(course, mixed).p_value > 0.3).all()


@pytest.mark.slow
def test_the_printed_tree_of_synthetic_languages_names_each_once(families_of_the_demo):
    text = families_of_the_demo.trees["model.decoder.layers.0.fc1"].to_text()
    assert sorted(line.split()[-1] for line in text.splitlines()) == sorted(families_of_the_demo.families)
