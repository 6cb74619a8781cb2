"""The detectors that are tested, each on an SE backbone: the one list that tests and docs/DETECTORS.md have them from."""

from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from torch import nn

from se_detection import model_zoo
from se_detection.modeling.padding import ignore_padding_in_heads


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A kind of detector.

    Args:
        title: its name in docs/DETECTORS.md.
        config: its name under configs/ and configs/lazy/.
        overrides: what makes it small besides `SMALL`.
        lazy_only: detectron2 can't build it from a yaml.
        classes: of objects.
        gives: what it finds besides boxes: `pred_masks`, `pred_keypoints`, and `panoptic_seg`.
        tta: detectron2's `GeneralizedRCNNWithTTA` takes it.
    """

    title: str
    config: str
    overrides: dict[str, Any] = field(default_factory=dict)
    lazy_only: bool = False
    classes: int = 2
    gives: tuple[str, ...] = ()
    tta: bool = True


# The BN in their res5 is over regions, of which it needs some; so these are small.
C4 = {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64}
MASKS, KEYPOINTS, PANOPTIC = "pred_masks", "pred_keypoints", "panoptic_seg"
DETECTORS = {
    "faster_rcnn_fpn": Detector(title="Faster R-CNN, FPN", config="COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"),
    "faster_rcnn_c4": Detector(
        title="Faster R-CNN, C4", config="COCO-Detection/faster_rcnn_SE_R_50_C4_1x", overrides=C4
    ),
    "faster_rcnn_dc5": Detector(title="Faster R-CNN, DC5", config="COCO-Detection/faster_rcnn_SE_R_50_DC5_1x"),
    "retinanet": Detector(title="RetinaNet", config="COCO-Detection/retinanet_SE_R_50_FPN_1x", tta=False),
    "fcos": Detector(title="FCOS", config="COCO-Detection/fcos_SE_R_50_FPN_1x", lazy_only=True, tta=False),
    "mask_rcnn_fpn": Detector(
        title="Mask R-CNN, FPN", config="COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_1x", gives=(MASKS,)
    ),
    "mask_rcnn_c4": Detector(
        title="Mask R-CNN, C4",
        config="COCO-InstanceSegmentation/mask_rcnn_SE_R_50_C4_1x",
        overrides=C4,
        gives=(MASKS,),
    ),
    "mask_rcnn_dc5": Detector(
        title="Mask R-CNN, DC5",
        config="COCO-InstanceSegmentation/mask_rcnn_SE_R_50_DC5_1x",
        gives=(MASKS,),
    ),
    "cascade_mask_rcnn": Detector(
        title="Cascade Mask R-CNN", config="Misc/cascade_mask_rcnn_SE_R_50_FPN_1x", gives=(MASKS,)
    ),
    "keypoint_rcnn": Detector(
        title="Keypoint R-CNN",
        config="COCO-Keypoints/keypoint_rcnn_SE_R_50_FPN_1x",
        classes=1,
        gives=(KEYPOINTS,),
        tta=False,
    ),
    "panoptic_fpn": Detector(
        title="Panoptic FPN",
        config="COCO-PanopticSegmentation/panoptic_fpn_SE_R_50_1x",
        gives=(MASKS, PANOPTIC),
        tta=False,
    ),
}
# What tests cover of each; docs/DETECTORS.md has a column for each.
CHECKS = {
    **dict.fromkeys(("built", "trained a step", "overfitted", "inferred"), tuple(DETECTORS)),
    **dict.fromkeys(("fused", "padding ignored"), tuple(DETECTORS)),
    "TTA": tuple(name for name, detector in DETECTORS.items() if detector.tta),
}
# Trained from scratch, on images of 96 x 128 pixels with two objects.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.SE.REDUCTION": 4,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 100,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 100,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [32, 32],
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 4,
    "MODEL.RETINANET.NUM_CONVS": 2,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
    "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": 64,
}


def small_config(detector: Detector, **overrides: Any) -> CfgNode:
    """The detector's config, made small.

    Args:
        overrides: values by key, with `__` for the points, such as `MODEL__SE__IGNORE_PADDING`.
    """
    # FCOS has the backbone, the maps and the recipe of detectron2's RetinaNet.
    cfg = model_zoo.get_config(DETECTORS["retinanet"].config if detector.lazy_only else detector.config)
    classes = {"MODEL.ROI_HEADS.NUM_CLASSES": detector.classes, "MODEL.RETINANET.NUM_CLASSES": detector.classes}
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in {**SMALL, **classes, **detector.overrides, **changed}.items():
        cfg.merge_from_list([key, value])
    return cfg


def build(detector: Detector, cfg: CfgNode) -> nn.Module:
    """The detector that a config describes, as this project's tools build it."""
    model = _fcos(cfg) if detector.lazy_only else build_model(cfg)
    ignore_padding_in_heads(model)
    return model


def _fcos(cfg: CfgNode) -> nn.Module:
    """With the values of detectron2's `configs/common/models/fcos.py`, whose p6 is made from p5 too."""
    backbone = build_backbone(cfg)
    top = backbone.top_block
    top.in_feature, top.p6 = "p5", nn.Conv2d(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.OUT_CHANNELS, 3, 2, 1)
    features = cfg.MODEL.RETINANET.IN_FEATURES
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    head = FCOSHead(
        input_shape=[ShapeSpec(channels=channels)] * len(features),
        num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
        # PyTorch's GN has 32 groups here, and refuses one value a group, as a p7 of 1x1 would have.
        conv_dims=[64] * cfg.MODEL.RETINANET.NUM_CONVS,
        norm="GN",
    )
    # Behind a ReLU, a distance that is negative everywhere at first would learn nothing.
    nn.init.ones_(head.bbox_pred.bias)
    return FCOS(
        backbone=backbone,
        head=head,
        head_in_features=features,
        num_classes=cfg.MODEL.RETINANET.NUM_CLASSES,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        test_score_thresh=0.2,
        test_nms_thresh=0.6,
    )
