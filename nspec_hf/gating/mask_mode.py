"""What a gate does at one site: compute all neurons, silence those that the row's pair does not keep.

Shape letters: P = pairs, U = masks that are stored, R = rows along the first axis (samples, beams of samples,
or 1 for all), L = tokens, D = model width, F = neurons of the site, B = its bytes: a bit a neuron.

A site is taken over by replacing its linear's `forward` on the instance, not by a hook: torch.compile
guards `forward` but ignores hooks that come after the first compiled call, and inside `forward` FSDP and
ZeRO-3 still hold the whole weight. The modes of a gate are subclasses of `GatedSite`, one a file.

Where the model is, masks are one bit a neuron too: a row for each mask, and for each pair the number of its
row. Booleans are made for the rows of a batch alone: forty thousand composed pairs take what their parts do.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nspec_hf.gating.config import GateConfig
from nspec_hf.gating.entry_points import TakenOver, links_hold
from nspec_hf.gating.internals import bias_of
from nspec_hf.gating.routing import Routing
from nspec_hf.masks import Held, SiteBits
from nspec_hf.recording import Site, linear_at

_BIT_8 = Held(torch.tensor([1 << number for number in range(8)], dtype=torch.uint8))


class _Placed(NamedTuple):
    """A site's masks on one device."""

    bits_UB: Tensor
    """uint8, eight neurons a byte. Shape [U, B]."""
    row_P: Tensor
    """The row of each pair, int64."""
    bit_8: Tensor
    """Which neuron of a byte is which bit, uint8."""


class GatedSite(TakenOver):
    """One site of a plain model in the hands of a gate; a mode says what it computes by `_forwards`."""

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
        parents = [(model.get_submodule(parent), child) for parent, _, child in paths]
        self._links = [(parent, child, parent.get_submodule(child)) for parent, child in parents]
        self._masks = masks
        self._place(places[0] if places else torch.device("cpu"))

    facts = ""
    """What the mode has to say in `status()`, beyond what every gate says."""

    @classmethod
    def at_all(
        cls, model: nn.Module, masks: Mapping[Site, SiteBits], routing: Routing, config: GateConfig
    ) -> "list[GatedSite]":
        """Return the mode at all sites of a gate."""
        return [cls(model, site, bits, routing, config) for site, bits in masks.items()]

    def take_masks(self, masks: SiteBits) -> None:
        """Go on with these masks, which may be those of more pairs than before."""
        self._masks = masks
        self._place(self.placed.bits_UB.device)

    @property
    def displaced(self) -> Sequence[str]:
        """The site, if something stands between a block and a linear that was taken over (LoRA …)."""
        taken = {id(takeover.module) for takeover in self._taken}
        links = [link for link in self._links if id(link[2]) in taken]
        return [] if links_hold(links) else [self.site.name]

    def keep(self, rows: Tensor) -> Tensor:
        """Return the masks of the rows that a linear has or makes: bool [R, 1, F] for a tensor [R, L, …].

        Raises:
            RoutingError: If a row's pair is not known.
        """
        route = self._routing.current()
        kept = None if torch.compiler.is_compiling() else self._routing.here.kept
        known = None if kept is None else kept.get((self, route, rows.shape[0]))
        if known is None:
            known = self._keep_of(route.rows_for(rows), rows.device)
            if kept is not None:
                kept[self, route, rows.shape[0]] = known  # `generate` asks the same again at each step
        return known.view(known.shape[0], *[1] * (rows.dim() - 2), known.shape[1])

    def _keep_of(self, pair_R: Tensor | int, device: torch.device) -> Tensor:
        """Return the masks of some pairs, bool [R, F], or of one, [F]."""
        if self.placed.bits_UB.device != device:  # the model may have been moved since the gate was made
            self._place(device)
        bits_UB, row_P, bit_8 = self.placed
        bits_RB = bits_UB[row_P[pair_R]]
        return (bits_RB[..., None] & bit_8).ne(0).flatten(-2)[..., : self._masks.width]

    def _place(self, device: torch.device) -> None:
        self.placed = _Placed(self._masks.bits.on(device), self._masks.rows.on(device), _BIT_8.on(device))


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
