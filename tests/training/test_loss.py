"""The loss equals its formula, token by token; the tally equals a plain loop."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nspec_hf.core import TrainingSetupError, as_pairs
from nspec_hf.training import TokenLoss, loss, token_losses
from nspec_hf.training.loss import PairTally

PAIRS = as_pairs(["en-de", "de-en", "en-fr"])


def batch(rows=4, length=5, vocabulary=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, vocabulary, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (rows, length), generator=draw)
    labels[torch.arange(length) >= torch.tensor([5, 3, 1, 4])[:rows, None]] = -100
    return logits, labels


def by_hand(logits, labels, smoothing):
    """(1 − ε)·(−log p(y)) − ε/V·Σ log p(v), one token at a time."""
    losses = torch.zeros(labels.shape)
    for i, j in (labels != -100).nonzero().tolist():
        log_p = logits[i, j] - logits[i, j].exp().sum().log()
        losses[i, j] = -(1 - smoothing) * log_p[labels[i, j]] - smoothing * log_p.mean()
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_each_token_has_the_loss_of_the_formula_and_padding_none(smoothing):
    logits, labels = batch()
    found = token_losses(logits, labels, smoothing)
    torch.testing.assert_close(found, by_hand(logits, labels, smoothing), atol=1e-6, rtol=0)
    assert (found[labels == -100] == 0).all()


def test_low_precision_logits_are_summed_in_float32():
    logits, labels = batch()
    assert token_losses(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_those_of_the_formula_over_many_blocks_and_logits_stay(dtype, smoothing, monkeypatch):
    monkeypatch.setattr(
        loss, "_blocks", lambda logits: (slice(first, first + 3) for first in range(0, 20, 3))
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
        right = torch.nn.functional.one_hot(labels[i, j], len(x))
        expected[i, j] = weights[i, j] * (
            x.exp() / x.exp().sum() - (1 - smoothing) * right - smoothing / len(x)
        )
    assert given.grad.dtype == dtype
    torch.testing.assert_close(
        given.grad.double(), expected, atol=1e-6 if dtype == torch.float32 else 4e-3, rtol=0
    )
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


def test_a_micro_batch_gets_its_share_of_the_global_mean():
    parts = [batch(seed=seed) for seed in range(3)]
    tokens = sum(int((labels != -100).sum()) for _, labels in parts)
    shares = [TokenLoss(0.1)({"logits": logits}, labels, torch.tensor(tokens)) for logits, labels in parts]
    expected = sum(by_hand(logits, labels, 0.1).sum() for logits, labels in parts) / tokens
    torch.testing.assert_close(sum(shares), expected)


def test_without_a_count_the_batch_is_its_own_mean():
    logits, labels = batch()
    expected = by_hand(logits, labels, 0).sum() / (labels != -100).sum()
    torch.testing.assert_close(TokenLoss()((logits,), labels), expected)


def test_an_evaluation_is_neither_smoothed_nor_counted():
    logits, labels = batch()
    tally = PairTally(PAIRS)
    loss = TokenLoss(0.3, tally, lambda: torch.tensor([0, 1, 2, 0]))
    with torch.no_grad():
        found = loss({"logits": logits}, labels)
    torch.testing.assert_close(found, TokenLoss(0.0)({"logits": logits}, labels))
    assert loss.calls == 0
    assert tally.take() == (0.0, {})


def test_the_tally_equals_a_plain_loop_and_begins_anew():
    tally, sums = PairTally(PAIRS), {}
    for seed in range(3):
        logits, labels = batch(seed=seed)
        rows = torch.tensor([0, 2, 2, 0]) if seed else torch.tensor([0])
        TokenLoss(0.0, tally, lambda rows=rows: rows)({"logits": logits}, labels)
        for i, row in enumerate(rows.expand(4).tolist()):
            total, tokens = sums.get(PAIRS[row], (0.0, 0))
            own = by_hand(logits[i : i + 1], labels[i : i + 1], 0)
            sums[PAIRS[row]] = (total + float(own.sum()), tokens + int((labels[i] != -100).sum()))
    overall, each = tally.take()
    assert each == pytest.approx({pair: total / tokens for pair, (total, tokens) in sums.items()}, abs=1e-6)
    totals, tokens = zip(*sums.values(), strict=True)
    assert overall == pytest.approx(sum(totals) / sum(tokens), abs=1e-6)
    assert tally.take() == (0.0, {})


def test_a_batch_without_labels_is_refused():
    with pytest.raises(TrainingSetupError, match="no labels"):
        TokenLoss()({"logits": batch()[0]}, None)
