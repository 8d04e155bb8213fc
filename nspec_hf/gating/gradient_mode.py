"""Mode `gradient`: the forward pass stays dense, but a pair's loss trains only the rows that the pair keeps.

Shape letters: R = rows along the first axis, L = tokens, D = model width, F = neurons of the site.

With z = x W1ᵀ + b1 and the mask m of each row: ∂L/∂W1 and ∂L/∂b1 are computed from m·∂L/∂z, ∂L/∂x from
∂L/∂z. One linear has to use two different gradients, so it gets a backward of its own; scaling the
parameters' gradients afterwards could not tell the pairs of a mixed batch apart.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nspec_hf.core import UnsupportedModelError
from nspec_hf.gating.internals import is_plain
from nspec_hf.gating.mask_mode import GatedSite


class _MaskedRows(torch.autograd.Function):
    """x W1ᵀ + b1, where the gradients of W1 and b1 see only kept neurons."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_FD: Tensor, bias_F: Tensor | None, keep: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_FD, keep)
        # PyTorch picks another matrix product where no gradient is wanted, which rounds differently.
        with torch.enable_grad():
            return nn.functional.linear(x, weight_FD, bias_F).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_FD, keep = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = grad_z @ weight_FD if needs_x else None
        kept_TF = torch.where(keep, grad_z, 0.0).flatten(0, -2)
        grad_weight_FD = kept_TF.T @ x.flatten(0, -2) if needs_weight else None
        return grad_x, grad_weight_FD, kept_TF.sum(0) if needs_bias else None, None


class GradientSite(GatedSite):
    """Mode `gradient` at one site; in a gated block at both branches, since their rows are one neuron."""

    def forward(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """Compute one of the site's linears as ever: x [R, L, D] → [R, L, F]."""
        if not torch.is_grad_enabled():
            self._routing.current()  # a missing pair is an error here too, as it will be in training
            return nn.functional.linear(x, linear.weight, linear.bias)
        tensors = [x, linear.weight, linear.bias]
        device = x.device.type
        if torch.is_autocast_enabled(device):
            # Outside of the function, so that each gradient is cast back to its own tensor's type.
            dtype = torch.get_autocast_dtype(device)
            tensors = [tensor if tensor is None else tensor.to(dtype) for tensor in tensors]
        return _MaskedRows.apply(*tensors, self.keep(x))

    def _forwards(self) -> list[tuple[nn.Module, Callable[..., Tensor]]]:
        linears = [self.linear] if self.up is None else [self.linear, self.up]
        for linear in linears:
            if not is_plain(linear):
                raise UnsupportedModelError(
                    f"mode 'gradient' replaces the backward pass of {self.site.name!r}, which must be a "
                    f"plain nn.Linear; this {type(linear).__name__} has other weights or another forward "
                    "(LoRA, quantized, offloaded), so use mode 'mask'"
                )
        return [(linear, partial(self.forward, linear)) for linear in linears]


SITE = GradientSite
