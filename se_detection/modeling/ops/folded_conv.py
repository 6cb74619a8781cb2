"""A convolution for inference that computes the ReLU and a sum in the same pass, if PyTorch supports it."""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import Tensor

from . import runs_eagerly
from .residual_gate import residual_gate


class FoldedConv2d(Conv2d):
    """detectron2's convolution with a bias instead of a norm; `activation` is None or `F.relu`.

    On the CPU it calls oneDNN's operator that includes the ReLU, as `torch.compile` does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H / stride, W / stride)."""
        if not self.has_onednn(x):
            x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            return x if self.activation is None else F.relu_(x)
        attribute = "none" if self.activation is None else "relu"
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, attribute, [], ""
        )

    def add_to(self, total: Tensor, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """`relu(total + gate * conv(x))`, written into `total` if possible.

        Args:
            total: (N, C_out, H, W); its content is undefined afterwards.
            x: (N, C_in, H, W)
            gate: (N, C_out, 1, 1); by default 1.

        Returns:
            (N, C_out, H, W)
        """
        if gate is None:
            if self.has_onednn(x):
                return self._add_to(total, x, self.weight, self.bias)
            return total.add_(self(x)).relu_()
        # The gate scales the weights, if there are fewer weights than values in a map.
        if not self.has_onednn(x) or self.weight.numel() > total[0].numel():
            return residual_gate(self(x), gate, total)
        for own_total, own_x, own_gate in zip(total.split(1), x.split(1), gate, strict=True):
            self._add_to(own_total, own_x, self.weight * own_gate[..., None], self.bias * own_gate.flatten())
        return total

    def _add_to(self, total: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        options = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, weight, bias, *options, "add", 1.0, "relu", [], ""
        )

    def has_onednn(self, x: Tensor) -> bool:
        """Whether oneDNN's operators support `x`; False under a compiler, which fuses the layers itself."""
        half = x.dtype == torch.bfloat16
        return bool(
            runs_eagerly()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype
            and (half or x.dtype == torch.float32)
            and x.numel() > 0
            # detectron2's convolution accepts "same", which the operators do not.
            and isinstance(self.padding, tuple)
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
            # Under autocast, a float32 convolution must be computed in half precision.
            and (torch.ops.mkldnn._is_mkldnn_bf16_supported() if half else not torch.is_autocast_enabled("cpu"))
        )
