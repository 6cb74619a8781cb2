"""The ResNet-101 of mmpretrain, with its pair as in configs/Base-R-101.yaml."""

from .faster_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = "resnet101"
train.init_checkpoint = "mmpretrain://resnet101_8xb32_in1k_20210831-539c63f8"
