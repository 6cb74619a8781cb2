from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config

from se_detection import create_res5

from ..common.r50_1x import dataloader, lr_multiplier, optimizer, train
from ..common.timm_backbone import backbone, pixels

model = get_config("common/models/mask_rcnn_c4.py").model
model.backbone = backbone(out_features=["res4"])
model.roi_heads.res5 = L(create_res5)(name="${...backbone.name}", norm="${...backbone.norm}")
model.roi_heads.box_predictor.input_shape.channels = 2048
model.roi_heads.mask_head.input_shape.channels = 2048
model.update(pixels())
