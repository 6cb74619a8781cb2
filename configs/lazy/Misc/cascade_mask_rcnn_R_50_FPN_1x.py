from detectron2.model_zoo import get_config

from ..common.r50_1x import dataloader, lr_multiplier, optimizer, train
from ..common.timm_backbone import backbone, pixels

model = get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up = backbone()
model.update(pixels())
# as in detectron2's yaml; its lazy Cascade R-CNN has Mask R-CNN's 1000
model.proposal_generator.post_nms_topk = (2000, 1000)
