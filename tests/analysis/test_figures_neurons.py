import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from nspec_hf.analysis import analyze
from nspec_hf.analysis.figures import neurons as figures
from nspec_hf.analysis.figures.style import save_figure, side_panels
from nspec_hf.analysis.general_specific import MScore, ownership
from nspec_hf.analysis.language_families import family_colours
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import site_from_name
from tests.helpers.fresh_python import run_python
from tests.helpers.kin import FAMILIES, kin_masks, kin_stats


@pytest.fixture(scope="module")
def analysis():
    stats = kin_stats()
    return analyze(kin_masks(stats), stats, families=FAMILIES)


def texts(figure: Figure) -> set[str]:
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text"))}


def test_the_heat_map_shows_the_overlaps_with_families_together_and_a_grey_diagonal(analysis):
    figure = figures.draw_overlap(analysis.progression, 2, FAMILIES)
    image = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    languages = analysis.progression.languages
    order = [languages.index(code) for code in ("de", "nl", "sv", "es", "fr", "it")]
    wanted = analysis.progression.iou[2][np.ix_(order, order)]
    off = ~np.eye(6, dtype=bool)
    np.testing.assert_allclose(image[off], wanted[off])
    assert np.isnan(image[~off]).all()
    assert {"Germanic", "Romance", "Overlap of neurons, decoder 0"} <= texts(figure)


def test_pairs_can_be_drawn_too(analysis):
    figure = figures.draw_overlap(analysis.overlap, 0, FAMILIES)
    assert set(analysis.pairs) <= texts(figure)


def test_all_layers_share_one_scale(analysis):
    figure = figures.draw_overlap_layers(analysis.progression, FAMILIES)
    scales = {axes.images[0].get_clim() for axes in figure.axes if axes.images}
    assert len(scales) == 1
    assert {"encoder 0", "encoder 1", "decoder 0", "decoder 1"} <= texts(figure)


def test_the_progression_shows_both_means_and_the_p_value(analysis):
    figure = figures.draw_progression(analysis.progression, analysis.agreement)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    np.testing.assert_allclose(lines["same family"], analysis.agreement.within[2:])
    np.testing.assert_allclose(lines["different families"], analysis.agreement.across[2:])
    assert "p = 0.100" in texts(figure)


def test_languages_too_few_to_compare_families_are_drawn_one_by_one_with_their_mean():
    stats = kin_stats()
    few = analyze(kin_masks(stats), stats, families={"de": "Germanic", "fr": "Romance"})
    panel = figures.draw_progression(few.progression, few.agreement).axes[1]
    lines = {line.get_label(): line.get_ydata() for line in panel.lines}
    # Six languages, fifteen couples a layer: as many as make a distribution.
    couples = [few.progression.iou[number][np.triu_indices(6, k=1)] for number in (2, 3)]
    np.testing.assert_allclose(lines["mean"], [each.mean() for each in couples])
    assert not {"same family", "different families"} & set(lines)
    assert len(panel.collections) == 2

    four = few.progression.without(["nl", "sv"])
    panel = figures.draw_progression(four, few.agreement).axes[1]
    points = [line.get_ydata() for line in panel.lines if line.get_marker() == "."]
    np.testing.assert_allclose(
        np.sort(points), np.sort([four.iou[number][np.triu_indices(4, k=1)] for number in (2, 3)])
    )
    assert not panel.collections


def test_sparsity_is_drawn_by_direction(analysis):
    figure = figures.draw_sparsity(analysis.density, "en")
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    rows = [i for i, pair in enumerate(analysis.pairs) if pair.source == "en"]
    np.testing.assert_allclose(lines["one-to-many (6)"], 1 - analysis.density.density[:2, rows].mean(axis=1))


def apart(texts) -> bool:
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.x0)
    return len(boxes) > 1 and all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_what_is_said_of_24_layers_does_not_lie_on_each_other():
    sites = {f"model.{side}.layers.{n}.fc1": 24 for side in ("encoder", "decoder") for n in range(24)}
    pairs = [pair for code in FAMILIES for pair in (f"en-{code}", f"{code}-en")]
    found = analyze(NeuronMasks.random(sites, pairs, 0.5), families=FAMILIES)
    figure = figures.draw_progression(found.progression, found.agreement)
    figure.draw_without_rendering()
    for axes in figure.axes:
        p_values = [text for text in axes.texts if text.get_text().startswith("p ")]
        assert len(p_values) == 24
        assert apart(p_values)
        assert apart(axes.get_xticklabels())


