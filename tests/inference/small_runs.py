"""Runs of small detectors with random weights, images for them, and a comparison of their detections."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Instances

from se_detection import model_zoo

from ..helpers import randomize_norms

CLASSES = ["circle", "square", "triangle", "cross"]
# An FPN of three levels instead of five: in an export, each costs as much as the others.
FEW_LEVELS = [
    *("MODEL.RESNETS.OUT_FEATURES", "['res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res4', 'res5']"),
    *("MODEL.RPN.IN_FEATURES", "['p4', 'p5', 'p6']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64]]"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['p4', 'p5']"),
]
SMALL = [
    *FEW_LEVELS,
    *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    *("MODEL.RETINANET.NUM_CLASSES", "4", "MODEL.DEVICE", "cpu", "TEST.DETECTIONS_PER_IMAGE", "30"),
    # Each channel has another mean, so that their order matters.
    *("MODEL.PIXEL_MEAN", "[60.0, 110.0, 160.0]", "INPUT.MIN_SIZE_TEST", "96"),
]
MASK = ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"]
KINDS = {
    "Faster R-CNN": [],
    "RGB": ["INPUT.FORMAT", "RGB"],
    "Mask R-CNN": MASK,
    "Keypoint R-CNN": [
        *("MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "[16]"),
        *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5"),
    ],
    "RetinaNet": [
        *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_se_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']", "MODEL.RETINANET.NUM_CONVS", "1"),
        *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
        *("MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
    ],
    "Panoptic FPN": [
        *("MODEL.META_ARCHITECTURE", "PanopticFPN", *MASK, "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"),
        *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "6", "MODEL.SEM_SEG_HEAD.IN_FEATURES", "['p4', 'p5']"),
    ],
}


def write_run(folder: Path, *overrides: str) -> Path:
    """Writes the folder of a run, with random weights that give different detections in different images."""
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    # Gates that start as the identity would not depend on the image.
    cfg.merge_from_list(["MODEL.SE.INIT", "default", *SMALL, *overrides])
    torch.manual_seed(0)
    model = randomize_norms(build_model(cfg))
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone") and name.endswith("weight"):
            parameter.data *= 3
    folder.mkdir()
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "run.json").write_text(json.dumps({"classes": CLASSES}))
    return folder


def run_config(run: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(run / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    return cfg


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise in BGR, with red brighter than blue."""
    noise = np.random.default_rng(seed).integers(0, 160, (height // 8, width // 8, 3), dtype=np.uint8)
    return noise.repeat(8, axis=0).repeat(8, axis=1) + np.array([0, 40, 90], np.uint8)


IMAGES = [image(96, 128), image(160, 104, 1), image(64, 200, 2)]


def assert_same(instances: Instances, expected: Instances, atol: float = 0) -> None:
    fields, others = instances.get_fields(), expected.get_fields()
    assert instances.image_size == expected.image_size
    assert len(instances) == len(expected) > 10
    assert fields.keys() == others.keys() >= {"pred_boxes", "scores", "pred_classes"}
    for name, values in fields.items():
        ours, theirs = (item.tensor if name == "pred_boxes" else item for item in (values, others[name]))
        if name == "pred_masks" and atol:
            assert (ours != theirs).float().mean() < 1e-3
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
