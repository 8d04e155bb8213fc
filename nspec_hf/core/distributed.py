"""What the other processes of a run have, where there are any; alone, each function is the identity.

Works with `torch.distributed` however it was started (accelerate, torchrun, the Trainer). Every process
must call these functions in the same order.

FSDP2 and DeepSpeed's ZeRO-3 give each process a part of every weight and gather the whole of a layer while it
runs. So all processes must run such a model equally often, and what looks at its weights asks here.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nspec_hf.core.errors import ConfigError

_Method = TypeVar("_Method", bound=Callable[..., Any])
_Batch = TypeVar("_Batch")


def world_size() -> int:
    """Return how many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def add_up(tensor: Tensor) -> Tensor:
    """Replace a tensor's values by the sum over all processes, in place."""
    if world_size() > 1:
        shared = _shareable(tensor)
        dist.all_reduce(shared)
        if shared is not tensor:
            tensor.copy_(shared)
    return tensor


def gather(tensor: Tensor) -> list[Tensor]:
    """Return every process's tensor, in the order of the processes; all have one shape."""
    if world_size() == 1:
        return [tensor]
    shared = _shareable(tensor)
    parts = [torch.empty_like(shared) for _ in range(world_size())]
    dist.all_gather(parts, shared)
    return [part.to(tensor.device) for part in parts]


def is_spread(model: nn.Module) -> bool:
    """Return whether each process has a part of the model's weights only, by FSDP2 or ZeRO-3."""
    # By name: the class's module is not imported before something is sharded.
    return _is_fsdp2(model) or hasattr(next(model.parameters(), None), "ds_id")


def whole(weight: Tensor) -> Tensor:
    """Return the whole of a weight, detached; where processes have parts of it, all must ask for it."""
    held: Any = weight.detach()
    if hasattr(held, "full_tensor"):
        return held.full_tensor()
    if hasattr(weight, "ds_id"):
        with import_module("deepspeed").zero.GatheredParameters([weight]):
            return weight.detach().clone()
    return held


def part(weight: Tensor) -> Tensor:
    """Return what this process has of a weight."""
    held: Any = getattr(weight, "ds_tensor", weight)
    return held.to_local() if hasattr(held, "to_local") else held


def generating(model: nn.Module, generate: _Method) -> _Method:
    """Return a model's `generate` as processes call it together that have parts of its weights; else itself.

    The traps: FSDP2 gathers what lies outside of the layers (embeddings) in the model's own forward pass
    alone, but `generate` runs the encoder without it; and a process that has written its sentences to their
    ends would leave the others waiting.
    """
    if world_size() == 1 or not is_spread(model):
        return generate

    @functools.wraps(generate)
    def run(*args: Any, **kwargs: Any) -> Any:
        kwargs = {"synced_gpus": True, **kwargs}
        if not _is_fsdp2(model):
            return generate(*args, **kwargs)
        # FSDP2 wraps an attribute of the model, which must not keep it.
        setattr(model, _GATHERED, generate)
        import_module("torch.distributed.fsdp").register_fsdp_forward_method(model, _GATHERED)
        wrapped = getattr(model, _GATHERED)
        delattr(model, _GATHERED)
        return wrapped(*args, **kwargs)

    return cast(_Method, run)


def in_step(batches: Iterable[Any]) -> Iterator[Any | None]:
    """Yield batches, then `None` until the other processes are through theirs: all take as many steps."""
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if not int(add_up(torch.tensor(int(batch is not None)))):
            return
        yield batch


def as_often(model: nn.Module, batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, bool]]:
    """Yield the batches that a model is to run, each with whether it counts.

    Where processes have parts of its weights, all must run it equally often: one that is through its batches
    gets its last one again, and that does not count.

    Raises:
        ConfigError: If one of the processes has no batch at all; then all of them raise it.
    """
    if world_size() == 1 or not is_spread(model):
        yield from ((batch, True) for batch in batches)
        return
    last: Any = None
    for batch in in_step(batches):
        if last is None and int(add_up(torch.tensor(int(batch is None)))):
            raise ConfigError("the processes share out the model's weights, so each needs text of its own")
        last = last if batch is None else batch
        yield last, batch is not None


def real_rows(loader: object, batch: Mapping[str, Tensor]) -> int | None:
    """Return how many of a batch's rows are no duplicates, or `None` for all of them.

    A loader that accelerate prepared fills up its last batches with rows from the front (`even_batches`),
    so that all processes get equally many. `loader.remainder` tells how many rows of the last step are
    real; these come first in the order of the processes, as in `Accelerator.gather_for_metrics`. One process
    gets no duplicates, and a sampler whose batches differ in size a remainder that is not that of the last.

    Raises:
        ConfigError: If the loader shards an iterable data set, since then duplicates cannot be known.
    """
    if world_size() == 1:
        return None
    if type(getattr(loader, "dataset", None)).__name__ == "IterableDatasetShard":
        raise ConfigError(
            "this loader shards an iterable data set by repeating examples, which would be counted twice; "
            "prepare it with DataLoaderConfiguration(dispatch_batches=True), or use PairBatchSampler"
        )
    remainder = getattr(loader, "remainder", -1)
    fills_up = getattr(getattr(loader, "batch_sampler", None), "even_batches", True)
    if not getattr(loader, "end_of_dataloader", False) or remainder <= 0 or not fills_up:
        return None
    rows = len(next(iter(batch.values())))
    return min(max(remainder - rank() * rows, 0), rows)


_GATHERED = "_nspec_gathered"


def _is_fsdp2(model: nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(model).__mro__)


def _shareable(tensor: Tensor) -> Tensor:
    # NCCL only moves what lies on a GPU, gloo best what lies in memory.
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu()
