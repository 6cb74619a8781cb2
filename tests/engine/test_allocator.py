import resource
import sys

import pytest
import torch

from se_detection.engine.allocator import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_freed_tensor_is_used_again() -> None:
    """The system counts the pages that it had to give."""

    def pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    # It has 64 MiB. Another allocation may take a part of its place.
    assert min(pages() for _ in range(5)) < 2**26 / resource.getpagesize() / 10
