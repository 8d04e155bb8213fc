import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch

from nspec_hf.analysis import analyze, write_report
from nspec_hf.analysis.report.page import report_html
from nspec_hf.core import english_centric, unpack
from nspec_hf.masks import NeuronMasks
from tests.helpers.browser import Browser, find_chromium
from tests.helpers.kin import FAMILIES, kin_comparison, kin_masks, kin_scores, kin_stats


@pytest.fixture(scope="module")
def full():
    stats = kin_stats()
    return analyze(
        kin_masks(stats), stats, kin_scores(), FAMILIES, comparison=kin_comparison(), model_width=16
    )


def data_of(page: str) -> dict:
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S).group(1)
    return json.loads(text, parse_constant=pytest.fail)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [
            value for name, value in attrs if name in ("src", "href", "action", "srcset") and value
        ]


def test_the_page_holds_the_masks_bit_for_bit(full):
    data = data_of(report_html(full))
    for site in data["sites"]:
        width = site["width"]
        packed = torch.frombuffer(bytearray(base64.b64decode(site["bits"])), dtype=torch.uint8)
        keep = unpack(packed.reshape(len(data["pairs"]), -1), width)
        assert torch.equal(keep, full.masks.keep[site["name"]])


def test_the_page_links_to_nothing_outside(full):
    page = report_html(full)
    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith("#") or link == "data:," for link in links.found)
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_the_page_says_how_every_number_was_made(full):
    page = report_html(full)
    for text in (
        full.masks.fingerprint(),
        "coverage: 0.8",
        "optimal leaf order",
        "seed 12345",
        "nrefs:1|tok:13a",
    ):
        assert text in page


def test_text_from_outside_cannot_become_markup(full):
    page = report_html(full, title="</title><script>alert(1)</script>")
    assert "<script>alert" not in page
    assert "tok:13a|<b>" not in page
    assert "tok:13a|&lt;b&gt;" in page


def test_masks_alone_make_a_page_without_a_table_of_gains():
    page = report_html(analyze(kin_masks(), families=FAMILIES))
    assert "gain-table" not in page.split("<script")[0]
    assert "no statistics were given" in page


def test_scores_without_a_test_are_shown_with_a_warning():
    page = report_html(analyze(kin_masks(), scores=kin_scores(), families=FAMILIES))
    assert "small gains may be chance" in page
    assert "Verdict" not in page.split("<script")[0]


@pytest.mark.parametrize(("metric", "best"), [("ter", "low"), ("chrf", "high")])
def test_the_best_system_is_that_of_the_smallest_score_where_smaller_is_better(metric, best):
    base = kin_scores()["baseline"]
    scores = {name: {pair: value + by for pair, value in base.items()} for name, by in
              (("base", 0), ("low", -2.0), ("high", 2.0))}  # fmt: skip
    page = report_html(analyze(kin_masks(), scores=scores, families=FAMILIES, metric=metric))
    assert f"mean gain of {best}" in page


def test_scores_that_are_no_numbers_make_no_gain():
    scores = kin_scores()
    scores["specialized"] = dict.fromkeys(scores["specialized"], math.nan)
    page = report_html(analyze(kin_masks(), scores=scores, families=FAMILIES))
    assert "mean gain of" not in page


def test_verdicts_that_rest_on_ties_are_named_above_the_table(full):
    rows = full.comparison.rows
    doubted = replace(rows[0], verdict="worse", p_value=0.001, p_with_ties=1.0, differing=1)
    found = replace(full, comparison=replace(full.comparison, rows=(doubted, *rows[1:])))
    assert "Do not trust the verdict where few sentences differ" in report_html(found)
    assert "Do not trust" not in report_html(full)


def test_bars_of_gains_are_scaled_for_each_metric_by_itself(full):
    rows = full.comparison.rows
    other = [replace(row, metric="chrf++", system=row.baseline + 10 * row.delta) for row in rows]
    both = replace(full.comparison, rows=(*rows, *other))
    bars = re.compile(r'<rect class="\w+" x="[-\d.]+" width="([\d.]+)"')
    alone = {found for found in bars.findall(report_html(full))}
    together = {found for found in bars.findall(report_html(replace(full, comparison=both)))}
    assert alone
    assert alone == together


def test_sixty_pairs_of_a_large_model_fit_in_three_megabytes(tmp_path):
    codes = ["en", *(a + b for a in "abcdef" for b in "vwxyz")]
    sites = {f"model.{side}.layers.{n}.fc1": 4096 for side in ("encoder", "decoder") for n in range(6)}
    masks = NeuronMasks.random(sites, english_centric(codes), 0.7)
    path = write_report(analyze(masks), tmp_path / "new" / "report.html")
    assert path.stat().st_size <= 3 * 2**20


