"""What is reached of the insides of Python, of PyTorch, of FSDP and DeepSpeed, and of `generate`.

All of it may change without a word, so it stands here alone; `tests/gating/test_internals.py` asks each
question of the library itself and fails where a release answers it in another way.
"""

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary as WeakTensorKeyDictionary


def backward_pass() -> int:
    """Return the number of the backward pass that this thread works at now, or -1 outside of one."""
    # A compiled graph is never traced inside a backward pass, and Dynamo cannot trace the question.
    return -1 if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def when_backward_ends(then: Callable[[], Any]) -> None:
    """Call a function at the end of the backward pass that this thread works at."""
    torch.autograd.Variable._execution_engine.queue_callback(then)


def is_running(frame: FrameType | None) -> bool:
    """Return whether a frame is on this thread's stack; where that cannot be asked, it is."""
    if frame is None or torch.compiler.is_compiling():
        return True
    here: FrameType | None = sys._getframe()
    while here is not None and here is not frame:
        here = here.f_back
    return here is frame


def is_replica(module: nn.Module) -> bool:
    """Return whether a module is a copy that nn.DataParallel made for one forward pass in a thread."""
    return getattr(module, "_is_replica", False)


def runs_layers_again(module: nn.Module) -> bool:
    """Return whether gradient checkpointing is on in a model of transformers."""
    return any(getattr(part, "gradient_checkpointing", False) for part in module.modules())


def hooks_of(module: nn.Module) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    """Return the hooks before and behind a module's forward, by the number in their handles."""
    return module._forward_pre_hooks, module._forward_hooks


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process sees a shard of a tensor only: FSDP2, tensor parallelism, ZeRO-3."""
    # By name: the class's module is not imported before something is sharded.
    return type(tensor).__name__ == "DTensor" or not tensor.numel()


def is_plain(linear: nn.Module) -> bool:
    """Return whether a module is an nn.Linear that nothing has changed, with weights that are numbers.

    Not with LoRA, nor quantized: by bitsandbytes, which has classes of its own, by torchao, whose weights are
    parameters of another class behind the same forward, or by `quantize_dynamic`, where `weight` is a method.
    Sharded weights are plain, since they are whole while the layer runs.
    """
    weight = linear._parameters.get("weight")
    if type(linear).forward is not nn.Linear.forward or "forward" in vars(linear) or weight is None:
        return False
    return weight.is_floating_point() and (type(weight) is nn.Parameter or is_sharded(weight))


def bias_of(linear: Any) -> Tensor | None:
    """Return the bias of a linear or of what stands in for one; of `quantize_dynamic` it is a method."""
    bias = getattr(linear, "bias", None)
    return cast("Tensor | None", bias() if callable(bias) else bias)


def generation_setting(model: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """Return a setting as `generate` takes it: an argument, else the given config's, else the model's."""
    if name in arguments:
        return arguments[name]
    configs = (arguments.get("generation_config"), model.generation_config)
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)


def bounds_with_prompt(model: Any, arguments: Mapping[str, Any], length: int) -> dict[str, int]:
    """Return `generate`'s bounds of new tokens for rows that begin with a prompt of so many tokens.

    `generate` counts the tokens that it forces behind the start as new, but none of a prompt; where nothing
    is asked for, it writes 20 new ones, as far as there are positions.
    """
    asked = {
        name: generation_setting(model, arguments, name) for name in ("max_new_tokens", "min_new_tokens")
    }
    if asked["max_new_tokens"] is None and generation_setting(model, arguments, "max_length") is None:
        usual = model.generation_config._get_default_generation_params()["max_length"]
        positions = getattr(model.config, "max_position_embeddings", None) or usual + 1
        asked["max_new_tokens"] = min(usual, positions - 1)
    return {name: max(1, bound - length + 1) for name, bound in asked.items() if bound is not None}
