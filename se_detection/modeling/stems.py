"""The stems of the released Caffe models and of SENet-154."""

import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d, get_norm
from detectron2.modeling.backbone.resnet import BasicStem
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor


class CaffeStem(BasicStem):
    """7x7 convolution, ReLU, and the max pool of the released Caffe models: no padding, ceil mode.

    detectron2's stem pads the pool by 1, which shifts its grid and changes the output size of odd maps.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, H / 4, W / 4), if H and W are multiples of 4."""
        return caffe_pool(F.relu_(self.conv1(x)))


class DeepStem(CNNBlockBase):
    """SENet-154's stem: three 3x3 convolutions, the first with stride 2, and the pool of the Caffe models.

    Args:
        in_channels: the channels of the image.
        out_channels: the output channels of the last convolution; the others have half as many.
        norm: see detectron2's `get_norm`.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 128, *, norm: str = "BN") -> None:
        super().__init__(in_channels, out_channels, 4)
        widths = (in_channels, out_channels // 2, out_channels // 2, out_channels)
        self.conv1, self.conv2, self.conv3 = (
            Conv2d(before, after, kernel_size=3, stride=stride, padding=1, bias=False, norm=get_norm(norm, after))
            for before, after, stride in zip(widths, widths[1:], (2, 1, 1), strict=False)
        )
        for layer in (self.conv1, self.conv2, self.conv3):
            c2_msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, H / 4, W / 4), if H and W are multiples of 4."""
        x = F.relu_(self.conv1(x))
        x = F.relu_(self.conv2(x))
        return caffe_pool(F.relu_(self.conv3(x)))


def caffe_pool(x: Tensor) -> Tensor:
    """3x3 max pool of stride 2 without padding, in ceil mode: H becomes (H - 1) / 2, rounded up, and W likewise."""
    return F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
