"""detectron2's 1x recipe and backbone, with the MSRA weights of its zoo (BGR, stride in the first 1x1)."""

from detectron2.model_zoo import get_config

from ..common.faster_rcnn_fpn import model

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.use_instance_mask = False
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = get_config("common/optim.py").SGD
train = get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"

model.backbone.bottom_up.stages.depth = 101
model.backbone.bottom_up.freeze_at = 2
