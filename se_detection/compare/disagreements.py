"""In which images two detectors differ most, as somebody would see who looks at their confident detections."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from pycocotools.coco import COCO

from ..data.coco_format import Entry
from .matching import COCO_AREAS, match_boxes


@dataclass(frozen=True)
class Outcome:
    """Of one detector in one image, at IoU 0.5: its right and its false detections, and the objects that it missed.

    What is matched to a crowd is neither right nor false.
    """

    right: list[Entry] = field(default_factory=list)
    false: list[Entry] = field(default_factory=list)
    missed: list[Entry] = field(default_factory=list)

    @property
    def mistakes(self) -> int:
        """Of both kinds."""
        return len(self.false) + len(self.missed)


@dataclass(frozen=True)
class Disagreement:
    """Of one image: its objects without crowds, and what both detectors made of them."""

    image: Entry
    objects: list[Entry]
    baseline: Outcome
    candidate: Outcome

    @property
    def lead(self) -> int:
        """How many mistakes the candidate makes less."""
        return self.baseline.mistakes - self.candidate.mistakes

    @property
    def found_by_one(self) -> int:
        """How many objects only one of them misses."""
        missed = [{item["id"] for item in outcome.missed} for outcome in (self.baseline, self.candidate)]
        return len(missed[0] ^ missed[1])


def outcomes(coco: COCO, detections: list[Entry]) -> dict[Any, Outcome]:
    """By image id, of the images that have objects or detections.

    Args:
        coco: of :func:`load_annotations`.
        detections: of :func:`load_results`, those that count as given; the best 100 of an image and class do.
    """
    found: dict[Any, Outcome] = {}
    for evaluation in match_boxes(coco, detections, COCO_AREAS[:1]):
        for result in evaluation.evalImgs:
            outcome = found.setdefault(result["image_id"], Outcome())
            boxes = zip(result["dtIds"], result["dtMatches"][0], result["dtIgnore"][0], strict=True)
            for key, match, ignored in boxes:
                if not ignored:
                    (outcome.right if match else outcome.false).append(evaluation.cocoDt.anns[key])
            objects = zip(result["gtIds"], result["gtMatches"][0], result["gtIgnore"], strict=True)
            outcome.missed.extend(
                evaluation.cocoGt.anns[key] for key, match, ignored in objects if not match and not ignored
            )
    return found


def find_disagreements(coco: COCO, baseline: list[Entry], candidate: list[Entry]) -> list[Disagreement]:
    """Of every image, in the order of the set; see :func:`outcomes`."""
    arms = outcomes(coco, baseline), outcomes(coco, candidate)
    objects: dict[Any, list[Entry]] = {}
    for item in coco.anns.values():
        if not item["iscrowd"]:
            objects.setdefault(item["image_id"], []).append(item)
    return [
        Disagreement(image, objects.get(key, []), *(arm.get(key, Outcome()) for arm in arms))
        for key, image in coco.imgs.items()
    ]


def most_different(disagreements: Sequence[Disagreement], count: int) -> list[Disagreement]:
    """The images in which one detector makes most mistakes less than the other, by turns in favour of each.

    So the choice says nothing about which is better. Among equals, those where more objects are found by one alone
    come first, then the order of the set decides.
    """
    ordered = sorted(disagreements, key=lambda item: (-abs(item.lead), -item.found_by_one))
    sides = [item for item in ordered if item.lead > 0], [item for item in ordered if item.lead < 0]
    return [item for pair in zip_longest(*sides) for item in pair if item is not None][:count]
