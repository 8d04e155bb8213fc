"""The laboratory: its worlds, the order of its runs, stopping and going on, and its picture."""

import json
from dataclasses import replace
from itertools import groupby

import pytest
from transformers.utils import logging

from nspec_hf.analysis import Panel, Series, draw_tradeoffs
from nspec_hf.core import ConfigError, read_json
from nspec_hf.data import LanguageFamilies, SyntheticConfig
from recipes import lab, lab_diagram

SMALL = [
    *("--cells", "s100-d32-p0", "--seeds", "[1]"),
    *("--base_updates", "4", "--updates", "2", "--held_out", "4"),
]


@pytest.fixture(autouse=True)
def bars():
    """The recipe takes bars away for its process; other tests of this one want them."""
    yield
    logging.enable_progress_bar()


def test_a_name_says_what_a_cell_is():
    wanted = lab.Cell(sentences=200, width=32, dropout=0.1, families=1, languages=3, changes=8, longer=2)
    assert lab.Cell.of("s200-d32-p0.1-f1x3-c8-x2") == wanted
    assert lab.Cell.of("s100-d64-p0-i4") == lab.Cell(sentences=100, dropout=0.0, imbalance=4)


def test_no_two_cells_of_the_grid_are_the_same():
    assert len({lab.Cell.of(name) for name in lab.GRID}) == len(lab.GRID) >= 24


def test_one_seed_of_all_cells_runs_before_the_next_and_the_picture_s_rows_before_the_controls():
    order = lab.plan(lab.LabConfig(), {})
    first = order[:24]
    assert [name for name, _, _ in first] == lab.GRID[:24]
    assert {(seed, tuple(rows)) for _, seed, rows in first} == {(1, ("finetune", "ns", "random"))}
    assert [seed for seed, _ in groupby(seed for _, seed, _ in order)] == [1, 2] * 4
    wanted = {(name, seed, row) for name in lab.GRID for seed in (1, 2) for row in lab.ROWS}
    planned = [(name, seed, row) for name, seed, rows in order for row in rows]
    assert (len(planned), set(planned)) == (len(wanted), wanted)


def test_what_is_known_is_not_planned_again():
    name, config = lab.GRID[0], lab.LabConfig(seeds=(1,), rows=("finetune", "ns"))
    order = lab.plan(config, {f"{name}.s1": {"rows": {"ns": {}}}})
    assert order[0] == (name, 1, ["finetune"])


def test_results_of_other_settings_are_refused_and_further_rows_and_seeds_are_not(tmp_path, monkeypatch):
    path, cells = tmp_path / "lab.json", {"s100-d64-p0.s1": {"rows": {"ns": {}}}}
    rows = {row: [name, {**settings}] for row, (name, settings) in lab.ROWS.items()}
    then = {"work": "", "results": "", "cells": "*", "rows": rows, "seeds": [1], "base_updates": 500}
    then |= {"updates": 200, "rate": 5e-3, "max_tokens": 400, "held_out": 50}
    path.write_text(json.dumps({"cells": cells, "recipe": {"config": then}}), encoding="utf-8")
    assert lab.kept(lab.LabConfig(results=str(path), seeds=(1, 2, 3), rows=("ns",), cells="s100*")) == cells
    monkeypatch.setitem(lab.ROWS, "another", ("shared", {"coverage": 0.5}))
    assert lab.kept(lab.LabConfig(results=str(path))) == cells
    monkeypatch.setattr(lab, "run_cell", None)  # it is refused before any work
    for option, told in (("--updates", "updates .then 200."), ("--held_out", "held_out .then 50.")):
        with pytest.raises(ConfigError, match=told):
            lab.main(["--results", str(path), option, "60"])
    monkeypatch.setitem(lab.ROWS, "ns", ("neuron_specialization", {"coverage": 0.8}))
    with pytest.raises(ConfigError, match="other rows"):
        lab.main(["--results", str(path)])
    assert lab.kept(lab.LabConfig(results=str(tmp_path / "new.json"))) == {}


