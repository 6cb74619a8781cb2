"""Stems that detectron2 lacks."""

import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BasicStem
from torch import Tensor


class CaffeStem(BasicStem):
    """7x7 convolution, ReLU, and the max pool of the released Caffe models: no padding, ceil mode.

    detectron2's stem pads the pool by 1, which shifts its grid, and gives another size where the map is odd.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, C, H / 4, W / 4), rounded up."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, ceil_mode=True)
