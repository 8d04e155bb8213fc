"""What specialization did to the scores, and what it costs.

Gains are scores minus a baseline's, pair by pair and in groups. With bilingual models as the baseline a
loss is interference and a gain is synergy (Tan et al., EMNLP 2024, Table 4); on zero-shot pairs they are
Fig. 4; one system for each coverage k gives Fig. 5 (`setting_gains`). Costs are extra parameters, extra
memory and extraction time (Table 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nspec_hf.analysis.result import Result, axes
from nspec_hf.core import (
    ConfigError,
    Pair,
    UnknownPairError,
    by_pair,
    languages_of,
    packed_width,
    pivot_of,
    require,
)
from nspec_hf.evaluation import sacrebleu_metric
from nspec_hf.masks import NeuronMasks


@dataclass(frozen=True, kw_only=True)
class Gains(Result):
    """Scores of systems on the baseline's pairs, and how far they lie above the baseline's."""

    baseline: str
    systems: tuple[str, ...]
    pairs: tuple[Pair, ...]
    score: np.ndarray = field(metadata=axes(system="systems", pair="pairs"))
    """float64, NaN where a system has no score for a pair."""
    change: np.ndarray = field(metadata=axes(system="systems", pair="pairs"))
    """Score minus the baseline's."""
    reference: np.ndarray = field(metadata=axes(pair="pairs"))
    """The baseline's scores."""
    groups: tuple[str, ...]
    """Group of each pair: its direction, and its language's resource tier where tiers are known."""
    metric: str = ""
    """Which score; empty if it was not said."""
    lower_is_better: bool = False
    """Whether a smaller score is a better one, as of TER."""

    def by_group(self) -> "GroupedGains":
        """Return mean gain and the number of gains and losses in each group, and over all pairs."""
        names = (*dict.fromkeys(self.groups), "all")
        member_GP = np.array([[name in (group, "all") for group in self.groups] for name in names], dtype=int)
        scored_SP = ~np.isnan(self.change)
        change_SP = np.where(scored_SP, self.change, 0.0)
        better_SP = -change_SP if self.lower_is_better else change_SP
        count = scored_SP.astype(int) @ member_GP.T
        total = change_SP @ member_GP.T
        return GroupedGains(
            systems=self.systems,
            groups=names,
            mean=np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0),
            gained=(better_SP > 0).astype(int) @ member_GP.T,
            lost=(better_SP < 0).astype(int) @ member_GP.T,
            pairs=count,
        )


@dataclass(frozen=True, kw_only=True)
class GroupedGains(Result):
    """Gains by group of pairs (Tan et al., Table 4: against bilingual models, lost = interference)."""

    systems: tuple[str, ...]
    groups: tuple[str, ...]
    mean: np.ndarray = field(metadata=axes(system="systems", group="groups"))
    """Mean change of the score."""
    gained: np.ndarray = field(metadata=axes(system="systems", group="groups"))
    """Pairs that score better than the baseline (synergy)."""
    lost: np.ndarray = field(metadata=axes(system="systems", group="groups"))
    """Pairs that score worse than the baseline (interference)."""
    pairs: np.ndarray = field(metadata=axes(system="systems", group="groups"))
    """Pairs with a score."""


def gains(
    scores: Mapping[str, Mapping[str, float]],
    baseline: str,
    *,
    tiers: Mapping[str, str] | None = None,
    pivot: str = "en",
    metric: str = "",
) -> Gains:
    """Compare each system's scores with the baseline's.

    Args:
        scores: System → pair → score, the baseline among them.
        baseline: Its name; its pairs are the ones that are compared.
        tiers: Language → resource tier (`high`, `med`, `low`). A pair's tier is that of its language other
            than the pivot; of a zero-shot pair both are named.
        pivot: The language that trained pairs share.
        metric: The name of the score.

    Raises:
        ConfigError: If the baseline has no scores.
        UnknownPairError: If a system shares no pair with the baseline.
    """
    if not scores.get(baseline):
        raise ConfigError(f"no scores of the baseline {baseline!r}; there are scores of: {', '.join(scores)}")
    named = {name: by_pair(own) for name, own in scores.items()}
    pairs = tuple(named[baseline])
    pivot = pivot_of(languages_of(pairs), pivot)
    systems = tuple(name for name in scores if name != baseline)
    for name in systems:
        if not named[name].keys() & named[baseline].keys():
            raise UnknownPairError(f"{name!r} and the baseline {baseline!r} have no pair in common")
    reference_P = np.array([named[baseline][pair] for pair in pairs], dtype=float)
    rows = [[named[name].get(pair, np.nan) for pair in pairs] for name in systems]
    score_SP = np.array(rows, dtype=float).reshape(len(systems), len(pairs))
    known = sacrebleu_metric(metric)
    return Gains(
        baseline=baseline,
        systems=systems,
        pairs=pairs,
        score=score_SP,
        change=score_SP - reference_P,
        reference=reference_P,
        groups=tuple(_group_of(pair, tiers or {}, pivot) for pair in pairs),
        metric=metric,
        lower_is_better=known is not None and known.lower_is_better,
    )


