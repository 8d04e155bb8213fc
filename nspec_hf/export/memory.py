"""What an export has in memory: of weights that lie in a file, only those that compute.

Loaded weights are parts of a mapped file. The system counts as a process's memory what was read of it, as
long as it is mapped, and freed memory while the allocator keeps it. None but Linux is told otherwise here.
"""

import ctypes
import mmap
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

_PRESENT, _SWAPPED, _OF_FILE = 1 << 63, 1 << 62, 1 << 61  # of an entry of /proc/self/pagemap


def let_go(*weights: Tensor) -> None:
    """Give the memory of weights that nothing uses any more back to the system; what they hold is lost."""
    for weight in weights:
        for first, size in _pages(weight):
            _system().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
    _return_freed()


def page_out(*weights: Tensor) -> None:
    """Take weights that are as their file has them out of memory until they are used again; none is lost."""
    for weight in weights:
        for first, size in _pages(weight):
            if _is_of_file(first, size):
                _system().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
    _return_freed()


@contextmanager
def a_side_at_a_time(model: PreTrainedModel) -> Iterator[None]:
    """Have the encoder's weights in memory while it computes, the decoder's after that, and then none."""
    encoder: Any = model.get_encoder()
    hooks = (
        encoder.register_forward_pre_hook(lambda *_: page_out(*model.parameters())),
        encoder.register_forward_hook(lambda *_: page_out(*encoder.parameters())),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        page_out(*model.parameters())


def _pages(weight: Tensor) -> Iterator[tuple[int, int]]:
    """Yield where a weight's whole pages begin, and their bytes; others' may begin on the last one."""
    if sys.platform == "linux" and weight.device.type == "cpu" and weight.is_contiguous():
        first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (weight.data_ptr() + weight.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if size > 0:
            yield first, size


def _is_of_file(first: int, size: int) -> bool:
    """Return whether the pages there that are in memory are a file's; one that was written to is not."""
    entries = array("Q")
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:
        pages.seek(first // mmap.PAGESIZE * entries.itemsize)
        entries.frombytes(pages.read(size // mmap.PAGESIZE * entries.itemsize))
    return not any(entry & _SWAPPED or (entry & _PRESENT and not entry & _OF_FILE) for entry in entries)


def _return_freed() -> None:
    """Have the allocator give back what was freed, if it can be told to (glibc)."""
    trim = getattr(_system(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None)
