"""Every error is one of ours and a builtin too, and prints the message as it was written."""

import builtins
import inspect
import re
from functools import partial
from pathlib import Path

import pytest

import nspec_hf
from nspec_hf.core import NspecError, errors, warn

CHILDREN = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__
]
CHILDREN.remove(NspecError)


@pytest.mark.parametrize("kind", CHILDREN)
def test_an_error_is_a_builtin_too_and_prints_its_message_plainly(kind):
    assert issubclass(kind, NspecError)
    assert any(base in vars(builtins).values() and base is not Exception for base in kind.__mro__[2:-3])
    assert str(kind("pair 'en-xx' has no mask")) == "pair 'en-xx' has no mask"


def within(module, call):
    """Return a function of that module which makes the call."""
    names = {"__name__": module, "call": call}
    exec("def run():\n    call()", names)
    return names["run"]


@pytest.mark.parametrize(
    "outer", [[], ["nspec_hf.gating.gate"], ["nspec_hf.masks.hub", "transformers.trainer"]]
)
def test_a_warning_points_at_the_user_s_line_whatever_lies_between(outer):
    call = within("nspec_hf.data.corpus", partial(warn, "too short"))
    for module in outer:
        call = within(module, call)
    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(UserWarning, match="too short") as caught:
        call()
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_warnings_are_given_in_one_place():
    package = Path(nspec_hf.__file__).parent
    others = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"warnings\.warn\(|from warnings import", path.read_text(encoding="utf-8"))
    ]
    assert others == ["errors.py"]
