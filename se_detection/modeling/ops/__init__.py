"""The operators of SE-ResNets: the residual gate with its Triton kernels, and convolutions with a folded norm.

An operator also works in a script, a trace, an export, a compiler and the transforms of `torch.func`. There it is a
formula of PyTorch's operations: nothing else can be recorded or transformed, and a compiler fuses them and decides
itself what to keep for the backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Without this name, torch itself reports an operator that a transform of torch.func does not support.
_transforms: Callable[[], bool] = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)


@torch.jit.unused
def runs_eagerly() -> bool:
    """Whether operations run as they are called, and are not compiled, exported, traced or transformed."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
        or _transforms()
    )


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last, or contiguous for all other tensors."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
