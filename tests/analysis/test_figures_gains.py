from dataclasses import replace

import numpy as np
import pytest

from nspec_hf.analysis import ablate, analyze, gains, stability
from nspec_hf.analysis.figures import gains as figures
from nspec_hf.analysis.figures.registry import draw_all
from nspec_hf.analysis.gain_tables import setting_gains
from tests.helpers.kin import FAMILIES, PAIRS, kin_comparison, kin_masks, kin_scores, kin_stats


@pytest.fixture(scope="module")
def analysis():
    stats = kin_stats()
    return analyze(kin_masks(stats), stats, kin_scores(), FAMILIES, comparison=kin_comparison())


def test_sparsity_and_gain_stand_against_coverage(analysis):
    figure = figures.draw_coverage_sweep(analysis.coverage_sweep, {0.9: 1.0, 0.95: 1.4})
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    wanted = 1 - analysis.coverage_sweep.density[:, :2].mean(axis=1)
    np.testing.assert_allclose(lines["sparsity, encoder"].get_ydata(), wanted)
    assert list(lines["mean gain"].get_ydata()) == [1.0, 1.4]


def test_each_general_share_has_its_line(analysis):
    axes = figures.draw_allocation_sweep(analysis.allocation_sweep).axes[0]
    assert len(axes.lines) == len(analysis.allocation_sweep.generals)


def test_bars_of_gains_wear_the_colour_of_their_verdict(analysis):
    figure = figures.draw_gains(analysis.gains, "specialized", analysis.comparison)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    verdicts = {row.pair: row.verdict for row in analysis.comparison.rows}
    for name, bar in zip(names, axes.patches, strict=True):
        assert bar.get_facecolor()[:3] == pytest.approx(_rgb(figures.VERDICTS[verdicts[name]]))
        assert bar.get_width() == pytest.approx(analysis.gains.change[0, analysis.gains.pairs.index(name)])


def test_the_verdict_shown_is_that_of_the_metric_whose_gains_are_drawn(analysis):
    rows = analysis.comparison.rows
    other = tuple(replace(row, metric="chrf++", verdict="worse") for row in rows)
    both = replace(analysis.comparison, rows=(*rows, *other))
    for found, wanted in ((analysis.gains, rows), (replace(analysis.gains, metric="chrf++"), other)):
        axes = figures.draw_gains(found, "specialized", both).axes[0]
        colours = {row.pair: _rgb(figures.VERDICTS[row.verdict]) for row in wanted}
        for label, bar in zip(axes.get_yticklabels(), axes.patches, strict=True):
            assert bar.get_facecolor()[:3] == pytest.approx(colours[label.get_text()])
    assert axes.get_xlabel().startswith("chrf++: ")


def test_a_verdict_that_rests_on_ties_is_not_drawn_as_one(analysis):
    first, *rest = analysis.comparison.rows
    doubted = replace(first, verdict="worse", p_value=0.001, p_with_ties=1.0, differing=1)
    found = replace(analysis.comparison, rows=(doubted, *rest))
    axes = figures.draw_gains(analysis.gains, "specialized", found).axes[0]
    bars = {t.get_text(): bar for t, bar in zip(axes.get_yticklabels(), axes.patches, strict=True)}
    assert bars[first.pair].get_facecolor()[:3] == pytest.approx(_rgb(figures.VERDICTS["not significant"]))


def test_gains_against_a_setting_have_a_line_a_group_and_one_of_all():
    baseline = {"en-de": 10.0, "de-en": 20.0, "de-fr": 2.0}
    scores = {k: {pair: value + 10 * k for pair, value in baseline.items()} for k in (0.5, 0.9)}
    axes = figures.draw_setting_gains(setting_gains("coverage k", scores, baseline)).axes[0]
    labels = [line.get_label() for line in axes.lines[:-1]]
    assert labels == ["one-to-many (1)", "many-to-one (1)", "zero-shot (1)", "all (3)"]
    assert all(list(line.get_ydata()) == pytest.approx([5.0, 9.0]) for line in axes.lines[:-1])


