"""What a gate does at one site: compute all neurons, silence those that the row's pair does not keep.

Shape letters: P = pairs, R = rows along the first axis (samples, beams of samples, or 1 for all), L = tokens,
D = model width, F = neurons of the site.

A site is taken over by replacing its linear's `forward` on the instance, not by a hook: torch.compile
guards `forward` but ignores hooks that come after the first compiled call, and inside `forward` FSDP and
ZeRO-3 still hold the whole weight. The modes of a gate are subclasses of `GatedSite`, one a file.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nspec_hf.gating.config import GateConfig
from nspec_hf.gating.entry_points import Takeover
from nspec_hf.gating.internals import bias_of
from nspec_hf.gating.routing import Routing
from nspec_hf.recording import Site, linear_at


class GatedSite:
    """One site in the hands of a gate; a mode says what it computes by `_forwards`.

    Args:
        model: The plain model.
        site: Which of its linears.
        keep_PF: The pairs' masks, bool; True = keep. Shape [P, F].
        routing: Tells which pair each row belongs to.
        config: The gate's settings.
    """

    def __init__(
        self, model: nn.Module, site: Site, keep_PF: Tensor, routing: Routing, config: GateConfig
    ) -> None:
        """Remember what to do; nothing is touched before `attach`."""
        self.site = site
        self.linear = site.linear(model)
        self.up = linear_at(model, site.up) if site.up else None
        """The linear of a gated block that is multiplied to the activated branch."""
        # What is quantized may have no parameter, and what accelerate offloads is nowhere until it runs.
        places = [each.device for each in self.linear.parameters() if not each.is_meta]
        self.keep_PF = keep_PF.to(places[0]) if places else keep_PF
        self._routing = routing
        self._config = config
        self._taken: list[Takeover] = []
        paths = [name.rpartition(".") for name in (site.name, site.up, site.down) if name]
        self._parents = [(model.get_submodule(parent), child) for parent, _, child in paths]
        self._linears = [parent.get_submodule(child) for parent, child in self._parents]

    facts = ""
    """What the mode has to say in `status()`, beyond what every gate says."""

    @classmethod
    def at_all(
        cls,
        model: nn.Module,
        sites: Sequence[Site],
        keep: Mapping[str, Tensor],
        routing: Routing,
        config: GateConfig,
    ) -> "list[GatedSite]":
        """Return the mode at all sites of a gate; `keep` has each site's masks by its name."""
        return [cls(model, site, keep[site.name], routing, config) for site in sites]

    def take_masks(self, keep_PF: Tensor) -> None:
        """Go on with these masks, which hold more pairs than before."""
        self.keep_PF = keep_PF.to(self.keep_PF.device)

    def attach(self) -> None:
        """Take the site's modules over."""
        for module, forward in self._forwards():
            self._taken.append(Takeover(module, forward))

    def detach(self) -> None:
        """Give them back."""
        while self._taken:
            self._taken.pop().give_back()

    @property
    def in_place(self) -> list[bool]:
        """For each module that was taken over, whether it still is, and is still in the model."""
        return [taken.in_place and not self.displaced for taken in self._taken]

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
        keep_RF = self._keep_on(rows.device)[self._routing.current().rows_for(rows)]
        return keep_RF.view(keep_RF.shape[0], *[1] * (rows.dim() - 2), keep_RF.shape[1])

    def _keep_on(self, device: torch.device) -> Tensor:
        """Return the masks [P, F] where the model is; it may have been moved since the gate was made."""
        if self.keep_PF.device != device:
            self.keep_PF = self.keep_PF.to(device)
        return self.keep_PF

    def _forwards(self) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
        """Return the modules to take over and what each of them runs instead."""
        raise NotImplementedError


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
