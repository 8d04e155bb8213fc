"""Every error is one of ours and a builtin too, and prints the message as it was written."""

import builtins

import pytest

from nspec_hf.core import NspecError, errors

CHILDREN = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__
]
CHILDREN.remove(NspecError)


@pytest.mark.parametrize("kind", CHILDREN)
def test_an_error_is_a_builtin_too_and_prints_its_message_plainly(kind):
    assert issubclass(kind, NspecError)
    assert any(base in vars(builtins).values() and base is not Exception for base in kind.__mro__[2:-3])
    assert str(kind("pair 'en-xx' has no mask")) == "pair 'en-xx' has no mask"