def test_each_language_has_its_own_sentences_and_the_first_of_a_family_more(tmp_path):
    cell = lab.Cell(sentences=6, imbalance=3)
    world = LanguageFamilies(SyntheticConfig(families=2, languages=2, nouns=12))
    lab.write_world(world, cell, tmp_path, held_out=3)
    texts = {
        code: (tmp_path / f"train.qpv-{code}.qpv").read_text("utf-8").splitlines()
        for code in world.languages[1:]
    }
    assert [len(lines) for lines in texts.values()] == [18, 6, 18, 6]
    everything = [line for lines in texts.values() for line in lines]
    assert len(set(everything)) == len(everything)
    all_of_them = world.sentences("train", 48)
    said = dict(zip(all_of_them["qpv"], all_of_them["qba"], strict=True))
    own = (tmp_path / "train.qpv-qba.qba").read_text("utf-8").splitlines()
    assert [said[line] for line in texts["qba"]] == own


@pytest.mark.medium
def test_a_stopped_laboratory_goes_on_with_the_row_that_is_missing(tmp_path, monkeypatch, capsys):
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "lab.json")]
    whole, ran = lab.run_system, []

    def run(run, system):
        if run.row in ("random", "finetune"):
            ran.append(run.row)
        if run.row == "random" and ran.count("random") == 1:
            raise KeyboardInterrupt
        return whole(run, system)

    monkeypatch.setattr(lab, "run_system", run)
    arguments = [*places, *SMALL, "--rows", "[finetune, ns, random]"]
    with pytest.raises(KeyboardInterrupt):
        lab.main(arguments)
    before = read_json(tmp_path / "lab.json")["cells"]["s100-d32-p0.s1"]
    assert list(before["rows"]) == ["finetune", "ns"]
    lab.main(arguments)
    after = read_json(tmp_path / "lab.json")["cells"]["s100-d32-p0.s1"]
    assert ran == ["finetune", "random", "random"]
    assert after["rows"].pop("random")["kept"] == before["rows"]["ns"]["kept"] < 1
    assert after == before
    assert after["rows"]["finetune"]["kept"] == 1
    assert "1/1 rows" in capsys.readouterr().out


def test_a_base_is_kept_until_the_last_of_all_rows_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "ROWS", {row: lab.ROWS[row] for row in ("finetune", "random")})
    folder, seen = tmp_path / "work" / "s100-d32-p0" / "s1", []
    places = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "lab.json"), *SMALL]
    lab.main([*places, "--rows", "[finetune]"])
    weights = folder / "base" / "model" / "model.safetensors"
    before, whole = (weights.read_bytes(), weights.stat().st_mtime_ns), lab.run_system

    def run(run, system):
        seen.append((weights.read_bytes(), weights.stat().st_mtime_ns))
        return whole(run, system)

    monkeypatch.setattr(lab, "run_system", run)
    lab.main([*places, "--rows", "[random]"])
    assert seen == [before]
    assert not folder.exists()


def test_an_unknown_row_is_named():
    with pytest.raises(ConfigError, match="no row fine_tune; rows: finetune, ns"):
        lab.LabConfig(rows=("fine_tune",))


def cell(dropout, gap, gains):
    """Return the lines of a cell, one a seed."""
    base = {"text_loss": 1 + gap, "train_loss": 1.0, "target_tokens": 50, "parameters": 100, "bleu": 3.0}
    return [
        {
            "cell": {"dropout": dropout},
            "base": base,
            "rows": {"finetune": {"bleu": 10.0}, "ns": {"bleu": 10 + gain}, "random": {"bleu": 9.5}},
        }
        for gain in gains
    ]


def lines(**cells):
    return {f"{name}.s{seed + 1}": line for name, own in cells.items() for seed, line in enumerate(own)}


def test_a_point_is_the_mean_over_seeds_of_the_gain_against_the_gap():
    cells = lines(one=cell(0.0, 0.5, [1.0, 2.0]), two=cell(0.1, 0.25, [-1.0]))
    del cells["two.s1"]["rows"]["random"]
    panel = lab_diagram.panel(cells, "ns", "finetune")
    assert [(series.label, *series.x, *series.y, *series.spread) for series in panel.series] == [
        ("dropout 0", 0.5, 1.5, 0.5),
        ("dropout 0.1", 0.25, -1.0, 0.0),
    ]
    assert [series.label for series in lab_diagram.panel(cells, "ns", "random").series] == ["dropout 0"]


