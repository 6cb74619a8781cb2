"""detectron2's 1x recipe on COCO, from mmpretrain's plain ResNet-50.

The plain and the SE R50 start from mmpretrain's weights of one recipe (see configs/Base-R-50.yaml), not from the MSRA
backbone of detectron2's configs: a baseline needs the same pre-training.
"""

from detectron2.model_zoo import get_config

dataloader = get_config("common/data/coco.py").dataloader
dataloader.train.mapper.image_format = "RGB"
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = get_config("common/optim.py").SGD
train = get_config("common/train.py").train
train.init_checkpoint = "mmpretrain://resnet50_8xb32_in1k_20210831-ea4938fc"
