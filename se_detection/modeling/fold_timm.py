"""Frozen norms of timm's blocks, folded into the convolutions before them, in training too.

timm's frozen norm is a multiplication and an addition: two more maps, and two passes over them in each direction. Scale
and bias are constant, so the weight of the convolution is scaled instead. Imported when it is used, because it imports
timm.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from timm.layers import Conv2dSame, FrozenBatchNormAct2d
from timm.layers.padding import pad_same
from torch import Tensor, nn

# By the class of a block: its convolutions, and the norm that directly follows each.
FOLLOWED: Mapping[str, Mapping[str, str]] = {
    "EfficientNetFeatures": {"conv_stem": "bn1"},
    "DepthwiseSeparableConv": {"conv_dw": "bn1", "conv_pw": "bn2"},
    "InvertedResidual": {"conv_pw": "bn1", "conv_dw": "bn2", "conv_pwl": "bn3"},
}


class FoldingConv(nn.Conv2d):
    """A convolution with the frozen norm after it, which is another module and keeps its tensors."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        norm: Any = vars(self)["norm"]
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = self.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
        return F.conv2d(self.pad(x), weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def pad(self, x: Tensor) -> Tensor:
        """What the convolution does not pad itself."""
        return x


class FoldingConvSame(FoldingConv):
    """The same with TensorFlow's padding."""

    def pad(self, x: Tensor) -> Tensor:
        """Padded so that the output has `ceil(input / stride)` rows and columns."""
        padded: Tensor = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return padded


class FoldedNorm(FrozenBatchNormAct2d):
    """What is left of timm's frozen norm: its activation."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        activated: Tensor = self.act(self.drop(x))
        return activated


MODULES = ("timm.models.efficientnet", "timm.models._efficientnet_blocks")
FOLDING = {nn.Conv2d: FoldingConv, Conv2dSame: FoldingConvSame}


def fold_frozen_norms(network: nn.Module) -> None:
    """Folds the frozen norms of the blocks in :data:`FOLLOWED`, in place; the names of the tensors stay the same."""
    # torchvision and timm's CSPNeXt have blocks of the same names.
    for block in (module for module in network.modules() if type(module).__module__ in MODULES):
        for name, follower in FOLLOWED.get(type(block).__name__, {}).items():
            conv, norm = getattr(block, name), getattr(block, follower)
            if type(norm) is FrozenBatchNormAct2d and type(conv) in FOLDING and conv.bias is None:
                conv.__class__, norm.__class__ = FOLDING[type(conv)], FoldedNorm
                # Not as a child, which would name its tensors a second time.
                vars(conv)["norm"] = norm
