"""Rules of settings that need others."""

from dataclasses import dataclass

import pytest

from nspec_hf.core import unused, warn_unused


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
