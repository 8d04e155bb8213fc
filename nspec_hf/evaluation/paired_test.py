"""The paired tests on one direction: how likely is a difference as large as this one by chance?

Shape letters: T = trials, N = sentences, S = statistics that a metric needs of a sentence (for BLEU ten: two
lengths, matches and totals of four orders). A corpus score is a function of the statistics' sum over
sentences, so a trial is one row of weights, and all trials are one product of matrices, `weights_TN @
stats_NS`.

- `ar`, approximate randomization (Riezler & Maxwell, 2005): a trial swaps each sentence between the two
  systems with probability ½; p is how often the swapped systems differ more than the real ones.
- `bs`, paired bootstrap (Koehn, 2004): a trial draws N sentences with replacement; p is how often the
  difference strays from its mean by more than the real difference.

The tests are sacreBLEU's: its statistics, its random stream and its arithmetic, so the p-values equal those
of `sacrebleu --paired-ar` and `--paired-bs` digit for digit. Three things differ. All sums are that product,
taken in blocks (sacreBLEU's bootstrap holds 2 GB for 2,000 sentences). The seed is an argument and 0 is a
seed (sacreBLEU reads an environment variable, and takes 0 as none). Equal scores have p = 1.

The trap: sacreBLEU counts the trials that differ *more* than the real systems, not those that differ as much.
With hundreds of differing sentences no trial ties, and it does not matter. With few it does: if one sentence
differs, every swap gives the same difference, none a larger one, and p is the smallest possible. (A system
compared with itself would be "significant" too, hence p = 1 for equal scores.) So a result also holds
`p_with_ties`, the textbook p, and how many sentences differ: with d of them, no randomization can show less
than 2 / 2^d.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sacrebleu.metrics.base import Metric

from nspec_hf.core import require
from nspec_hf.evaluation.metrics import SacrebleuMetric

PairedTest = Literal["ar", "bs"]

# Trials drawn at once, which bounds the memory. A multiple of 32, because numpy takes 32 booleans from one
# random word and drops what is left when a call ends: only so do blocks give the same stream as one call.
_BLOCK = 512

# Scores that differ by less than this are equal; chrF sums in another order when systems are swapped.
_TIE = 1e-9


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """One system against the baseline, by one metric."""

    baseline: float
    system: float
    p_value: float
    """sacreBLEU's: trials that differ more than the real systems."""
    p_with_ties: float
    """Trials that differ at least as much; never below `p_value`."""
    differing: int
    """Sentences whose statistics differ between the two."""
    signature: str
    """sacreBLEU's signature of the metric, with test, trials and seed."""


def paired_test(
    baseline: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    metrics: Sequence[SacrebleuMetric],
    test: PairedTest = "ar",
    n_samples: int = 10_000,
    seed: int | None = 12345,
) -> dict[tuple[str, str], PairedResult]:
    """Test systems against a baseline on one direction.

    Args:
        baseline: The baseline's translations, N sentences.
        systems: Each system's translations of the same sentences.
        references: What they are compared with.
        metrics: Metrics of sacreBLEU.
        test: `ar` or `bs`; see the module's text.
        n_samples: T.
        seed: Of the random stream; every system and metric sees the same trials. None: not repeatable.

    Returns:
        The result of each (system, metric name).

    Raises:
        ConfigError: If the test is unknown or a metric's tokenizer cannot be loaded.
    """
    require(test in ("ar", "bs"), f"test is 'ar' (randomization) or 'bs' (bootstrap), got {test!r}")
    results = {}
    for settings in metrics:
        metric = settings.build(references)
        base_NS = _statistics(metric, baseline)
        system_NS = {name: _statistics(metric, lines) for name, lines in systems.items()}
        sums = _sums(np.concatenate([base_NS, *system_NS.values()], axis=1), test, n_samples, seed)
        base_TS, *rest = np.split(sums, 1 + len(systems), axis=1)
        signature = metric.get_signature()
        signature.update("seed", str(seed).lower())
        signature.update(test, n_samples)
        base = _scores(metric, [base_NS.sum(0).tolist()]).item()
        for (name, own_NS), own_TS in zip(system_NS.items(), rest, strict=True):
            own = _scores(metric, [own_NS.sum(0).tolist()]).item()
            if test == "ar":
                # One has the baseline's sentence where it is swapped, the system's elsewhere.
                one_TS = base_TS + (own_NS.sum(0) - own_TS)
                other_TS = own_TS + (base_NS.sum(0) - base_TS)
                chance_T = np.abs(_scores(metric, one_TS.tolist()) - _scores(metric, other_TS.tolist()))
            else:
                # sacreBLEU sums resampled sentences in single precision and computes its scores from that.
                base_T, own_T = (_scores(metric, list(sums.astype(np.float32))) for sums in (base_TS, own_TS))
                chance_T = np.abs(own_T - base_T)
                chance_T -= chance_T.mean()
            results[name, settings.name] = PairedResult(
                baseline=base,
                system=own,
                p_value=_p_value(chance_T > abs(base - own), base == own),
                p_with_ties=_p_value(chance_T >= abs(base - own) - _TIE, base == own),
                differing=int((base_NS != own_NS).any(axis=1).sum()),
                signature=str(signature),
            )
    return results


def _statistics(metric: Metric, sentences: Sequence[str]) -> np.ndarray:
    """Return the statistics of each sentence, [N, S]; the metric holds the references' n-grams."""
    return np.array(metric._extract_corpus_statistics(sentences, None))


def _sums(stats_NS: np.ndarray, test: PairedTest, n_samples: int, seed: int | None) -> np.ndarray:
    """Return the statistics' sums in each trial, [T, S], of the type of the statistics."""
    # float64 for the fast product; sums of counts stay exact up to 2**53.
    exact_NS = stats_NS.astype(np.float64)
    blocks = [weights_TN @ exact_NS for weights_TN in _weights(test, n_samples, len(stats_NS), seed)]
    return np.concatenate(blocks).astype(stats_NS.dtype)


def _weights(test: PairedTest, n_samples: int, sentences: int, seed: int | None) -> Iterator[np.ndarray]:
    """Yield blocks of trials, [≤ _BLOCK, N]: for `ar` what to swap (0 or 1), for `bs` how often drawn."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_samples, _BLOCK):
        shape = (min(_BLOCK, n_samples - start), sentences)
        if test == "ar":
            yield rng.integers(2, size=shape, dtype=bool).astype(np.float64)
            continue
        drawn_TN = rng.choice(sentences, size=shape, replace=True)
        # One count over all rows, each row with numbers of its own.
        flat = (drawn_TN + sentences * np.arange(shape[0])[:, None]).ravel()
        yield np.bincount(flat, minlength=shape[0] * sentences).reshape(shape).astype(np.float64)


def _scores(metric: Metric, sums_TS: Sequence) -> np.ndarray:
    return np.array([metric._compute_score_from_stats(sums_S).score for sums_S in sums_TS])


def _p_value(hits_T: np.ndarray, equal: bool) -> float:
    return 1.0 if equal else (int(hits_T.sum()) + 1) / (len(hits_T) + 1)
