from detectron2.config import LazyCall as L

from se_detection import SEConfig

from .faster_rcnn_R_50_FPN_1x_adamw import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.update(name="se_resnet50", se=L(SEConfig)(reduction=16))
train.init_checkpoint = "timm://seresnet50.a1_in1k"
