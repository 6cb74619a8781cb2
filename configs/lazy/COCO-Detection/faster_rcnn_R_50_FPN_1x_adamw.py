"""AdamW as mmdetection trains Faster R-CNN from these weights: see configs/Recipe-AdamW.yaml."""

from detectron2.model_zoo import get_config

from ..common.faster_rcnn_fpn import model
from ..common.r50_1x import dataloader, lr_multiplier, train
from ..common.timm_backbone import backbone, pixels

model.backbone.bottom_up = backbone()
model.update(pixels())
dataloader.train.mapper.update(image_format="RGB", use_instance_mask=False)
optimizer = get_config("common/optim.py").AdamW
optimizer.update(lr=2e-4, weight_decay=0.05)
train.init_checkpoint = "timm://resnet50.a1_in1k"
