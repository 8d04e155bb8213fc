"""ActivationStats: how often each neuron fired for each pair, and how important it was.

Shape letters: P = pairs, F = neurons of a site.

Everything is kept by site name, since encoder and decoder may differ in width and depth. Counts are int64 and
sums of importance float64, so adding up passes, files or processes gives what one pass over all text would
give: counts to the last unit.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    EmptyPairError,
    Pair,
    SiteMismatchError,
    add_up,
    as_pairs,
    pair_index,
    read_artifact,
    write_artifact,
)
from nspec_hf.recording.config import SIDES, RecordConfig
from nspec_hf.recording.sites import Site, as_sites, site_from_name

STATS_KIND = "nspec_stats"
SCORES = ("av", "te")

# What must agree before two statistics may be added: each of these changes what a number means.
_MEANING = ("count", "active_on", "av", "te", "label_smoothing")


class ActivationStats:
    """Counts and importance of every neuron, per pair and site; fresh ones are zero.

    Args:
        pairs: The pairs, in the order that `pair_ids` indexes.
        sites: The sites, or their names and widths.
        config: How it was counted.
        base: What was recorded: `id`, `revision` and `fingerprint` of the model.
        corpus: What text it was recorded on, anything that JSON can hold.

    `counts[site]` is int64 [P, F]; `sums["av"]` and `sums["te"]`, where recorded, hold float64 [P, F] by
    site; `token_counts[side]` and `sentence_counts` are int64 [P].

    Raises:
        ConfigError: If there is no pair or no site, or one is named twice.
    """

    def __init__(
        self,
        pairs: Iterable[str],
        sites: Iterable[Site] | Mapping[str, int],
        config: RecordConfig | None = None,
        base: Mapping[str, Any] | None = None,
        corpus: Mapping[str, Any] | None = None,
    ) -> None:
        self.pairs = as_pairs(pairs)
        self.sites = as_sites(sites)
        self.config = config or RecordConfig()
        self.base, self.corpus = dict(base or {}), dict(corpus or {})
        names = [site.name for site in self.sites]
        if not self.pairs or not names or len(set(names)) != len(names):
            raise ConfigError(f"statistics need pairs and sites, each once; got {self.pairs} and {names}")
        rows = len(self.pairs)
        with torch.inference_mode(False):  # what is made inside of it could not be added to outside
            self.counts = {site.name: torch.zeros(rows, site.width, dtype=torch.int64) for site in self.sites}
            self.sums = {
                score: {
                    name: torch.zeros(counts.shape, dtype=torch.float64)
                    for name, counts in self.counts.items()
                }
                for score in SCORES
                if getattr(self.config, score)
            }
            self.token_counts = {side: torch.zeros(rows, dtype=torch.int64) for side in SIDES}
            self.sentence_counts = torch.zeros(rows, dtype=torch.int64)

    def __getitem__(self, pair: str) -> dict[str, Tensor]:
        """Return the counts of one pair by site name, each int64 [F].

        Raises:
            UnknownPairError: If the pair was not recorded.
        """
        row = self._row(pair)
        return {name: counts_PF[row] for name, counts_PF in self.counts.items()}

    def __repr__(self) -> str:
        """Print what there is in a line."""
        total = int(self.sentence_counts.sum())
        shape = f"{len(self.pairs)} pairs, {len(self.sites)} sites"
        return f"ActivationStats({shape}, {total} sentences, count={self.config.count!r})"

    def tokens(self, pair: str, side: str | None = None) -> int:
        """Return how many tokens of a pair were counted, padding left out; without a side, those of both.

        Raises:
            UnknownPairError: If the pair was not recorded.
            ConfigError: If there is no such side.
        """
        if side is not None and side not in SIDES:
            raise ConfigError(f"sides are 'encoder' and 'decoder', got {side!r}")
        row = self._row(pair)
        return sum(int(self.token_counts[name][row]) for name in (SIDES if side is None else (side,)))

    def sentences(self, pair: str) -> int:
        """Return how many sentences of a pair were counted."""
        return int(self.sentence_counts[self._row(pair)])

    def importance(self, score: str) -> dict[str, Tensor]:
        """Return Θ of Xie et al. 2021 by site name: the mean over tokens, float64 [P, F].

        Args:
            score: `av`, the mean of |h| (Eq. 5), or `te`, the mean of |∂L/∂h · h| (Eq. 7, absolute as
                in the released code), where L is the sum of the target tokens' cross entropies.

        Raises:
            ConfigError: If that score was not recorded.
            EmptyPairError: If a pair has no tokens.
        """
        if score not in self.sums:
            raise ConfigError(
                f"importance {score!r} was not recorded (recorded: {', '.join(self.sums) or 'none'}); record "
                "with RecordConfig(av=True) or RecordConfig(te=True)"
            )
        self.refuse_empty()
        return {
            site.name: self.sums[score][site.name] / self.token_counts[site.positions].unsqueeze(-1)
            for site in self.sites
        }

    def refuse_empty(self) -> None:
        """Check that every pair was seen, and some neuron fired for it.

        Raises:
            EmptyPairError: With the names of those that were not.
        """
        fired_P = sum((counts_PF.sum(1).cpu() for counts_PF in self.counts.values()), torch.zeros(1))
        found = {
            "no sentence of {} was recorded; leave it out or add text of it": self.sentence_counts.cpu(),
            "no neuron ever fired for {}: the model or the text is broken": fired_P,
        }
        for message, count_P in found.items():
            empty = [pair for pair, count in zip(self.pairs, count_P.tolist(), strict=True) if not count]
            if empty:
                raise EmptyPairError(message.format(", ".join(empty)))

    def merge(self, other: "ActivationStats") -> "ActivationStats":
        """Add the other's numbers to these, in place, and return these.

        Where their texts differ, `corpus` becomes a list of them: `{"merged": [{…}, {…}]}`.

        Raises:
            ConfigError: If the pairs, or how they were counted, differ.
            SiteMismatchError: If the sites differ.
        """
        if self.pairs != other.pairs:
            raise ConfigError(
                f"pairs differ, so these cannot be added: {', '.join(self.pairs)} | {', '.join(other.pairs)}"
            )
        if self.sites != other.sites:
            names = sorted({str(site) for site in set(self.sites) ^ set(other.sites)})
            raise SiteMismatchError(f"statistics of other sites cannot be added; not in both: {names}")
        for name in _MEANING:
            ours, theirs = getattr(self.config, name), getattr(other.config, name)
            if (ours or None) != (theirs or None):  # no smoothing is 0 too
                raise ConfigError(f"statistics with {name}={ours!r} and {name}={theirs!r} cannot be added")
        if self.base.get("fingerprint") != other.base.get("fingerprint"):
            raise ConfigError(
                f"statistics of two models cannot be added: their weights have the fingerprints "
                f"{self.base.get('fingerprint')} and {other.base.get('fingerprint')}"
            )
        self.corpus = _together(self.corpus, other.corpus)
        theirs = other.tensors()
        for name, tensor in self.tensors().items():
            tensor += theirs[name].to(tensor.device)
        return self

    def merge_across_processes(self) -> "ActivationStats":
        """Replace the numbers of each process by the sum over all, in place; alone, change nothing.

        Every process must call this with the same pairs, sites and settings.
        """
        for tensor in self.tensors().values():
            add_up(tensor)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Return all numbers by the names under which they are saved; a change to them is a change here."""
        named = {f"counts/{name}": tensor for name, tensor in self.counts.items()}
        for score, sums in self.sums.items():
            named |= {f"{score}/{name}": tensor for name, tensor in sums.items()}
        named |= {f"tokens/{side}": tensor for side, tensor in self.token_counts.items()}
        return named | {"sentences": self.sentence_counts}

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file in one step; see `nspec_hf.core.artifact`.

        Raises:
            OSError: If it cannot be written; a file that was there before is then still whole.
        """
        metadata = {
            "pairs": [str(pair) for pair in self.pairs],
            "sites": [asdict(site) for site in self.sites],
            "config": asdict(self.config),
            "base": self.base,
            "corpus": self.corpus,
        }
        write_artifact(path, self.tensors(), metadata, STATS_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ActivationStats":
        """Read what `save` wrote.

        Raises:
            ArtifactError: If the file is cut off, altered, of another kind or of a newer format.
            FileNotFoundError: If there is no such file.
        """
        tensors, metadata = read_artifact(path, STATS_KIND)
        try:
            sites = [Site(**site) for site in metadata["sites"]]
            shapes = {f"counts/{site.name}": (len(metadata["pairs"]), site.width) for site in sites}
            # Checked first: a width that no tensor has would ask for memory that there is not.
            if any(tuple(tensors[name].shape) != shape for name, shape in shapes.items()):
                raise ConfigError("counts have other shapes")
            if sites != [site_from_name(site.name, site.width) for site in sites]:
                raise ConfigError("a site is not what its name says")
            config = RecordConfig(**{**metadata["config"], "kinds": tuple(metadata["config"]["kinds"])})
            stats = cls(metadata["pairs"], sites, config, metadata["base"], metadata["corpus"])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(
                f"{path} does not describe statistics ({error!r}); record them again"
            ) from error
        own = stats.tensors()
        described, given = (
            {name: (tensor.shape, tensor.dtype) for name, tensor in named.items()} for named in (own, tensors)
        )
        if described != given:
            raise ArtifactError(f"the tensors of {path} are not those that it describes; record them again")
        for name, tensor in own.items():
            if not (torch.isfinite(tensors[name]) & (tensors[name] >= 0)).all():
                raise ArtifactError(f"{name} of {path} is negative or not finite; record them again")
            tensor.copy_(tensors[name])
        return stats

    def subset(self, pairs: Iterable[str]) -> "ActivationStats":
        """Return copies of some pairs' numbers, in the order asked for.

        Raises:
            UnknownPairError: If a pair was not recorded.
        """
        pairs = as_pairs(pairs)
        rows = [self._row(pair) for pair in pairs]
        chosen = type(self)(pairs, self.sites, replace(self.config), self.base, self.corpus)
        own = self.tensors()
        for name, tensor in chosen.tensors().items():
            tensor.copy_(own[name][rows])
        return chosen

    def _row(self, pair: str) -> int:
        return pair_index(self.pairs, Pair(pair), "statistics")


def _together(*corpora: Mapping[str, Any]) -> dict[str, Any]:
    """Return what says of several texts what each was, and of one, or of one again, what that says."""
    texts: list[Any] = []
    for corpus in corpora:
        merged = corpus.get("merged") if len(corpus) == 1 else None
        these = merged if isinstance(merged, list) else [corpus]
        texts += [each for each in these if each and each not in texts]
    return {"merged": texts} if len(texts) > 1 else dict(*texts)
