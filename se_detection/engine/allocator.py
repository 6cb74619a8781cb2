"""Memory of a training on the CPU."""

import ctypes
import sys

# Parameters of glibc's `mallopt`, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Makes this process keep the memory of freed tensors for the next ones, if its C library is glibc.

    By default, glibc returns the memory of each large tensor to the system and asks for it again at the next step, and
    the system clears it page by page: writing a new map of 55 MB took 5 times as long as writing a used one.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        # Other C libraries have no such function.
        if hasattr(library, "mallopt"):
            library.mallopt(M_MMAP_THRESHOLD, 2**30)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
