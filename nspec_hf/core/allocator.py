"""The process's own memory, kept for its next allocation.

The trap: glibc hands every large block back to the kernel as soon as it is freed, and the kernel clears each
page of the next one. A training step on a CPU allocates the same large blocks (logits, gradients) every time.
"""

import ctypes
import os
import sys

# Parameters of mallopt(3) and what ends each habit: trimming the heap, growing it by little, mapping blocks.
_KEEP = {-1: -1, -2: 2**28, -4: 0}
_USERS = ("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the process's next allocations, as training on a CPU wants it.

    Memory that was used once then stays with the process until it ends. Elsewhere than under glibc, and where
    the environment says how memory is to be allocated, nothing happens.

    Returns:
        Whether the allocator took it.
    """
    if sys.platform != "linux" or any(name.startswith(_USERS) for name in os.environ):
        return False
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    return tell is not None and all(tell(parameter, value) for parameter, value in _KEEP.items())
