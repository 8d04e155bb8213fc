"""Where calls enter a gated model: here `pair_ids` is taken out of the arguments and the route is decided.

The model's forward is not the only entry. `generate` refuses arguments that it does not know and runs the
encoder before any forward of the model; and users call the base model, the encoder or the decoder
themselves. Whichever is entered first decides, the ones inside it follow (`Routing.enter`).
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from nspec_hf.core import RoutingError, generating, warn
from nspec_hf.gating.internals import generation_setting, hooks_of, is_replica, runs_layers_again
from nspec_hf.gating.route import Route
from nspec_hf.gating.routing import Routing, tensors_in
from nspec_hf.recording import check_decoder_inputs_given


class Takeover:
    """A method of a module, or of what else has one, replaced on the instance until it is given back."""

    def __init__(self, module: Any, replacement: Callable[..., Any], name: str = "forward") -> None:
        """Replace it."""
        self.module = module
        self.original = getattr(module, name)
        """The method that was there: the class's, or what another library had put on the instance."""
        self._name = name
        self._was_on_instance = name in vars(module)
        self._replacement: Callable[..., Any] | None = replacement
        self.__doc__ = self.original.__doc__
        setattr(module, name, self)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The method, for those who ask for its signature."""
        return self.original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the method."""
        method = self.original if self._replacement is None else self._replacement
        return method(*args, **kwargs)

    @property
    def in_place(self) -> bool:
        """Whether this is what the module runs, itself or through another that took it over later."""
        holder = vars(self.module).get(self._name)
        # What FSDP2 puts around a method tells by `__wrapped__` what is inside, as a Takeover does.
        while holder is not None and holder is not self:
            holder = getattr(holder, "__wrapped__", None)
        return holder is self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a method of the class: read back by its name, it would be what replaces it."""
        return {**vars(self), "original": self.original if self._was_on_instance else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stand in for the method of a module that was copied or unpickled."""
        vars(self).update(state)
        if not self._was_on_instance:
            self.original = MethodType(getattr(type(self.module), self._name), self.module)

    def give_back(self) -> None:
        """Put the original back; where another library has wrapped this since, it runs the original."""
        self._replacement = None
        if vars(self.module).get(self._name) is not self:
            if self.in_place:
                return  # FSDP2 has wrapped it, and says so
            warn(
                f"{type(self.module).__name__}.{self._name} was replaced again after the gate was attached, "
                "so it cannot be given back; the gate inside it now lets everything pass"
            )
        elif self._was_on_instance:
            setattr(self.module, self._name, self.original)
        else:
            delattr(self.module, self._name)


_Link = tuple[nn.Module, str, nn.Module]
"""A module, the name of a child, and the child."""


def links_hold(links: Sequence[_Link]) -> bool:
    """Return whether each module still has that child."""
    return all(holder._modules.get(name) is child for holder, name, child in links)


class Home:
    """Where a module is inside a model: to be asked at each call whether it still is there."""

    def __init__(self, model: nn.Module, path: str) -> None:
        """Remember the way to it."""
        self.path = path
        self._model, self._module = model, model.get_submodule(path)
        self._links = self._links_of(path)

    @property
    def holds(self) -> bool:
        """Whether the model still has the module, in its place or inside of what now wraps it."""
        if not links_hold(self._links):
            paths = (path for path, module in self._model.named_modules() if module is self._module)
            path = next(paths, None)
            if path is None:
                return False
            self._links = self._links_of(path)
        return True

    def _links_of(self, path: str) -> list[_Link]:
        links, holder = list[_Link](), self._model
        for name in path.split(".") if path else ():
            links.append((holder, name, holder.get_submodule(name)))
            holder = links[-1][2]
        return links


class TakenOver:
    """Modules whose forwards are replaced from `attach` to `detach`; by what, `_forwards` says.

    All that an attachment does inside a model is done by such parts.
    """

    displaced: Sequence[str] = ()
    """What it cannot act on now, though the model still has the modules; by the names of sites."""

    def __init__(self) -> None:
        self._taken: list[Takeover] = []

    def attach(self) -> None:
        """Take the modules over."""
        for module, forward in self._forwards():
            # One by one, so that `detach` knows of those before one that fails.
            self._taken.append(Takeover(module, forward))

    def detach(self) -> None:
        """Give them back, the last one first."""
        while self._taken:
            self._taken.pop().give_back()

    @property
    def modules(self) -> list[nn.Module]:
        """What is taken over now."""
        return [taken.module for taken in self._taken]

    @property
    def in_place(self) -> list[bool]:
        """For each module, whether it still is taken over."""
        return [taken.in_place for taken in self._taken]

    def _forwards(self) -> Sequence[tuple[nn.Module, Callable[..., Any]]]:
        """Return the modules to take over and what each of them runs instead."""
        raise NotImplementedError


