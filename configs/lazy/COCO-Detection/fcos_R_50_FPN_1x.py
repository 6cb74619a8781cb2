from detectron2.model_zoo import get_config

from ..common.r50_1x import dataloader, lr_multiplier, optimizer, train
from ..common.timm_backbone import backbone, pixels

model = get_config("common/models/fcos.py").model
model.backbone.bottom_up = backbone(out_features=["res3", "res4", "res5"])
model.update(pixels())
# FCOS does not have this argument
del model.input_format
dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 0.01
