"""The paper's SE-ResNet-101, which timm ported to RGB, with the layers of the Caffe model.

No plain ResNet-101 with the same training was released, so the two detectors of this pair also differ in pre-training.
"""

from detectron2.config import LazyCall as L

from se_detection import SEConfig

from ..common.timm_backbone import backbone, pixels
from .faster_rcnn_R_101_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = backbone(name="se_resnet101", layout="caffe", se=L(SEConfig)(reduction=16))
model.update(pixels())
dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = "timm://legacy_seresnet101.in1k"
