"""Where calls enter a gated model: here `pair_ids` is taken out of the arguments and the route is decided.

The model's forward is not the only door. `generate` refuses arguments that it does not know and runs the
encoder before any forward of the model; and users call the base model, the encoder or the decoder
themselves. Whichever door is entered first decides, the ones behind it follow (`Routing.enter`).
"""

import functools
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from nspec_hf.core import RoutingError
from nspec_hf.gating.routing import Route, Routing


def called_from_outside(model: PreTrainedModel, inside: Iterable[str]) -> list[nn.Module]:
    """Return the model, and those in it that hold one of these modules: base model, encoder, decoder."""
    names = list(inside)
    return [
        module
        for path, module in model.named_modules()
        if module is model
        or (isinstance(module, PreTrainedModel) and any(name.startswith(f"{path}.") for name in names))
    ]


def warn_replaced(name: str, module: nn.Module) -> None:
    """Warn that a method could not be given back."""
    warnings.warn(
        f"{type(module).__name__}.{name} was replaced again after the gate was attached, so it cannot be "
        "given back; the gate inside it now lets everything pass",
        stacklevel=4,
    )


class Holder(Protocol):
    """What a door belongs to: the gate or another attachment."""

    def check_in_place(self) -> None:
        """Raise if it no longer acts where it should."""


class Door:
    """The forward of one module that is called from outside, with a hook before it and one behind it.

    Args:
        module: The module.
        routing: Where the route is decided.
        holder: The gate that the door belongs to, for whoever finds the hook.
        outermost: Whether the module is the model itself.
    """

    def __init__(self, module: nn.Module, routing: Routing, holder: Holder, outermost: bool) -> None:
        """Remember the module; it is not touched before `open`."""
        self.module = module
        self.holder = holder
        self._routing = routing
        self._outermost = outermost
        self._parameters = tuple(inspect.signature(module.forward).parameters)
        self._handles: list[RemovableHandle] = []

    def open(self) -> None:
        """Add the hooks."""
        self._handles = [
            self.module.register_forward_pre_hook(self.enter, with_kwargs=True),
            # Also after a forward that raised, so that its route is not left behind.
            self.module.register_forward_hook(self.leave, always_call=True),
        ]

    def close(self) -> None:
        """Remove them."""
        while self._handles:
            self._handles.pop().remove()

    @property
    def in_place(self) -> list[bool]:
        """For each hook that was added, whether it is still there."""
        hooks = (self.module._forward_pre_hooks, self.module._forward_hooks)
        return [handle.id in found for handle, found in zip(self._handles, hooks, strict=False)]

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Take `pair_ids` out of the arguments and decide the route."""
        if getattr(module, "_is_replica", False):
            raise RoutingError(
                "nn.DataParallel runs copies of the model in threads that share one gate, so rows would get "
                "each other's pairs; start one process a device with `accelerate launch` or `torchrun`"
            )
        if self._outermost and not torch.compiler.is_compiling():
            self.holder.check_in_place()
        inputs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        pair_ids = inputs.pop("pair_ids", None)
        self._routing.enter(self, pair_ids, inputs, self._outermost)
        return args, {name: value for name, value in kwargs.items() if name != "pair_ids"}

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        """End the call, and let its outputs bring the route back when the backward pass reaches them."""
        route = self._routing.leave(self)
        if route is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(functools.partial(self._return_to, route))

    def _return_to(self, route: Route, grad: Tensor) -> None:
        parts = () if self._handles else self.module.modules()
        if any(getattr(part, "gradient_checkpointing", False) for part in parts):
            raise RoutingError(
                "the gate was detached between the forward pass and its backward pass, which has to run "
                "layers again under gradient checkpointing; call backward() first"
            )
        self._routing.last = route


class RoutedGenerate:
    """`model.generate` with one more argument, `pair_ids`: index of each sample's pair, [B].

    Stands on the model in place of the method. It is an object, not a closure, so that a deep copy of the
    model gets one that belongs to the copy.
    """

    def __init__(self, model: PreTrainedModel, routing: Routing) -> None:
        """Put it there."""
        self._model = model
        self._routing: Routing | None = routing
        self._was_on_instance = "generate" in vars(model)
        functools.update_wrapper(self, model.generate)
        model.generate = self

    def __call__(self, *args: Any, pair_ids: Any = None, **kwargs: Any) -> Any:
        """Generate with one route for the encoder and for all steps of all beams."""
        if self._routing is None:
            return self.__wrapped__(*args, **kwargs)
        inputs = {**({"inputs": args[0]} if args else {}), **kwargs, "prompt": self._prompt(kwargs)}
        with self._routing.generation(pair_ids, inputs):
            return self.__wrapped__(*args, **kwargs)

    @property
    def in_place(self) -> bool:
        """Whether this is what the model's `generate` is."""
        return vars(self._model).get("generate") is self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be looked up: read back by its name, the method would be this object."""
        own = {name: vars(self)[name] for name in ("_model", "_routing", "_was_on_instance")}
        return own | {"wrapped": self.__wrapped__ if self._was_on_instance else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stand in for the `generate` of a model that was copied or unpickled."""
        wrapped = state.pop("wrapped")
        vars(self).update(state)
        functools.update_wrapper(self, wrapped or MethodType(type(self._model).generate, self._model))

    def give_back(self) -> None:
        """Put back what was there; where somebody has wrapped this since, it lets all pass from now on."""
        self._routing = None
        if not self.in_place:
            warn_replaced("generate", self._model)
        elif self._was_on_instance:
            self._model.generate = self.__wrapped__
        else:
            del self._model.generate

    def _prompt(self, kwargs: Mapping[str, Any]) -> Tensor:
        """Return the tokens that every row's decoder starts from, shape [1, 0 to 2 or more]."""
        config = kwargs.get("generation_config") or self._model.generation_config
        ids: list[int] = []
        for name in ("decoder_start_token_id", "forced_bos_token_id"):
            value = kwargs.get(name)
            value = getattr(config, name, None) if value is None else value
            ids += [] if value is None else torch.as_tensor(value).reshape(-1).tolist()
        return torch.tensor([ids], dtype=torch.long)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
