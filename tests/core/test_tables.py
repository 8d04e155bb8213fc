"""Tables keep every number in every format."""

import csv
import io
import json
import math

import pytest

from nspec_hf.core import ConfigError, Table, join_tables

TABLE = Table(
    title="Scores of [de] & co",
    columns=("pair", "n", "bleu", "x|y"),
    rows=(("en-de", 3, 34.32541, None), ("[de]_en", 12, math.nan, 1.5)),
    notes=("bleu: tok:13a",),
)


def test_text_aligns_rounds_and_swallows_no_brackets():
    lines = TABLE.render("text").splitlines()
    assert lines[0].strip() == "Scores of [de] & co"
    assert lines[1].split() == ["pair", "n", "bleu", "x|y"]
    assert lines[3].split() == ["en-de", "3", "34.33", "–"]
    assert lines[4].split() == ["[de]_en", "12", "–", "1.50"]
    assert lines[-1] == "bleu: tok:13a"


def test_wide_tables_are_not_cut_off():
    wide = Table(title="t", columns=tuple(f"column{i}" for i in range(60)), rows=(tuple(range(60)),))
    assert wide.render().splitlines()[3].split() == [str(i) for i in range(60)]


def test_markdown_escapes_its_own_signs():
    lines = TABLE.render("markdown").splitlines()
    assert lines[2:] == [
        "| pair | n | bleu | x\\|y |",
        "| --- | ---: | ---: | ---: |",
        "| en-de | 3 | 34.33 | – |",
        "| [de]_en | 12 | – | 1.50 |",
        "",
        "- `bleu: tok:13a`",
    ]


def test_csv_is_exact_and_leaves_the_undefined_empty():
    rows = list(csv.reader(io.StringIO(TABLE.render("csv"))))
    assert rows == [
        ["pair", "n", "bleu", "x|y"],
        ["en-de", "3", "34.32541", ""],
        ["[de]_en", "12", "", "1.5"],
    ]


def test_json_is_exact_and_strict():
    content = json.loads(TABLE.render("json"))
    assert content["rows"][0] == {"pair": "en-de", "n": 3, "bleu": 34.32541, "x|y": None}
    assert content["rows"][1]["bleu"] is None
    assert content["notes"] == ["bleu: tok:13a"]


def test_latex_escapes_its_own_signs():
    special = Table(title="t", columns=("a_b", "≥ 5"), rows=(("10% & {x} #1 $", 2.0),))
    lines = special.render("latex").splitlines()
    assert "  a\\_b & $\\geq$ 5 \\\\" in lines
    assert "  10\\% \\& \\{x\\} \\#1 \\$ & 2.00 \\\\" in lines
    assert "\\begin{tabular}{lr}" in lines


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ConfigError, match="1 cells under 2 columns"):
        Table(title="t", columns=("a", "b"), rows=((1,),))


def test_an_unknown_format_is_refused():
    with pytest.raises(ConfigError, match="text, markdown, csv, latex, json"):
        TABLE.render("html")


def test_several_tables_are_joined():
    assert [len(table["rows"]) for table in json.loads(join_tables([TABLE, TABLE], "json"))] == [2, 2]
    assert join_tables([TABLE, TABLE], "csv").count("en-de") == 2
