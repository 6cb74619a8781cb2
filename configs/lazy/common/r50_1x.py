"""detectron2's 1x recipe on COCO, from timm's plain ResNet-50.

The plain and the SE R50 start from timm weights of the same training recipe (A1 of "ResNet strikes back"), not from the
MSRA backbone of detectron2's configs: a baseline needs the same pre-training.
"""

from detectron2.model_zoo import get_config

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = get_config("common/optim.py").SGD
train = get_config("common/train.py").train
train.init_checkpoint = "timm://resnet50.a1_in1k"
