"""Finds the images in which the confident detections of two detectors differ most."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from pycocotools.coco import COCO

from ..data.coco_format import Entry
from .matching import COCO_AREAS, match_boxes


@dataclass(frozen=True)
class Outcome:
    """A detector's correct and false detections and missed objects in one image, at IoU 0.5.

    Detections matched to a crowd are neither correct nor false.
    """

    correct: list[Entry] = field(default_factory=list)
    false: list[Entry] = field(default_factory=list)
    missed: list[Entry] = field(default_factory=list)

    @property
    def mistakes(self) -> int:
        """The number of false detections and missed objects."""
        return len(self.false) + len(self.missed)


@dataclass(frozen=True)
class Disagreement:
    """The objects in an image, without crowds, and the outcome of both detectors."""

    image: Entry
    objects: list[Entry]
    baseline: Outcome
    candidate: Outcome

    @property
    def lead(self) -> int:
        """How many fewer mistakes the candidate makes."""
        return self.baseline.mistakes - self.candidate.mistakes

    @property
    def found_by_one(self) -> int:
        """The number of objects that only one of the detectors finds."""
        missed = [{item["id"] for item in outcome.missed} for outcome in (self.baseline, self.candidate)]
        return len(missed[0] ^ missed[1])


def outcomes(coco: COCO, detections: list[Entry]) -> dict[Any, Outcome]:
    """A detector's outcome by image id, for the images with objects or detections.

    Args:
        coco: from :func:`load_annotations`.
        detections: from :func:`load_results`; the 100 highest-scoring ones of an image and class are used.
    """
    found: dict[Any, Outcome] = {}
    for evaluation in match_boxes(coco, detections, COCO_AREAS[:1]):
        for result in evaluation.evalImgs:
            outcome = found.setdefault(result["image_id"], Outcome())
            boxes = zip(result["dtIds"], result["dtMatches"][0], result["dtIgnore"][0], strict=True)
            for key, match, ignored in boxes:
                if not ignored:
                    (outcome.correct if match else outcome.false).append(evaluation.cocoDt.anns[key])
            objects = zip(result["gtIds"], result["gtMatches"][0], result["gtIgnore"], strict=True)
            outcome.missed.extend(
                evaluation.cocoGt.anns[key] for key, match, ignored in objects if not match and not ignored
            )
    return found


def find_disagreements(coco: COCO, baseline: list[Entry], candidate: list[Entry]) -> list[Disagreement]:
    """The disagreement in every image, in the order of the data set; see :func:`outcomes`."""
    models = outcomes(coco, baseline), outcomes(coco, candidate)
    objects: dict[Any, list[Entry]] = {}
    for item in coco.anns.values():
        if not item["iscrowd"]:
            objects.setdefault(item["image_id"], []).append(item)
    return [
        Disagreement(image, objects.get(key, []), *(model.get(key, Outcome()) for model in models))
        for key, image in coco.imgs.items()
    ]


def most_different(disagreements: Sequence[Disagreement], count: int) -> list[Disagreement]:
    """The images with the largest leads, alternately in favour of each detector.

    So the choice of images favours neither. Among equal leads, images with more objects that only one detector finds
    come first, then the order of the data set decides.
    """
    ordered = sorted(disagreements, key=lambda item: (-abs(item.lead), -item.found_by_one))
    better, worse = ([item for item in ordered if sign * item.lead > 0] for sign in (1, -1))
    return [item for pair in zip_longest(better, worse) for item in pair if item is not None][:count]
