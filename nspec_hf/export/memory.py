"""What an export has in memory: of weights that lie in a file, only those that compute.

Loaded weights are parts of a mapped file. The system counts as a process's memory what was read of it, as
long as it is mapped, and freed memory while the allocator keeps it. None but Linux is told otherwise here.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

_PAGE_MAP = Path("/proc/self/pagemap")
_ENTRY = np.dtype(np.uint64)  # of a page in it
_PRESENT, _SWAPPED, _OF_FILE = (_ENTRY.type(1 << bit) for bit in (63, 62, 61))


def let_go(*weights: Tensor) -> None:
    """Give the memory of weights that nothing uses any more back to the system; what they hold is lost."""
    _drop(_pages(weights))
    if sys.platform == "linux" and hasattr(_system(), "malloc_trim"):
        _system().malloc_trim(0)  # glibc keeps freed weights otherwise


def page_out(*weights: Tensor) -> None:
    """Take weights that are as their file has them out of memory until they are used again; none is lost."""
    _drop(pages for pages in _pages(weights) if _are_of_file(*pages))


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


def _pages(weights: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """Yield where each weight's whole pages begin, and their bytes; others' may begin on the last one."""
    for weight in weights:
        if sys.platform == "linux" and weight.device.type == "cpu" and weight.is_contiguous():
            first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            size = (weight.data_ptr() + weight.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
            if size > 0:
                yield first, size


def _are_of_file(first: int, size: int) -> bool:
    """Return whether the pages there that are in memory are a file's; one that was written to is not.

    Where the system does not say, none is.
    """
    try:
        with _PAGE_MAP.open("rb", buffering=0) as file:
            file.seek(first // mmap.PAGESIZE * _ENTRY.itemsize)
            said = file.read(size // mmap.PAGESIZE * _ENTRY.itemsize)
    except OSError:
        return False
    entries = np.frombuffer(said, _ENTRY)
    written_to = (entries & (_PRESENT | _OF_FILE) == _PRESENT) | (entries & _SWAPPED != 0)
    return len(entries) == size // mmap.PAGESIZE and not written_to.any()


def _drop(pages: Iterable[tuple[int, int]]) -> None:
    """Have the system forget pages: their file's are read again where they are used, others are lost."""
    for first, size in pages:
        _system().madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


@cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None)