@dataclass(frozen=True, kw_only=True)
class SettingGains(Result):
    """Mean gain over a baseline against one setting.

    With coverage k as the setting these are Tan et al., Fig. 5; with the threshold k or the share ρ, Xie et
    al., Fig. 4 and Table 3.
    """

    setting: str
    values: tuple[float, ...]
    """The setting's values, in rising order."""
    groups: tuple[str, ...]
    """Groups of pairs, and `all`."""
    mean: np.ndarray = field(metadata=axes(value="values", group="groups"))
    """Mean change of the score."""
    pairs: np.ndarray = field(metadata=axes(value="values", group="groups"))
    """Pairs with a score."""


def setting_gains(
    setting: str,
    scores: Mapping[float, Mapping[str, float]],
    baseline: Mapping[str, float],
    *,
    pivot: str = "en",
) -> SettingGains:
    """Return mean gains by group for each value of a setting (`coverage k`): value → pair → score.

    Raises:
        ConfigError: If there is no value, or the baseline has no scores.
        UnknownPairError: If a value's scores share no pair with the baseline's.
    """
    values = sorted(scores)
    require(bool(values), f"no values of {setting} were given")
    named = {"baseline": baseline, **{f"{value:g}": scores[value] for value in values}}
    grouped = gains(named, "baseline", pivot=pivot).by_group()
    own = {"groups": grouped.groups, "mean": grouped.mean, "pairs": grouped.pairs}
    return SettingGains(setting=setting, values=tuple(values), **own)


def _group_of(pair: Pair, tiers: Mapping[str, str], pivot: str) -> str:
    known = [tiers[code] for code in (pair.source, pair.target) if code != pivot and code in tiers]
    return " ".join([pair.group(pivot), "–".join(known)]).strip()


@dataclass(frozen=True, kw_only=True)
class Efficiency(Result):
    """Extra parameters, memory and time of masks (Tan et al., Table 5); NaN where it was not measured."""

    systems: tuple[str, ...]
    extra_parameters: np.ndarray = field(metadata=axes(system="systems"))
    extra_bytes: np.ndarray = field(metadata=axes(system="systems"))
    """On disk and in memory, all pairs together."""
    extraction_seconds: np.ndarray = field(metadata=axes(system="systems"))
    """Time to find what to add, before training."""
    computed: np.ndarray = field(metadata=axes(system="systems"))
    """Share of the gated rows that one pair computes."""


def efficiency(masks: NeuronMasks, *, seconds: float = np.nan, model_width: int | None = None) -> Efficiency:
    """Return the cost of the masks, and of the same masks in the released format.

    Masks are bits: a site of F neurons takes P · ceil(F / 8) bytes, and no parameter.

    Args:
        masks: The masks.
        seconds: How long recording and selection took.
        model_width: D; adds the row of the released format, one boolean a weight of fc1, P · F · D bytes.
    """
    pairs, width = len(masks.pairs), sum(site.width for site in masks.sites)
    packed = pairs * sum(packed_width(site.width) for site in masks.sites)
    # Parameters, bytes, seconds, share computed.
    rows = {"masks, packed bits": (0, packed, seconds, masks.density())}
    if model_width is not None:
        rows["masks, a boolean a weight"] = (0, pairs * width * model_width, np.nan, 1)
    columns = np.array(list(rows.values()), float).T
    return Efficiency(systems=tuple(rows), **dict(zip(Efficiency.array_axes(), columns, strict=True)))
