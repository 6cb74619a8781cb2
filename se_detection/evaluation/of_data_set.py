"""The evaluators of a data set, by what it holds."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from numpy.typing import NDArray
from PIL import Image

from ..data.naming import naming
from ..errors import UserError
from .coco_evaluator import EVALUATED, COCODetectionEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    """As detectron2's own tools/train_net.py chooses them."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATED:
        raise UserError(f"data set {dataset_name!r} is not evaluated as COCO is")
    expected = ("bbox", *("segm",) * cfg.MODEL.MASK_ON, *("keypoints",) * cfg.MODEL.KEYPOINT_ON)
    with naming([dataset_name]):
        things = COCODetectionEvaluator(
            dataset_name, expected=expected, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS
        )
        if kind == "coco":
            return things
        stuff = SemSegEvaluator(dataset_name, output_dir=folder, sem_seg_loading_fn=_read_labels)
        return DatasetEvaluators([stuff, things, COCOPanopticEvaluator(dataset_name, folder)])


def _read_labels(path: str, dtype: type[int] | None = None) -> NDArray[Any]:
    """A picture's values; with numpy 2, detectron2's own function for it fails."""
    with Image.open(path) as picture:
        return np.array(picture, dtype=dtype)
