import resource
import subprocess
import sys

import pytest

from se_detection.engine import allocator

# In a process of its own, whose memory has no gaps; without torch, which takes seconds to import.
CODE = """
import ctypes, resource, runpy, sys
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(2**26)
    library.memset(block, 1, 2**26)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(), pages())
runpy.run_path(sys.argv[1])["keep_freed_memory"]()
print(pages(), pages())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_freed_memory_is_used_again() -> None:
    """The system counts the pages that it had to give for a block of 64 MiB."""
    command = [sys.executable, "-c", CODE, allocator.__file__]
    before, after = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    few = 2**26 / resource.getpagesize() / 10
    assert min(map(int, before.split())) > few
    assert int(after.split()[1]) < few
