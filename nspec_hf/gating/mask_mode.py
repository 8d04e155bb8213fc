"""What a gate does at one site: compute all neurons, silence those that the row's pair does not keep.

Shape letters: P = pairs, U = masks that are stored, R = rows along the first axis (samples, beams of samples,
or 1 for all), L = tokens, D = model width, F = neurons of the site, B = its bytes: a bit a neuron.

A site is taken over by replacing its linear's `forward` on the instance, not by a hook: torch.compile
guards `forward` but ignores hooks that come after the first compiled call, and inside `forward` FSDP and
ZeRO-3 still hold the whole weight. The modes of a gate are subclasses of `GatedSite`, one a file.

Where the model is, masks are one bit a neuron too: a row for each mask, and for each pair the number of its
row. Booleans are made for the rows of a batch alone: forty thousand composed pairs take what their parts do.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nspec_hf.gating.config import GateConfig
from nspec_hf.gating.entry_points import TakenOver
from nspec_hf.gating.internals import bias_of
from nspec_hf.gating.routing import Routing
from nspec_hf.masks import Held, PackedMasks, SiteBits
from nspec_hf.recording import Site, linear_at

_BIT_8 = Held(torch.tensor([1 << number for number in range(8)], dtype=torch.uint8))


class _Placed(NamedTuple):
    """A site's masks on one device."""

    device: torch.device
    bits_UB: Tensor
    """uint8, eight neurons a byte. Shape [U, B]."""
    row_P: Tensor
    """The row of each pair, int64."""
    bit_8: Tensor
    """Which neuron of a byte is which bit, uint8."""

    @classmethod
    def of(cls, masks: SiteBits, device: torch.device) -> "_Placed":
        return cls(device, masks.bits.on(device), masks.rows.on(device), _BIT_8.on(device))


class GatedSite(TakenOver):
    """One site in the hands of a gate; a mode says what it computes by `_forwards`.

    Args:
        model: The plain model.
        site: Which of its linears.
        masks: The pairs' masks at the site.
        routing: Tells which pair each row belongs to.
        config: The gate's settings.
    """

    def __init__(
        self, model: nn.Module, site: Site, masks: SiteBits, routing: Routing, config: GateConfig
    ) -> None:
        """Remember what to do; nothing is touched before `attach`."""
        super().__init__()
        self.site = site
        self.linear = site.linear(model)
        self.up = linear_at(model, site.up) if site.up else None
        """The linear of a gated block that is multiplied to the activated branch."""
        # What is quantized may have no parameter, and what accelerate offloads is nowhere until it runs.
        places = [each.device for each in self.linear.parameters() if not each.is_meta]
        self._routing = routing
        self._config = config
        paths = [name.rpartition(".") for name in (site.name, site.up, site.down) if name]
        self._parents = [(model.get_submodule(parent), child) for parent, _, child in paths]
        self._linears = [parent.get_submodule(child) for parent, child in self._parents]
        self._masks = masks
        self.placed = _Placed.of(masks, places[0] if places else torch.device("cpu"))

    facts = ""
    """What the mode has to say in `status()`, beyond what every gate says."""

    @classmethod
    def at_all(
        cls,
        model: nn.Module,
        sites: Sequence[Site],
        keep: PackedMasks,
        routing: Routing,
        config: GateConfig,
    ) -> "list[GatedSite]":
        """Return the mode at all sites of a gate; `keep` has each site's masks by its name."""
        return [cls(model, site, keep.at(site.name), routing, config) for site in sites]

    def take_masks(self, masks: SiteBits) -> None:
        """Go on with these masks, which may be those of more pairs than before."""
        self._masks, self.placed = masks, _Placed.of(masks, self.placed.device)

    @property
    def in_place(self) -> list[bool]:
        """For each module that was taken over, whether it still is, and is still in the model."""
        return [there and not self.displaced for there in super().in_place]

    @property
    def displaced(self) -> list[str]:
        """The site, if a module that was taken over is no longer what the model has there (LoRA …)."""
        taken = {id(takeover.module) for takeover in self._taken}
        return [
            self.site.name
            for (parent, child), linear in zip(self._parents, self._linears, strict=True)
            if parent._modules.get(child) is not linear and id(linear) in taken
        ][:1]

    def keep(self, rows: Tensor) -> Tensor:
        """Return the masks of the rows that a linear has or makes: bool [R, 1, F] for a tensor [R, L, …].

        Raises:
            RoutingError: If a row's pair is not known.
        """
        route = self._routing.current()
        kept = None if torch.compiler.is_compiling() else self._routing.kept
        known = None if kept is None else kept.get((self, route, rows.shape[0]))
        if known is None:
            known = self._keep_of(route.rows_for(rows), rows.device)
            if kept is not None:
                kept[self, route, rows.shape[0]] = known  # `generate` asks the same again at each step
        return known.view(known.shape[0], *[1] * (rows.dim() - 2), known.shape[1])

    def _keep_of(self, pair_R: Tensor | int, device: torch.device) -> Tensor:
        """Return the masks of some pairs, bool [R, F], or of one, [F]."""
        placed = self._on(device)
        bits_RB = placed.bits_UB[placed.row_P[pair_R]]
        return (bits_RB[..., None] & placed.bit_8).ne(0).flatten(-2)[..., : self._masks.width]

    def _on(self, device: torch.device) -> "_Placed":
        """Return the masks where the model is; it may have been moved since the gate was made."""
        placed = self.placed
        if placed.device != device:
            self.placed = placed = _Placed.of(self._masks, device)
        return placed


class MaskedSite(GatedSite):
    """Mode `mask`: all neurons are computed, those not kept are silenced in the output of the linear.

    With z = x W1ᵀ + b1, `silence="neuron"` gives z where kept and 0 elsewhere (Eq. 4 of Tan et al. as the
    paper explains it), `silence="weights"` gives b1 elsewhere: bit for bit what the released code's m ⊙ W1
    gives. In both, a silenced neuron's row of W1 gets a gradient of exactly zero. Sites other than
    feed-forward ones lose their whole output unit, bias included, as in Xie et al.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Compute the linear and silence: x [R, L, D] → [R, L, F]."""
        z = self._taken[0].original(x)
        bias = bias_of(self.linear)
        if self._config.silence == "neuron" or self.site.kind != "ffn" or bias is None:
            return torch.where(self.keep(z), z, 0.0)
        # keep * (z - bias) + bias would round.
        return torch.where(self.keep(z), z, bias.to(z.dtype))

    def _forwards(self) -> list[tuple[nn.Module, Callable[..., Any]]]:
        return [(self.linear, self.forward)]


SITE = MaskedSite
