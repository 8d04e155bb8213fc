"""The sums of one recording pass: which rows and tokens count, for which pair, added up on the device.

Shape letters: B = samples, L = tokens of a side, F = neurons of a site, P = pairs.

Nothing is copied to the host until the pass is over (only a limit on sentences has to look at each step). A
row that does not count, because it is a duplicate or over the limit, goes to row P of the sums, which is
thrown away.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from nspec_hf.core import RoutingError, SiteMismatchError, UnsupportedModelError, gather, rank, require
from nspec_hf.data import IGNORED
from nspec_hf.recording.sites import Site
from nspec_hf.recording.stats import ActivationStats

# Additions of 0 or 1 that a byte takes before it overflows; see `count_fired`.
_BYTE = 255


class Accumulator:
    """Sums per pair, filled batch by batch.

    Args:
        pairs: P, how many pairs there are.
        two_sided: Whether the model has an encoder and a decoder; else all tokens are the decoder's.
        limit: Sentences to count of each pair, over all processes; None counts all.
    """

    def __init__(self, pairs: int, two_sided: bool, limit: int | None = None) -> None:
        self.pairs, self.two_sided, self.limit = pairs, two_sided, limit
        self._sums: dict[str, Tensor] = {}
        self._seen_P = torch.zeros(pairs, dtype=torch.int64)
        self._outside = self._broken = torch.zeros((), dtype=torch.int64)
        self._rows_B = torch.zeros(0, dtype=torch.int64)
        self._masks: dict[str, Tensor] = {}

    def begin(self, batch: Mapping[str, Tensor], real_rows: int | None = None) -> None:
        """Take in what a batch says about its rows: their pairs and their padding.

        Args:
            batch: `pair_ids` [B], `attention_mask` [B, S], and for two-sided models `labels` [B, T] or
                `decoder_attention_mask` [B, T]. Others read source and target in one sequence, so that
                `labels`, where there are some, are their `input_ids` or -100.
            real_rows: How many of the rows, from the first, count; None counts all.

        Raises:
            RoutingError: If there are no `pair_ids`, or some do not index the pairs.
            ConfigError: If nothing tells the padding of a side, or a model without an encoder gets source and
                target apart.
        """
        self._masks = self._find_tokens(batch)
        rows_B = self._pair_rows(batch)
        if real_rows is not None:
            is_real_B = torch.arange(len(rows_B), device=rows_B.device) < real_rows
            rows_B = torch.where(is_real_B, rows_B, self.pairs)
        self._rows_B = rows_B if self.limit is None else torch.where(self._admit(rows_B), rows_B, self.pairs)

    def end(self, output: Tensor) -> None:
        """Count the batch's sentences and tokens, once the model has shown how many positions it has.

        It gave an output [B, …, V], whose last position what is not finite inside reaches.

        Raises:
            UnsupportedModelError: If it is not finite; on a GPU `fill` raises that.
        """
        is_broken_B = ~torch.isfinite(output[:, -1]).all(-1) & (self._rows_B < self.pairs).to(output.device)
        self._broken = self._broken.to(output.device) + is_broken_B.sum()
        if output.device.type == "cpu":
            self._refuse_broken()
        for side, mask_BL in self._masks.items():
            self._add(f"tokens/{side}", mask_BL.sum(1))
        self._add("sentences", torch.ones_like(self._rows_B))

    def stand_by(self) -> None:
        """Take part in a step in which only other processes have a batch."""
        self._admit(self._seen_P.new_zeros(0))

    def is_full(self) -> bool:
        """Return whether every pair has as many sentences as are wanted."""
        return self.limit is not None and bool((self._seen_P >= self.limit).all())

    def count(self, site: Site, values: Tensor, once: bool) -> None:
        """Add how many tokens of each row fired, [B, L, F] above 0; `once`: at most one a neuron and row."""
        values_BLF, mask_BL = self._placed(site, values)
        fired_BF = count_fired(values_BLF, mask_BL)
        self._add(f"counts/{site.name}", fired_BF.clamp_(max=1) if once else fired_BF)

    def add(self, score: str, site: Site, values: Tensor) -> None:
        """Add values of every token, float64 [B, L, F], to the sums of a score."""
        values_BLF, mask_BL = self._placed(site, values)
        self._add(f"{score}/{site.name}", values_BLF.masked_fill(~mask_BL.unsqueeze(-1), 0).sum(1))

    def fill(self, stats: ActivationStats) -> None:
        """Copy the sums into statistics.

        Raises:
            RoutingError: If `pair_ids` on a GPU did not index the pairs.
            UnsupportedModelError: If an activation or its importance was not finite.
        """
        self._broken = self._broken.cpu() + sum(
            (~torch.isfinite(sums_P[: self.pairs])).any().cpu() for sums_P in self._sums.values()
        )
        self._refuse_broken()
        if int(self._outside):
            raise RoutingError(f"{int(self._outside)} rows have pair_ids outside 0 to {self.pairs - 1}")
        tensors = stats.tensors()
        for name, sums_P in self._sums.items():
            tensors[name].copy_(sums_P[: self.pairs])

    def _refuse_broken(self) -> None:
        if int(self._broken):
            raise UnsupportedModelError(
                "the model's outputs are not finite (NaN or infinite), so its neurons cannot be counted; "
                "load it in float32 or bfloat16, or take a checkpoint from before training broke down"
            )

    def _find_tokens(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        require(
            "attention_mask" in batch, f"a batch without attention_mask hides its padding: {', '.join(batch)}"
        )
        mask_BL = batch["attention_mask"].bool()
        if not self.two_sided:
            _refuse_apart(batch)
            return {"decoder": mask_BL}
        if "labels" in batch:
            return {"encoder": mask_BL, "decoder": batch["labels"] != IGNORED}
        require(
            "decoder_attention_mask" in batch,
            "a batch without labels or decoder_attention_mask hides the decoder's padding; it has "
            + ", ".join(batch),
        )
        return {"encoder": mask_BL, "decoder": batch["decoder_attention_mask"].bool()}

    def _pair_rows(self, batch: Mapping[str, Tensor]) -> Tensor:
        if "pair_ids" not in batch:
            raise RoutingError(
                f"a batch without pair_ids cannot be counted for any pair; it has {', '.join(batch)}. Use "
                "PairCollator, or add the index of each row's pair"
            )
        ids_B = batch["pair_ids"].long()
        rows = len(next(iter(self._masks.values())))
        if ids_B.shape != (rows,):
            raise RoutingError(f"pair_ids is one integer a row, [{rows}], got shape {list(ids_B.shape)}")
        outside_B = (ids_B < 0) | (ids_B >= self.pairs)
        self._outside = self._outside.to(ids_B.device) + outside_B.sum()
        # Looking now would stop a GPU's queue at every step, so there it is looked at in the end.
        if ids_B.device.type == "cpu" and int(self._outside):
            raise RoutingError(
                f"pair_ids {ids_B[outside_B].tolist()} do not index the {self.pairs} pairs that are recorded"
            )
        return torch.where(outside_B, self.pairs, ids_B)

    def _admit(self, rows_B: Tensor) -> Tensor:
        """Return which rows are within the limit: those that one process with all batches would take."""
        mine_BP = rows_B.unsqueeze(1) == torch.arange(self.pairs, device=rows_B.device)
        here_P = mine_BP.sum(0)
        everywhere = gather(here_P)
        self._seen_P = self._seen_P.to(rows_B.device)
        before_P = self._seen_P + sum(everywhere[: rank()], torch.zeros_like(here_P))
        self._seen_P = self._seen_P + sum(everywhere)
        number_B = ((mine_BP.cumsum(0) - 1 + before_P) * mine_BP).sum(1)
        return number_B < (self.limit or 0)

    def _placed(self, site: Site, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values as [B, L, F] and where tokens are among them as bool [B, L]."""
        mask_BL = self._masks[site.positions].to(values.device)
        if values.shape[-1] != site.width:
            raise SiteMismatchError(
                f"{site.name!r} has {site.width} neurons, but showed {values.shape[-1]}; where a gate slices "
                "the model, detach it or use mode 'mask' to record"
            )
        length = values.shape[1] if values.dim() == 3 else mask_BL.shape[1]
        if site.positions == "encoder" and mask_BL.shape[1] % length == 0:
            # Speech encoders shorten their input by a fixed stride (Whisper: 2).
            mask_BL = self._masks["encoder"] = mask_BL[:, :: mask_BL.shape[1] // length]
        rows, length = mask_BL.shape
        # Some models run their feed-forward blocks on [B·L, D].
        if tuple(values.shape[:-1]) not in ((rows, length), (rows * length,)):
            # LED and others fill up what they are given to a multiple of the window that they attend to.
            padded = values.dim() == 3 and len(values) == rows and values.shape[1] > length
            hint = "; or, where the model pads to a window, PairCollator(…, pad_to_multiple_of=WINDOW)"
            raise SiteMismatchError(
                f"{site.name!r} saw activations of shape {list(values.shape)}, but the tokens of the "
                f"{site.positions} have shape {[rows, length]}; check attention_mask and labels"
                f"{hint if padded else ''}"
            )
        return values.reshape(rows, length, site.width), mask_BL

    def _add(self, name: str, rows_BF: Tensor) -> None:
        if name not in self._sums:
            self._sums[name] = rows_BF.new_zeros(self.pairs + 1, *rows_BF.shape[1:])
        self._sums[name].index_add_(0, self._rows_B.to(rows_BF.device), rows_BF)


def _refuse_apart(batch: Mapping[str, Tensor]) -> None:
    """Refuse source and target apart, of which a model without an encoder would be shown the source alone."""
    labels = batch.get("labels")
    ids = batch.get("input_ids")
    together = "decoder_input_ids" not in batch
    if together and labels is not None and ids is not None:
        together = labels.shape == ids.shape and bool(((labels == ids) | (labels == IGNORED)).all())
    require(
        together,
        "the model has no encoder, but input_ids and labels are not one sequence; put source and target into "
        "input_ids, and give as labels the same with -100 for the source and the padding",
    )


def count_fired(values_BLF: Tensor, mask_BL: Tensor) -> Tensor:
    """Return how many tokens of each row fired.

    At padding a neuron would have to be above infinity, so one comparison does both. Eight of its booleans
    are added at a time: they lie in memory as bytes 0 and 1, so that their view as int64 adds eight counters
    by one addition, up to 255 tokens before a byte could overflow. On a CPU this costs a third of a plain
    sum of booleans.

    Args:
        values_BLF: Activations, floating point or bool, [B, L, F].
        mask_BL: Which positions are tokens, bool [B, L].

    Returns:
        int64 [B, F].
    """
    width = values_BLF.shape[-1]
    kind = values_BLF.dtype if values_BLF.is_floating_point() else torch.float32
    least_BL = torch.zeros_like(mask_BL, dtype=kind).masked_fill_(~mask_BL, torch.inf)
    fired_BLF = values_BLF > least_BL.unsqueeze(-1)
    if width % 8:
        fired_BLF = functional.pad(fired_BLF, (0, -width % 8))
    eights_BLX = fired_BLF.contiguous().view(torch.int64)
    parts = [part_BLX.sum(1).view(torch.uint8).long() for part_BLX in eights_BLX.split(_BYTE, dim=1)]
    return sum(parts[1:], parts[0])[:, :width]
