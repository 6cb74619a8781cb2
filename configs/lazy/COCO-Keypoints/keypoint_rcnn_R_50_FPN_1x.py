from detectron2.model_zoo import get_config

from ..common.r50_1x import lr_multiplier, optimizer, train
from ..common.timm_backbone import backbone, pixels

dataloader = get_config("common/data/coco_keypoint.py").dataloader
dataloader.train.mapper.image_format = "RGB"
model = get_config("common/models/keypoint_rcnn_fpn.py").model
model.backbone.bottom_up = backbone()
model.update(pixels())
