import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from nspec_hf.analysis import Result
from nspec_hf.analysis.result import axes, site_label
from nspec_hf.core import Pair
from nspec_hf.recording import Site, site_from_name


@dataclass(frozen=True, kw_only=True)
class Toy(Result):
    sites: tuple[Site, ...]
    pairs: tuple[Pair, ...]
    share: np.ndarray = field(metadata=axes(site="sites", pair="pairs"))
    mean: np.ndarray = field(metadata=axes(site="sites"))
    seed: int = 3


@pytest.fixture
def toy() -> Toy:
    sites = (site_from_name("model.encoder.layers.0.fc1", 8), site_from_name("model.decoder.layers.2.fc1", 8))
    share = np.array([[0.5, np.nan, 0.25], [1.0, 0.0, 0.125]])
    pairs = (Pair("en-de"), Pair("en-fr"), Pair("zh-CN->en"))
    return Toy(sites=sites, pairs=pairs, share=share, mean=np.array([0.1, 0.2]))


def test_a_table_has_a_row_for_each_cell_with_its_labels(toy):
    table = toy.to_pandas()
    assert list(table.columns) == ["site", "side", "layer", "pair", "share"]
    cells = {(row.site, row.pair): row.share for row in table.itertuples()}
    assert len(cells) == 6
    for i, site in enumerate(toy.sites):
        for j, pair in enumerate(toy.pairs):
            assert cells[site.name, pair] == pytest.approx(toy.share[i, j], nan_ok=True)
    assert set(table.loc[table.side == "decoder", "layer"]) == {2}


def test_json_is_strict_and_says_null_for_what_is_undefined(toy):
    plain = json.loads(toy.to_json(), parse_constant=pytest.fail)
    assert plain["share"] == [[0.5, None, 0.25], [1.0, 0.0, 0.125]]
    assert plain["axes"] == {"share": ["site", "pair"], "mean": ["site"]}
    assert plain["pairs"] == ["en-de", "en-fr", "zh-CN->en"]
    assert plain["sites"][1] == {
        "name": "model.decoder.layers.2.fc1",
        "side": "decoder",
        "layer": 2,
        "width": 8,
    }
    assert plain["seed"] == 3


def test_saving_writes_both_forms(toy, tmp_path):
    json_path, csv_path = toy.save(tmp_path / "new", "toy")
    assert json.loads(json_path.read_text())["result"] == "Toy"
    assert len(csv_path.read_text().splitlines()) == 7


def test_sites_of_other_kinds_are_told_apart():
    ffn = site_from_name("model.decoder.layers.1.fc1", 4)
    self_q = site_from_name("model.decoder.layers.1.self_attn.q_proj", 4)
    cross_q = site_from_name("model.decoder.layers.1.encoder_attn.q_proj", 4)
    assert site_label(ffn) == "decoder 1"
    assert site_label(site_from_name("model.decoder.layers.1.fc2", 4)) == "decoder 1 fc2"
    assert len({site_label(site) for site in (ffn, self_q, cross_q)}) == 3
