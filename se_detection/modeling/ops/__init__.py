"""The operators of SE-ResNets: the residual gate with its Triton kernels, and convolutions with a folded norm.

An operator also works in a script, a trace, an export and a compiler. There it is a formula of PyTorch's operations:
nothing else can be recorded, and a compiler fuses them and decides itself what to keep for the backward pass.
"""

import torch
from torch import Tensor


def runs_eagerly() -> bool:
    """Whether operations run as they are called, and are not compiled, exported or traced."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Channels-last, or contiguous for all other tensors."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