def test_the_order_of_the_gains_is_told_by_rank_correlation():
    gaps, gains = [0.1, 0.2, 0.3, 0.4], [-1.0, 0.5, 0.25, 2.0]
    own = {f"c{place}": cell(0.1, gaps[place], [gains[place]]) for place in range(4)}
    said = lab_diagram.summary(lines(**own), "ns", "finetune")
    # 1 − 6 Σ d² / (n (n² − 1)): two neighbours have changed places, d² = 1 for both of four.
    assert f"gap {1 - 6 * 2 / (4 * 15):+.2f}," in said
    assert "3 of 4 cells above 0, mean +0.44" in said


def test_the_picture_is_drawn_from_the_results_of_a_laboratory_that_still_runs(tmp_path, capsys):
    path = tmp_path / "lab.json"
    begun = {"three.s1": {"cell": {"dropout": 0.1}, "rows": {}}}
    known = lines(one=cell(0.0, 0.5, [1.0, 2.0]), two=cell(0.1, 0.25, [-1.0]), four=cell(0.1, 0.1, [0.0]))
    path.write_text(json.dumps({"cells": known | begun}))
    lab_diagram.main([str(path)])
    assert (tmp_path / "lab.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "own neurons − fine-tuning: 1 of 3 cells" in said
    # Overfitting of the three bases: 0.5 / 1.5, 0.25 / 1.25 and 0.1 / 1.1.
    assert "| BLEU | 50 % and more | 25 % and more | less |" in said
    assert "| own neurons − fine-tuning | – | +1.50 (1 of 1) | −0.50 (0 of 2) |" in said
    assert "drawn by activity" not in said  # has not been run


def test_a_label_has_one_colour_in_all_panels_and_a_line_runs_from_left_to_right():
    joined = Series(label="masks", x=[0.8, 0.2], y=[2.0, 1.0], spread=[0.1, 0.2], joined=True)
    one, two = Series(label="dense", x=[1], y=[3]), Series(label="masks", x=[1], y=[2])
    figure = draw_tradeoffs(
        [
            Panel(x="kept", y="BLEU", series=[one, joined], rule=1.5),
            Panel(x="kept", y="loss", series=[two]),
        ]
    )
    left, right = figure.axes
    assert left.get_position().y0 == right.get_position().y0
    drawn = next(line for line in left.lines if line.get_linestyle() == "-")
    assert list(drawn.get_xdata()) == [0.2, 0.8]
    assert list(drawn.get_ydata()) == [1.0, 2.0]
    assert drawn.get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert any(set(line.get_ydata()) == {1.5} for line in left.lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["dense", "masks"]


def test_a_fourth_panel_begins_a_second_row():
    panel = Panel(x="kept", y="BLEU", series=[Series(label="dense", x=[1], y=[3])])
    other = Panel(x="bytes", y="BLEU", series=[Series(label="dense", x=[7], y=[3])], title="eight bits")
    figure = draw_tradeoffs(
        [panel, replace(panel, series=[Series(label="dense", x=[9], y=[3])]), panel, other]
    )
    assert [axes.get_subplotspec().rowspan.start for axes in figure.axes] == [0, 0, 0, 1]
    assert [axes.get_subplotspec().colspan.start for axes in figure.axes] == [0, 1, 2, 0]
    first, second, third, fourth = (axes.get_xlim() for axes in figure.axes)
    assert first == second == third != fourth
    assert first[0] < 1 < 9 < first[1]
    assert [axes.get_title() for axes in figure.axes] == ["", "", "", "eight bits"]


def test_nine_series_have_nine_colours():
    series = [Series(label=f"system {number}", x=[1], y=[number]) for number in range(9)]
    (axes,) = draw_tradeoffs([Panel(x="kept", y="BLEU", series=series)]).axes
    colours = {line.get_color() for line in axes.lines if line.get_marker() in "os^Dv"}
    assert len(colours) == 9
