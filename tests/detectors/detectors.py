"""The list of tested detectors, each with an SE backbone; docs/DETECTORS.md has a row for each."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from se_detection import model_zoo
from se_detection.modeling.padding import ignore_padding, ignore_padding_in_heads


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A detector.

    Args:
        title: its name in docs/DETECTORS.md.
        config: its name under configs/ and configs/lazy/.
        overrides: values that make it small, in addition to `SMALL`.
        lazy_only: detectron2 can build it from a lazy config only.
        classes: number of object classes.
        outputs: its outputs in addition to boxes: `pred_masks`, `pred_keypoints`, `panoptic_seg`.
        tta: supported by detectron2's `GeneralizedRCNNWithTTA`.
    """

    title: str
    config: str
    overrides: dict[str, Any] = field(default_factory=dict)
    lazy_only: bool = False
    classes: int = 2
    outputs: tuple[str, ...] = ()
    tta: bool = True


LAZY = Path(__file__).parents[2] / "configs" / "lazy"
# BN in their res5 needs a batch of several regions, so the regions are small.
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
        title="Mask R-CNN, FPN", config="COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN_1x", outputs=(MASKS,)
    ),
    "mask_rcnn_c4": Detector(
        title="Mask R-CNN, C4",
        config="COCO-InstanceSegmentation/mask_rcnn_SE_R_50_C4_1x",
        overrides=C4,
        outputs=(MASKS,),
    ),
    "mask_rcnn_dc5": Detector(
        title="Mask R-CNN, DC5",
        config="COCO-InstanceSegmentation/mask_rcnn_SE_R_50_DC5_1x",
        outputs=(MASKS,),
    ),
    "cascade_mask_rcnn": Detector(
        title="Cascade Mask R-CNN", config="Misc/cascade_mask_rcnn_SE_R_50_FPN_1x", outputs=(MASKS,)
    ),
    "keypoint_rcnn": Detector(
        title="Keypoint R-CNN",
        config="COCO-Keypoints/keypoint_rcnn_SE_R_50_FPN_1x",
        classes=1,
        outputs=(KEYPOINTS,),
        tta=False,
    ),
    "panoptic_fpn": Detector(
        title="Panoptic FPN",
        config="COCO-PanopticSegmentation/panoptic_fpn_SE_R_50_1x",
        outputs=(MASKS, PANOPTIC),
        tta=False,
    ),
}
# The detectors of each test; docs/DETECTORS.md has a column for each.
CHECKS = {
    **dict.fromkeys(("built", "trained a step", "inferred", "fused", "padding ignored"), tuple(DETECTORS)),
    "overfitted": ("panoptic_fpn",),
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
    """A small version of the detector's config.

    Args:
        overrides: config keys with `__` for the dots, such as `MODEL__SE__IGNORE_PADDING`, and their values.
    """
    # FCOS has the same recipe as detectron2's RetinaNet.
    cfg = model_zoo.get_config(DETECTORS["retinanet"].config if detector.lazy_only else detector.config)
    classes = {"MODEL.ROI_HEADS.NUM_CLASSES": detector.classes, "MODEL.RETINANET.NUM_CLASSES": detector.classes}
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in {**SMALL, **classes, **detector.overrides, **changed}.items():
        cfg.merge_from_list([key, value])
    return cfg


def build(detector: Detector, cfg: CfgNode) -> nn.Module:
    """Builds a config's detector as this project's tools do."""
    model = _fcos(cfg) if detector.lazy_only else build_model(cfg)
    ignore_padding_in_heads(model)
    return model


def _fcos(cfg: CfgNode) -> nn.Module:
    """The lazy config's FCOS with a backbone of depth 18."""
    config = LazyConfig.load(str(LAZY / f"{DETECTORS['fcos'].config}.py")).model
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    config.backbone.bottom_up.update(name="se_resnet18", norm="BN", freeze_at=0)
    config.backbone.out_channels = config.backbone.top_block.in_channels = channels
    # With 32 channels, GN's 32 groups would have a single value at a p7 of 1x1, which PyTorch refuses.
    config.head.update(input_shape=[ShapeSpec(channels=channels)] * 5, conv_dims=[64])
    config.num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    config.test_score_thresh = cfg.MODEL.RETINANET.SCORE_THRESH_TEST
    config.test_topk_candidates = cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST
    config.max_detections_per_image = cfg.TEST.DETECTIONS_PER_IMAGE
    model: nn.Module = instantiate(config)
    # The distances go through a ReLU: if all were negative at first, they would get no gradient.
    nn.init.ones_(model.head.bbox_pred.bias)
    if cfg.MODEL.SE.IGNORE_PADDING:
        model.backbone = ignore_padding(model.backbone)
    return model
