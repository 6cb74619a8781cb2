"""Finds the images in which the confident detections of two detectors differ most."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pycocotools.coco import COCO

from ..data.coco_format import Entry
from .matching import COCO_AREAS, Box, boxes_by_image, match_boxes


@dataclass(frozen=True)
class Outcome:
    """A detector's correct and false detections and missed objects in one image, at IoU 0.5.

    Detections matched to a crowd are neither correct nor false.
    """

    correct: list[Entry]
    false: list[Entry]
    missed: list[Entry]

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


def find_disagreements(coco: COCO, baseline: list[Entry], candidate: list[Entry]) -> list[Disagreement]:
    """The disagreement in every image, in the order of the data set.

    Args:
        coco: from :func:`load_annotations`.
        baseline: from :func:`load_results`; the 100 highest-scoring detections of an image and class are used.
        candidate: as `baseline`.
    """
    models = [boxes_by_image(match_boxes(coco, results, COCO_AREAS[:1])) for results in (baseline, candidate)]
    disagreements = []
    for key, image in coco.imgs.items():
        objects = [item for item in coco.imgToAnns[key] if not item["iscrowd"]]
        pair = [_outcome(*model.get(key, ([], []))) for model in models]
        disagreements.append(Disagreement(image, objects, *pair))
    return disagreements


def _outcome(objects: list[Box], detections: list[Box]) -> Outcome:
    return Outcome(
        [entry for entry, matched in detections if matched],
        [entry for entry, matched in detections if not matched],
        [entry for entry, matched in objects if not matched],
    )


def most_different(disagreements: Sequence[Disagreement], count: int) -> list[Disagreement]:
    """The images with the largest leads, alternately in favour of each detector.

    So the choice of images favours neither. Among equal leads, images with more objects that only one detector finds
    come first, then the order of the data set decides.
    """
    ordered = sorted(disagreements, key=lambda item: (-abs(item.lead), -item.found_by_one))
    better, worse = ([item for item in ordered if sign * item.lead > 0] for sign in (1, -1))
    return [item for pair in zip_longest(better, worse) for item in pair if item is not None][:count]
