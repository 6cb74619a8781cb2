"""Drawn images with exact boxes, masks, keypoints and background."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

# Corners of a kite and a trapezoid around (0, 0), with a radius of 1. The corners are also the keypoints.
SHAPES = (
    ((0.0, -1.0), (0.6, -0.2), (0.0, 1.0), (-0.6, -0.2)),
    ((-0.5, -0.6), (0.5, -0.6), (1.0, 0.6), (-1.0, 0.6)),
)
COLOURS = ((220, 60, 40), (240, 220, 60))
# The stuff in the background; detectron2's semantic maps have 0 for things.
SKY, GROUND = 1, 2
STUFF_COLOURS = {SKY: (90, 130, 200), GROUND: (60, 90, 50)}


@dataclass(frozen=True)
class ShapesImage:
    """A drawn image.

    Args:
        pixels: (H, W, 3), RGB.
        annotations: in COCO's format, with classes from 0 as categories.
        semantic: (H, W), 0 for objects, else `SKY` or `GROUND`.
    """

    pixels: np.ndarray
    annotations: list[dict[str, Any]]
    semantic: np.ndarray

    def input(self) -> dict[str, Any]:
        """The input of a detector in inference."""
        height, width = self.semantic.shape
        return {"image": torch.from_numpy(self.pixels.transpose(2, 0, 1).copy()), "height": height, "width": width}

    def example(self) -> dict[str, Any]:
        """The input of a detector in training."""
        annotations = []
        for annotation in self.annotations:
            # COCO's keypoints are pixel indices, detectron2's are coordinates.
            keypoints = np.array(annotation["keypoints"], float).reshape(-1, 3)
            keypoints[:, :2] += 0.5
            annotations.append({**annotation, "bbox_mode": BoxMode.XYWH_ABS, "keypoints": keypoints})
        instances = annotations_to_instances(annotations, self.semantic.shape)
        return {**self.input(), "instances": instances, "sem_seg": torch.from_numpy(self.semantic).long()}

    def segments(self) -> list[tuple[bool, int, Tensor]]:
        """(is a thing, class, (H, W) mask) of each object and each kind of stuff."""
        objects = [
            (True, annotation["category_id"], polygons_to_bitmask(annotation["segmentation"], *self.semantic.shape))
            for annotation in self.annotations
        ]
        stuff = [(False, kind, self.semantic == kind) for kind in STUFF_COLOURS]
        return [(thing, category, torch.from_numpy(mask)) for thing, category, mask in objects + stuff]


def draw(seed: int, height: int = 96, width: int = 128, classes: int = len(SHAPES)) -> ShapesImage:
    """An image with an object in its left half and one in its right half.

    Args:
        classes: number of kinds of objects; with 1, all are kites.
    """
    rng = np.random.default_rng(seed)
    semantic = np.full((height, width), SKY)
    semantic[int(height * rng.uniform(0.35, 0.65)) :] = GROUND
    pixels = np.zeros((height, width, 3))
    for stuff, colour in STUFF_COLOURS.items():
        pixels[semantic == stuff] = colour
    canvas = Image.fromarray(pixels.astype(np.uint8))
    objects = Image.fromarray(np.zeros((height, width), np.uint8))
    annotations = []
    for place in (0.25, 0.75):
        kind = int(rng.integers(classes))
        radius = min(height, width / 2) * rng.uniform(0.3, 0.4)
        angle = rng.uniform(-0.3, 0.3)
        x, y = width * place + rng.uniform(-4, 4), height * rng.uniform(0.45, 0.55)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        corners = np.array(SHAPES[kind]) @ turn * radius + (x, y)
        for target, colour in ((canvas, COLOURS[kind]), (objects, 1)):
            ImageDraw.Draw(target).polygon([tuple(corner) for corner in corners], fill=colour)
        low, size = corners.min(axis=0), np.ptp(corners, axis=0)
        annotations.append(
            {
                "category_id": kind,
                "bbox": [*low.tolist(), *size.tolist()],
                "area": float(size.prod()) / 2,
                "iscrowd": 0,
                "segmentation": [corners.flatten().tolist()],
                "keypoints": np.hstack([corners - 0.5, np.full((len(corners), 1), 2)]).flatten().tolist(),
                "num_keypoints": len(corners),
            }
        )
    semantic[np.asarray(objects) == 1] = 0
    noisy = np.asarray(canvas) + rng.normal(0, 8, pixels.shape)
    return ShapesImage(noisy.clip(0, 255).astype(np.uint8), annotations, semantic)


def average_precision(images: list[ShapesImage], detections: list[Instances], kind: str) -> float:
    """pycocotools' AP at an IoU (or OKS) of 0.5.

    Args:
        detections: for each image.
        kind: `bbox`, `segm` or `keypoints`.
    """
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": i, "height": image.semantic.shape[0], "width": image.semantic.shape[1]}
            for i, image in enumerate(images)
        ],
        "categories": [{"id": kind} for kind in range(len(SHAPES))],
        "annotations": [],
    }
    for i, image in enumerate(images):
        for annotation in image.annotations:
            number = len(truth.dataset["annotations"]) + 1
            truth.dataset["annotations"].append({**annotation, "image_id": i, "id": number})
    truth.createIndex()
    results = [result for i, instances in enumerate(detections) for result in instances_to_coco_json(instances, i)]
    if not results:
        return 0.0
    # With masks or keypoints in a result, pycocotools would compute its own box.
    fields = {"bbox": ("bbox",), "segm": ("segmentation",), "keypoints": ("keypoints",)}[kind]
    kept = ("image_id", "category_id", "score", *fields)
    evaluation = COCOeval(truth, truth.loadRes([{key: result[key] for key in kept} for result in results]), kind)
    if kind == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.full(len(SHAPES[0]), 0.05)
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU or OKS threshold 0.5, recall, class, all areas, most detections]
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision > -1].mean())