class Entry(TakenOver):
    """One module that is called from outside: a hook before its forward, one behind it, and its `generate`.

    The check is what has to be passed before each forward pass. Only the model itself takes `generate`.
    """

    def __init__(
        self, module: nn.Module, routing: Routing, check: Callable[[], None], is_model: bool
    ) -> None:
        """Remember the module; it is not touched before `attach`."""
        super().__init__()
        self.module = module
        self._routing = routing
        self._check, self._is_model = check, is_model
        self._parameters = tuple(inspect.signature(module.forward).parameters)
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Put hooks and `generate` there."""
        self._handles = [
            self.module.register_forward_pre_hook(self.enter, with_kwargs=True),
            # Also after a forward that raised, so that its route is not left behind.
            self.module.register_forward_hook(self.leave, always_call=True),
        ]
        if self._is_model and callable(getattr(self.module, "generate", None)):
            self._taken.append(Takeover(self.module, self.generate, "generate"))

    def detach(self) -> None:
        """Take them away."""
        while self._handles:
            self._handles.pop().remove()
        super().detach()

    @property
    def in_place(self) -> list[bool]:
        """For each thing that was put there, whether it still is."""
        pairs = zip(self._handles, hooks_of(self.module), strict=False)
        return [*(handle.id in hooks for handle, hooks in pairs), *super().in_place]

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Take `pair_ids` out of the arguments and decide the route."""
        if is_replica(module):
            raise RoutingError(
                "nn.DataParallel runs copies of the model in threads that share one gate, so rows would get "
                "each other's pairs; start one process a device with `accelerate launch` or `torchrun`"
            )
        inputs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        pair_ids = inputs.pop("pair_ids", None)
        frame = None if torch.compiler.is_compiling() else sys._getframe(1)
        if self._routing.enter(self, pair_ids, inputs, self._is_model, frame):
            # `generate` has asked once for all of its steps.
            if not torch.compiler.is_compiling():
                self._check()
            if self._is_model:
                check_decoder_inputs_given(module, inputs)
            self._carry(None, inputs)
        return args, {name: value for name, value in kwargs.items() if name != "pair_ids"}

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        """End the call, and let its outputs bring the route back when the backward pass reaches them."""
        route = self._routing.here.running
        self._routing.leave(self)
        if route is not None:
            self._carry(route, output)
            if not torch.compiler.is_compiling():
                self._routing.fill(getattr(output, "past_key_values", None), route)

    def generate(self, *args: Any, pair_ids: Any = None, **kwargs: Any) -> Any:
        """Run `generate` with one more argument, `pair_ids` [B]: one route for all steps of all beams."""
        self._check()
        original = self._taken[0].original
        given = {"inputs": args[0]} if args else {}
        # By name, the settings too: transformers takes a generation_config without one.
        given |= dict(zip(inspect.signature(original).parameters, args, strict=False))
        inputs = {**given, **kwargs}
        prompt: list[int] = []  # what every row's decoder starts from
        for name in ("decoder_start_token_id", "forced_bos_token_id"):
            value = generation_setting(self.module, inputs, name)
            prompt += [] if value is None else torch.as_tensor(value).reshape(-1).tolist()
        inputs["prompt"] = torch.tensor([prompt], dtype=torch.long)
        with self._routing.generation(pair_ids, inputs):
            return generating(self.module, original)(*args, **kwargs)

    def _carry(self, route: Route | None, values: Any) -> None:
        """Let tensors set the route of a backward pass that reaches them; None: they come from outside."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        for tensor in self._routing.unseen(tensors_in(values)):
            tensor.register_hook(functools.partial(self._return_to, route))

    def _return_to(self, route: Route | None, grad: Tensor) -> None:
        if not self._handles and runs_layers_again(self.module):
            raise RoutingError(
                "the gate was detached between the forward pass and its backward pass, which has to run "
                "layers again under gradient checkpointing; call backward() first"
            )
        self._routing.reach(route)


def entries_of(
    model: nn.Module, inside: Iterable[str], routing: Routing, check: Callable[[], None]
) -> list[Entry]:
    """Return the entries of a model: itself, and those in it that hold one of these modules.

    The latter are base model, encoder and decoder.
    """
    names = list(inside)
    return [
        Entry(module, routing, check, is_model=module is model)
        for path, module in model.named_modules()
        if module is model
        or (isinstance(module, PreTrainedModel) and any(name.startswith(f"{path}.") for name in names))
    ]
