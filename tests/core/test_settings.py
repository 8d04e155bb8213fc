"""Rules of settings that need others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jsonargparse
import pytest

from nspec_hf.core import unused, warn_unused, with_lists


@dataclass(frozen=True)
class Settings:
    form: str = "plain"
    width: int = 1
    folder: str | None = None
    other: str = ""
    beams: int = 5
    penalty: float = 1.0


@pytest.mark.parametrize(
    ("given", "rules", "told"),
    [
        (
            {"width": 2},
            {"width": "form=cut|set"},
            "width has no effect with form plain, but with cut or set",
        ),
        ({"width": 2, "form": "cut"}, {"width": "form=cut|set"}, None),
        ({"form": "cut"}, {"width": "form=packed"}, None),
        ({"width": 2}, {"width": "folder"}, "width has no effect without folder"),
        ({"width": 2, "folder": "x"}, {"width": "folder"}, None),
        ({"width": 2}, {"width": "folder or other"}, "width has no effect without folder or other"),
        ({"width": 2, "other": "x"}, {"width": "folder or other"}, None),
        ({"width": 2, "folder": "x"}, {"width": "not folder"}, "width has no effect with folder"),
        ({"width": 2}, {"width": "not folder"}, None),
        ({"penalty": 2.0, "beams": 1}, {"penalty": "not beams=1"}, "penalty has no effect with beams 1"),
        ({"penalty": 2.0}, {"penalty": "not beams=1"}, None),
    ],
)
def test_a_rule_tells_what_has_no_effect_and_why(given, rules, told):
    settings = Settings(**given)
    found = list(unused(lambda name: getattr(settings, name), lambda name: getattr(Settings, name), rules))
    assert found == ([] if told is None else [f"{told}; leave it out"])


def test_it_is_told_with_the_names_that_the_user_gave():
    with pytest.warns(UserWarning, match=r"^part\.width has no effect without part\.folder"):
        warn_unused(Settings(width=2), {"width": "folder"}, "part.")


@dataclass(frozen=True)
class Lists:
    levels: Sequence[float] = ()
    sizes: Sequence[int] = (100,)
    scores: Sequence[str] = ()
    metric: str | Sequence[str] = ("bleu",)
    zero_shot: Sequence[str] | None = None
    sides: tuple[str, ...] = ("encoder",)
    copies: Sequence[Literal["norms", "ffn"]] = ()
    name: str = ""


@pytest.mark.parametrize(
    ("typed", "name", "meant"),
    [
        (["--levels", "1.0,0.8"], "levels", [1.0, 0.8]),
        (["--levels", "0.5"], "levels", [0.5]),
        (["--levels", "[1.0, 0.8]"], "levels", [1.0, 0.8]),
        (["--sizes=1, 2"], "sizes", [1, 2]),
        (["--scores", "a.json"], "scores", ["a.json"]),
        (["--scores", "a.json,b c.json"], "scores", ["a.json", "b c.json"]),
        (["--scores", "[a.json,b.json]"], "scores", ["a.json", "b.json"]),
        (["--scores", "no,on,1"], "scores", ["no", "on", "1"]),
        (["--metric", "bleu, chrf++"], "metric", ["bleu", "chrf++"]),
        (["--metric", "[bleu]"], "metric", ["bleu"]),
        (["--zero_shot", "zh-CN->en,de-en"], "zero_shot", ["zh-CN->en", "de-en"]),
        (["--zero_shot", "null"], "zero_shot", None),
        (["--sides", "encoder,decoder"], "sides", ("encoder", "decoder")),
        (["--copies", "ffn, norms"], "copies", ["ffn", "norms"]),
        (["--name", "a,b"], "name", "a,b"),
        (["--levels", "--name", "a"], None, None),
    ],
)
def test_every_list_may_stand_with_commas_alone(typed, name, meant):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Lists, "of")
    typed = [each.replace("--", "--of.", 1) for each in typed]
    if name is None:
        assert with_lists(parser, typed) == typed
        return
    read = parser.parse_args(with_lists(parser, typed)).of[name]
    assert read == meant
    assert type(read) is type(meant)