def test_the_legend_of_a_model_without_an_encoder_is_not_cut_off():
    sites = {f"model.layers.{n}.mlp.gate_proj": 24 for n in range(2)}
    figure = figures.draw_ownership(ownership(NeuronMasks.random(sites, ["en-de", "en-fr", "en-cs"], 0.5)))
    figure.draw_without_rendering()
    box, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert box.x0 <= legend.x0 < legend.x1 <= box.x1


def test_where_all_have_the_same_neurons_all_maps_have_one_colour_and_the_tree_is_drawn():
    sites = {f"model.decoder.layers.{n}.fc1": 8 for n in range(2)}
    keep = {name: torch.arange(8).lt(5).expand(4, 8) for name in sites}
    found = analyze(NeuronMasks(["en-de", "en-nl", "en-es", "en-fr"], keep), families=FAMILIES)
    figure = figures.draw_overlap_layers(found.progression, FAMILIES)
    figure.draw_without_rendering()
    assert {axes.images[0].get_clim() for axes in figure.axes if axes.images} == {(0.0, 1.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.draw_tree(found.trees["model.decoder.layers.0.fc1"], FAMILIES)


def test_the_tree_has_its_leaves_in_order(analysis):
    tree = analysis.trees["model.decoder.layers.0.fc1"]
    figure = figures.draw_tree(tree, FAMILIES)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == tree.leaves


def test_names_of_many_sites_do_not_lie_on_each_other(analysis):
    parts = [f"{which}_attn.{name}_proj" for which in ("self", "encoder") for name in "qkv"]
    names = [f"model.decoder.layers.{layer}.{part}" for layer in range(4) for part in [*parts, "fc2"]]
    sites = [site_from_name(name, 4) for name in names]
    modules = MScore(sites=tuple(sites), score=np.linspace(0.1, 0.2, len(sites)))
    figure = figures.draw_specific(analysis.layer_score, modules)
    figure.draw_without_rendering()
    names = [label.get_window_extent() for label in figure.axes[1].get_yticklabels()]
    assert len(names) == len(sites)
    assert all(above.y0 > below.y1 for above, below in pairwise(names))
    figure, panels = side_panels(sites, "share")
    figure.draw_without_rendering()
    names = [label.get_window_extent() for label in panels[0][0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(names))


def test_specific_neurons_importance_and_owners_are_drawn(analysis):
    image = figures.draw_specific(analysis.layer_score, analysis.module_score).axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), analysis.layer_score.score.T)
    curve = analysis.curves[0]
    lines = figures.draw_importance(curve, ["en-fr"]).axes[0].lines
    np.testing.assert_allclose(lines[0].get_ydata(), curve.importance[curve.pairs.index("en-fr")])
    bars = figures.draw_ownership(analysis.ownership).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == pytest.approx(2)


def test_thirty_languages_keep_a_readable_size():
    codes = [a + b for a in "abcdef" for b in "vwxyz"]
    masks = NeuronMasks.random({"model.decoder.layers.0.fc1": 64}, [f"en-{code}" for code in codes], 0.5)
    analysis = analyze(masks, families=dict.fromkeys(codes[:15], "one"))
    figure = figures.draw_overlap(analysis.progression, 0, analysis.families)
    labels = figure.axes[0].get_xticklabels()
    assert len(labels) == 30
    assert min(label.get_fontsize() for label in labels) >= 7


def test_families_have_different_colours_largest_first():
    colours = family_colours({"a": "small", "b": "large", "c": "large"})
    assert list(colours) == ["large", "small"]
    assert len(set(colours.values())) == 2


def test_a_figure_is_saved_twice_and_equal_figures_are_equal_files(analysis, tmp_path):
    first = save_figure(figures.draw_sparsity(analysis.density), tmp_path / "a", "sparsity")
    assert [path.name for path in first] == ["sparsity.png", "sparsity.svg"]
    assert first[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    second = save_figure(figures.draw_sparsity(analysis.density), tmp_path / "b", "sparsity")
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_drawing_does_not_load_pyplot():
    code = "import sys, nspec_hf.analysis.figures.registry; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert run_python(code).returncode == 0