@pytest.fixture(scope="module")
def browser(full, tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("report")
    path = write_report(full, folder / "report.html")
    with Browser(program, folder / "profile") as opened:
        opened.open(path)
        opened.path = path
        yield opened


@pytest.mark.browser
class TestInABrowser:
    def test_nothing_is_complained_about_and_nothing_is_fetched(self, browser):
        browser.run("document.getElementById('map-table').open = true")
        browser.run("new Promise(done => setTimeout(done, 300))")
        assert browser.problems == []
        assert browser.requests == [browser.path.as_uri()]

    def test_the_overlaps_on_the_page_are_those_of_the_analysis(self, browser, full):
        found = browser.run("report.sites.map(overlapOfPairs)")
        for number in range(len(full.masks.sites)):
            for row, wanted in zip(found[number], full.overlap.iou[number], strict=True):
                assert row == pytest.approx(list(wanted))
        languages = browser.run("overlapOfLanguages(report.sites[2])")
        course = full.progression
        assert languages["names"] == list(course.languages)
        assert languages["values"][0][1] == pytest.approx(course.iou[2, 0, 1])

    def test_the_slider_changes_the_heat_map(self, browser):
        picture = "document.getElementById('map').toDataURL()"
        name = "document.getElementById('map-layer-name').textContent"
        before, label = browser.run(picture), browser.run(name)
        browser.run("document.getElementById('map-layer').focus()")
        browser.press("ArrowRight", 39)
        assert browser.run(name) != label
        assert browser.run(picture) != before
        browser.press("ArrowLeft", 37)
        assert browser.run(name) == label
        assert browser.run(picture) == before

    def test_the_order_changes_the_rows(self, browser, full):
        order = "(value => { const s = document.getElementById('map-order'); s.value = value;"
        order += " s.dispatchEvent(new Event('change'));"
        order += " return heatMap.view.order.map(i => heatMap.view.rows.names[i]) })"
        site = browser.run("heatMap.view.site.name")
        assert browser.run(f"{order}('tree')") == full.trees[site].leaves
        assert browser.run(f"{order}('family')") == ["de", "nl", "sv", "es", "fr", "it"]

    def test_the_arrow_keys_read_the_heat_map(self, browser):
        readout = "document.getElementById('map-readout').textContent"
        browser.run("document.getElementById('map').focus()")
        before = browser.run(readout)
        browser.press("ArrowDown", 40)
        assert browser.run(readout) != before
        assert "IoU" in browser.run(readout) or "the same row" in browser.run(readout)

    def test_the_neuron_browser_names_the_pairs_that_keep_a_neuron(self, browser, full):
        site = full.masks.sites[0].name
        keep = full.masks.keep[site]
        neuron = int(((keep.sum(dim=0) > 1) & ~keep.all(dim=0)).nonzero()[0])
        browser.run(f"chooseNeuron({neuron})")
        chips = browser.run("[...document.querySelectorAll('#neuron-readout .chip')].map(c => c.textContent)")
        owners = [str(pair) for row, pair in enumerate(full.masks.pairs) if keep[row, neuron]]
        assert sorted(chips) == sorted(owners)

    def test_the_filter_counts_specific_neurons(self, browser, full):
        keep = full.masks.keep[full.masks.sites[0].name]
        row = full.masks.pairs.index("en-de")
        wanted = int((keep[row] & ~keep.all(dim=0)).sum())
        for name, value in (("neuron-pair", row), ("neuron-filter", "specific")):
            browser.run(
                f"document.getElementById('{name}').value = '{value}';"
                f"document.getElementById('{name}').dispatchEvent(new Event('change'))"
            )
        text = browser.run("document.getElementById('neuron-count').textContent")
        assert text.startswith(f"{wanted} of 96 neurons")

    def test_a_click_on_a_heading_sorts_the_gains(self, browser, full):
        browser.run("document.querySelectorAll('#gain-table thead button')[4].click()")
        rows = "[...document.querySelectorAll('#gain-table tbody tr')].map(r => +r.cells[4].dataset.value)"
        assert browser.run(rows) == sorted(row.delta for row in full.comparison.rows)

    def test_the_theme_can_be_switched(self, browser):
        colour = "getComputedStyle(document.body).backgroundColor"
        before = browser.run(colour)
        browser.run("document.getElementById('theme').click()")
        assert browser.run(colour) != before
        browser.run("document.getElementById('theme').click()")
        assert browser.run(colour) == before

    def test_every_control_has_a_name_and_narrow_screens_do_not_scroll_sideways(self, browser):
        unnamed = browser.run(
            "[...document.querySelectorAll('input, select, button, canvas')].filter(e => !e.labels?.length &&"
            " !e.textContent.trim() && !e.getAttribute('aria-label')).map(e => e.outerHTML)"
        )
        assert unnamed == []
        size = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", width=400, **size)
        browser.run("new Promise(done => setTimeout(done, 200))")
        assert browser.run("document.documentElement.scrollWidth") <= 400
        browser.call("Emulation.setDeviceMetricsOverride", width=1400, **size)