def test_groups_and_zero_shot_and_ablation_and_stability_are_drawn():
    scores = kin_scores()
    scores = {name: {**own, "de-fr": 5.0, "fr-de": 6.0} for name, own in scores.items()}
    scores["specialized"]["de-fr"] = 7.0
    found = gains(scores, "baseline")
    bars = figures.draw_groups(found).axes[0].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], found.by_group().mean[0])
    labels = figures.draw_zero_shot(found, "specialized").axes[0].get_legend_handles_labels()[1]
    assert labels == ["better (1)", "not better (1)"]
    lower = gains({**scores, "baseline": {**scores["baseline"], "fr-de": 9.0}}, "baseline", metric="ter")
    labels = figures.draw_zero_shot(lower, "specialized").axes[0].get_legend_handles_labels()[1]
    assert labels == ["better (1)", "not better (1)"]
    shown = figures.draw_zero_shot(lower, "specialized").axes[0].lines[0]
    assert (shown.get_xdata().tolist(), shown.get_ydata().tolist()) == ([9.0], [6.0])
    del scores["specialized"]["fr-de"]  # a pair without a score is neither
    labels = figures.draw_zero_shot(gains(scores, "baseline"), "specialized").axes[0]
    assert labels.get_legend_handles_labels()[1] == ["better (1)", "not better (0)"]
    masks = kin_masks()
    erased = ablate(masks, lambda given: {p: given.density(p) for p in PAIRS}, of=["en-de"])
    panels = figures.draw_ablation(erased).axes
    heights = [[bar.get_height() for bar in axes.patches] for axes in panels]
    np.testing.assert_allclose(heights, erased.change[1:])
    assert ["general" in panels[0].get_title(), "of en-de" in panels[2].get_title()] == [True, True]
    stable = stability({"a": kin_stats(seed=0), "b": kin_stats(seed=1)})
    assert figures.draw_stability(stable).axes[0].images


def test_numbers_on_dark_cells_are_white_whatever_the_range_of_the_colours():
    stable = stability({"a": kin_stats(seed=0), "b": kin_stats(seed=1), "c": kin_stats(seed=0)})
    axes = figures.draw_stability(stable).axes[0]
    inks = {text.get_position(): text.get_color() for text in axes.texts}
    # a and c are the same recording, the lightest cell; a and b are less alike, the darkest.
    assert (inks[0, 2], inks[0, 1], inks[1, 1]) == ("black", "white", "black")


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All that an analysis may hold, and the files of its figures."""
    masks, stats, scores = kin_masks(), kin_stats(), kin_scores()
    probed = [
        ablate(masks, lambda given: {p: given.density(p) for p in PAIRS}),
        stability({"100": stats, "all": kin_stats(seed=1)}),
        setting_gains("share ρ, without training", {0.9: scores["specialized"]}, scores["baseline"]),
    ]
    given = {"by_setting": {"coverage k": {0.8: scores["specialized"]}}, "probed": probed, "metric": "bleu"}
    found = analyze(masks, stats, scores, FAMILIES, comparison=kin_comparison(), **given)
    return found, draw_all(found, tmp_path_factory.mktemp("figures"))


def test_what_a_model_was_asked_is_drawn_and_written_too(everything, tmp_path):
    found, paths = everything
    asked = {"ablation", "stability", "gains_against_coverage_k", "gains_against_share_without_training"}
    assert asked <= {path.stem for path in paths}
    assert asked <= {path.stem for path in found.save(tmp_path)}
    assert found.gains.metric == "bleu"


def test_everything_that_an_analysis_holds_is_drawn(everything):
    _, paths = everything
    stems = {path.stem for path in paths}
    wanted = {
        "overlap_layers",
        "progression",
        "sparsity",
        "ownership",
        "specific",
        "coverage_sweep",
        "allocation_sweep",
    }
    wanted |= {
        "overlap_decoder_0",
        "tree_decoder_0",
        "importance_decoder_1",
        "gains_specialized",
        "gains_by_group",
    }
    assert wanted <= stems
    assert {path.suffix for path in paths} == {".png", ".svg"}
    assert all(path.stat().st_size > 1000 for path in paths)


def _rgb(colour):
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
