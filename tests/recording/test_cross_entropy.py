"""The loss of each token and its gradient equal the formula, token by token."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nspec_hf.recording import cross_entropy, token_losses


def batch(rows=4, length=5, vocabulary=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (rows, length), generator=draw)
    labels[torch.arange(length) >= torch.tensor([5, 3, 1, 4])[:rows, None]] = -100
    return logits, labels


def by_hand(logits, labels, smoothing):
    """(1 − ε)·(−log p(y)) − ε/V·Σ log p(v), one token at a time."""
    losses = torch.zeros(labels.shape, dtype=torch.float64)
    for i, j in (labels != -100).nonzero().tolist():
        log_p = logits[i, j] - logits[i, j].exp().sum().log()
        losses[i, j] = -(1 - smoothing) * log_p[labels[i, j]] - smoothing * log_p.mean()
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_each_token_has_the_loss_of_the_formula_and_padding_none(smoothing):
    logits, labels = batch()
    found = token_losses(logits, labels, smoothing)
    torch.testing.assert_close(found, by_hand(logits, labels, smoothing), atol=1e-12, rtol=0)
    assert (found[labels == -100] == 0).all()


def test_low_precision_logits_are_summed_in_float32():
    logits, labels = batch()
    found = token_losses(logits.bfloat16(), labels)
    assert found.dtype == torch.float32
    expected = by_hand(logits.bfloat16().double(), labels, 0)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_the_formula_s_over_many_blocks_and_logits_stay(dtype, atol, smoothing, monkeypatch):
    monkeypatch.setattr(
        cross_entropy, "_blocks", lambda logits: (slice(first, first + 3) for first in range(0, 20, 3))
    )
    logits, labels = batch()
    given = logits.to(dtype).requires_grad_()
    before = given.detach().clone()
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
    (token_losses(given, labels, smoothing) * weights).sum().backward()
    # d/dx(v) of the formula: p(v) − (1 − ε)·[v is right] − ε/V; padding has none
    expected = torch.zeros(logits.shape, dtype=torch.float64)
    for i, j in (labels != -100).nonzero().tolist():
        x = before[i, j].double()
        right = torch.nn.functional.one_hot(labels[i, j], len(x)).double()
        expected[i, j] = weights[i, j] * (
            x.exp() / x.exp().sum() - (1 - smoothing) * right - smoothing / len(x)
        )
    assert given.grad.dtype == dtype
    torch.testing.assert_close(given.grad.double(), expected, atol=atol, rtol=0)
    assert torch.equal(given, before)


def test_no_array_as_large_as_the_logits_is_held_in_float32():
    held = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
                held.append(out.untyped_storage().nbytes())
            return out

    logits = torch.randn(8, 500, 1000).bfloat16().requires_grad_()
    with Sizes():
        token_losses(logits, torch.ones(8, 500, dtype=torch.long), 0.1).sum().backward()
    assert max(held) < 4 * logits.numel() / 3


@pytest.mark.parametrize("label", [7, -1])
def test_a_label_outside_the_vocabulary_is_refused(label):
    logits, labels = batch()
    labels[0, 0] = label
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        token_losses(logits, labels)
