"""What the other processes of a run have, where there are any; alone, each function is the identity.

Works with `torch.distributed` however it was started (accelerate, torchrun, the Trainer). Every process
must call these functions in the same order.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nspec_hf.core.errors import ConfigError


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


def in_step(batches: Iterable[Any]) -> Iterator[Any | None]:
    """Yield batches, then `None` until the other processes are through theirs: all take as many steps."""
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if not int(add_up(torch.tensor(int(batch is not None)))):
            return
        yield batch


def real_rows(loader: object, batch: Mapping[str, Tensor]) -> int | None:
    """Return how many of a batch's rows are no duplicates, or `None` for all of them.

    A loader that accelerate prepared fills up its last batches with rows from the front (`even_batches`),
    so that all processes get equally many. `loader.remainder` tells how many rows of the last step are
    real; these come first in the order of the processes, as in `Accelerator.gather_for_metrics`.

    Raises:
        ConfigError: If the loader shards an iterable data set, since then duplicates cannot be known.
    """
    if type(getattr(loader, "dataset", None)).__name__ == "IterableDatasetShard" and world_size() > 1:
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


def _shareable(tensor: Tensor) -> Tensor:
    # NCCL only moves what lies on a GPU, gloo best what lies in memory.
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor.cpu()
