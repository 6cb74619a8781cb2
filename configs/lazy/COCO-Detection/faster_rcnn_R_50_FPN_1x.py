from ..common.faster_rcnn_fpn import model
from ..common.r50_1x import dataloader, lr_multiplier, optimizer, train
from ..common.timm_backbone import backbone, pixels

model.backbone.bottom_up = backbone()
model.update(pixels())
dataloader.train.mapper.use_instance_mask = False
