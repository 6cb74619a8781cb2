"""Corrects masks and keypoints with which mask and keypoint AP can't be measured."""

from typing import Any

from ..coco_format import ANNOTATION, Entry, usable

# Kinds of corrections.
FLAT = "'segmentation' made a list of polygons"
SHORT = "polygons of fewer than three points removed"
COUNT = "num_keypoints set to the number of labelled keypoints"


def right_shapes(annotation: Any) -> dict[str, Entry]:
    """The values to set, by the kind of correction; empty if nothing is to be corrected."""
    if not isinstance(annotation, dict):
        return {}
    found: dict[str, Entry] = {}
    mask, points = annotation.get("segmentation"), annotation.get("keypoints")
    if mask and isinstance(mask, list):
        if usable({"segmentation": [mask]}, ANNOTATION, "segmentation"):
            found[FLAT] = {"segmentation": [mask]}
        elif usable(annotation, ANNOTATION, "segmentation"):
            whole = [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
            found |= {SHORT: {"segmentation": whole}} if len(whole) < len(mask) else {}
    if points and usable(annotation, ANNOTATION, "keypoints") and len(points) % 3 == 0:
        labelled = sum(visibility > 0 for visibility in points[2::3])
        found |= {COUNT: {"num_keypoints": labelled}} if annotation.get("num_keypoints") != labelled else {}
    return found
