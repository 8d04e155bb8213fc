"""What a process frees stays with it: counted in pages that the kernel has to clear again."""

import os
import subprocess
import sys

import pytest

from nspec_hf.core import keep_freed_memory

BLOCKS = """
import ctypes, resource
from nspec_hf.core import keep_freed_memory
{before}
def use(size):
    block = bytearray(size)
    return len(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

use(100 << 20)
began = faults()
for _ in range(5):
    use(100 << 20)
print(faults() - began)
"""


def faults(before, **environment):
    """Return how many pages five blocks of 100 MiB, each freed before the next, were given anew."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC"))}
    code = BLOCKS.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], env=known | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the page faults of glibc's allocator")
def test_freed_blocks_are_used_again():
    assert faults("assert keep_freed_memory()") < 5 <= faults("")


@pytest.mark.skipif(sys.platform != "linux", reason="counts the page faults of glibc's allocator")
def test_what_the_user_says_of_memory_stands():
    assert faults("assert not keep_freed_memory()", MALLOC_MMAP_MAX_="65536") >= 5


def test_elsewhere_than_on_linux_nothing_happens(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    assert not keep_freed_memory()
