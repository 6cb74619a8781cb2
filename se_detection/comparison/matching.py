"""Matches boxes to objects as pycocotools does, one category at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from ..data.coco_files import load_coco, silenced
from ..data.coco_format import Entry

Array = NDArray[np.float64]
Area = tuple[float, float]
# An annotation or detection, and whether it is matched.
Box = tuple[Entry, bool]

# In pycocotools' order: all, small, medium, large.
COCO_AREAS: tuple[Area, ...] = tuple((float(low), float(high)) for low, high in Params("bbox").areaRng)
THRESHOLDS: Array = Params("bbox").iouThrs


class CategoryEvaluation(COCOeval):
    """COCOeval of one category, on the images with its objects or detections; `image_indices` are their indices.

    The first range of areas contains all objects. Its matches are reused for an image if another range contains all or
    none of the image's objects, which saves most of the time.
    """

    def __init__(
        self, objects: COCO, detections: COCO, *, areas: Sequence[Area], image_indices: NDArray[np.intp]
    ) -> None:
        super().__init__(objects, detections, "bbox")
        self.image_indices = image_indices
        self.params.areaRng = [list(area) for area in areas]
        self.params.areaRngLbl = [str(area) for area in areas]
        self.first_range: dict[Any, Any] = {}

    def evaluateImg(self, imgId: Any, catId: Any, aRng: list[float], maxDet: int) -> Any:  # noqa: N802, N803
        """See `COCOeval.evaluateImg`."""
        if aRng == self.params.areaRng[0]:
            self.first_range[imgId] = super().evaluateImg(imgId, catId, aRng, maxDet)
            return self.first_range[imgId]
        objects = self._gts[imgId, catId]
        outside = [_outside(item["area"], aRng) for item in objects]
        crowd = any(item["iscrowd"] for item in objects)
        if any(outside) and (crowd or not all(outside)):
            return super().evaluateImg(imgId, catId, aRng, maxDet)
        first = self.first_range[imgId]
        matched = first["dtMatches"] != 0
        box_outside = np.array([_outside(self.cocoDt.anns[key]["area"], aRng) for key in first["dtIds"]], dtype=bool)
        return {
            **first,
            "aRng": aRng,
            "gtIgnore": np.ones_like(first["gtIgnore"]) if any(outside) else first["gtIgnore"],
            "dtIgnore": np.where(matched, first["dtIgnore"] | any(outside), box_outside),
        }


def _outside(area: float, limits: Sequence[float]) -> bool:
    return area < limits[0] or area > limits[1]


def match_boxes(
    annotations: COCO, detections: list[Entry], areas: Sequence[Area] = COCO_AREAS
) -> Iterator[CategoryEvaluation]:
    """Yields an evaluation of each category, matched but not accumulated, in the order of the category ids.

    Args:
        annotations: from :func:`load_annotations`.
        detections: from :func:`load_results`.
        areas: ranges of area, in pixels; the first must contain all objects.
    """
    numbered = [
        {**item, "id": number, "area": item["bbox"][2] * item["bbox"][3], "iscrowd": 0}
        for number, item in enumerate(detections, start=1)
    ]
    objects, boxes = (group_by("category_id", entries) for entries in (annotations.dataset["annotations"], numbered))
    indices = {image: index for index, image in enumerate(sorted(annotations.imgs))}
    for category in sorted(annotations.cats):
        pair = objects.get(category, []), boxes.get(category, [])
        images = sorted({item["image_id"] for entries in pair for item in entries})
        data = {"images": [annotations.imgs[image] for image in images], "categories": [annotations.cats[category]]}
        truth, results = (load_coco({**data, "annotations": entries}) for entries in pair)
        evaluation = CategoryEvaluation(
            truth, results, areas=areas, image_indices=np.array([indices[image] for image in images], np.intp)
        )
        with silenced():
            evaluation.evaluate()
        yield evaluation


def group_by(key: str, entries: Iterable[Entry]) -> dict[Any, list[Entry]]:
    """The entries by their value of a key."""
    grouped: dict[Any, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry[key], []).append(entry)
    return grouped


def boxes_by_image(evaluations: Iterable[CategoryEvaluation]) -> dict[Any, tuple[list[Box], list[Box]]]:
    """The objects and the detections in each image, without ignored ones, and whether each is matched at IoU 0.5."""
    found: dict[Any, tuple[list[Box], list[Box]]] = {}
    for evaluation in evaluations:
        for image in evaluation.evalImgs[: len(evaluation.image_indices)]:
            objects, detections = found.setdefault(image["image_id"], ([], []))
            for boxes, coco, ids, matches, ignored in (
                (objects, evaluation.cocoGt, image["gtIds"], image["gtMatches"], image["gtIgnore"]),
                (detections, evaluation.cocoDt, image["dtIds"], image["dtMatches"], image["dtIgnore"][0]),
            ):
                flags = zip(ids, matches[0] != 0, ignored, strict=True)
                boxes += [(coco.anns[id_], bool(matched)) for id_, matched, skipped in flags if not skipped]
    return found


@dataclass(frozen=True)
class Matches:
    """A category's detections in one range of areas, in descending order of score.

    `image` is the index of a detection's image in the set, and `rank` its rank by score in that image. `hit` and
    `counted`, (thresholds, detections), say whether it matches an object and whether it is not ignored. `objects` is
    the number of objects in each image of `objects_image`.
    """

    image: NDArray[np.intp]
    rank: NDArray[np.intp]
    score: Array
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: Array
    objects_image: NDArray[np.intp]

    @classmethod
    def of(cls, evaluation: CategoryEvaluation, area: int) -> "Matches":
        """The matches in the range of areas with this index."""
        number = len(evaluation.image_indices)
        images = evaluation.evalImgs[area * number : (area + 1) * number]
        counts = [len(image["dtScores"]) for image in images]
        rank = np.concatenate([np.arange(count) for count in [0, *counts]]).astype(np.intp)
        score = np.concatenate([np.zeros(0), *(image["dtScores"] for image in images)])
        none = np.zeros((len(evaluation.params.iouThrs), 0))
        matched = np.concatenate([none, *(image["dtMatches"] for image in images)], axis=1) != 0
        ignored = np.concatenate([none, *(image["dtIgnore"] for image in images)], axis=1) != 0
        order = np.argsort(-score, kind="stable")
        return cls(
            np.repeat(evaluation.image_indices, counts)[order],
            rank[order],
            score[order],
            (matched & ~ignored)[:, order],
            ~ignored[:, order],
            np.array([np.count_nonzero(image["gtIgnore"] == 0) for image in images], dtype=np.float64),
            evaluation.image_indices,
        )
