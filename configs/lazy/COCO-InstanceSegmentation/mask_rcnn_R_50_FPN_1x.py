from detectron2.model_zoo import get_config

from ..common.r50_1x import dataloader, lr_multiplier, optimizer, train
from ..common.timm_backbone import backbone, pixels

model = get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up = backbone()
model.update(pixels())
