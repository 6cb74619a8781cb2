from detectron2.config import LazyCall as L

from se_detection import SEConfig

from .faster_rcnn_R_101_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(name="se_resnet101", se=L(SEConfig)(reduction=16))
train.init_checkpoint = "mmpretrain://se-resnet101_batch256_imagenet_20200804-ba5b51d4"
