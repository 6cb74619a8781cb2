from detectron2.config import LazyCall as L

from se_detection import SEConfig

from .mask_rcnn_R_50_C4_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.update(name="se_resnet50", se=L(SEConfig)(reduction=16))
model.roi_heads.res5.se = "${...backbone.se}"
train.init_checkpoint = "mmpretrain://se-resnet50_batch256_imagenet_20200804-ae206104"
