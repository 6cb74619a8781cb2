"""Samples a data set with the same class proportions, for a quick trial or a split in two.

The images are chosen by iterative stratification, the rarest class first (Sechidis, Tsoumakas and Vlahavas, On the
Stratification of Multi-Label Data, ECML PKDD 2011, algorithm 1).
"""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError, counted
from .coco_format import ANNOTATION, ID, Content, category_names, check_content, read_coco

Labels = dict[int, set[int] | set[None]]


class Part(NamedTuple):
    """The content of one part, and the names of the classes that the file has but this part lacks."""

    content: Content
    lost: list[str]


def sample_coco(json_file: Path, count: int, seed: int = 0) -> tuple[Part, Part]:
    """Samples `count` of a file's images with their annotations; returns the sample and the rest.

    Ids, categories and all other keys are kept. The same file, count and seed give the same sample.

    Raises:
        UserError: the file can't be used, or has fewer images than `count`.
    """
    content = read_coco(json_file)
    check_content(json_file, content, {"id": ID}, {key: ANNOTATION[key] for key in ("id", "image_id", "category_id")})
    categories, annotations = category_names(json_file, content), content["annotations"]
    total = len(content["images"])
    if not 1 <= count <= total:
        has = counted(total, "image")
        raise UserError("data.bad_count", f"--count {count}: {json_file} has {has}; give 1 to {total}")
    classes: dict[int, set[int]] = {image["id"]: set() for image in content["images"]}
    for annotation in annotations:
        if not annotation.get("iscrowd"):
            classes[annotation["image_id"]].add(annotation["category_id"])
    chosen = choose(classes, count, seed)
    present = set().union(*classes.values())

    def part(kept: set[int]) -> Part:
        lost = [categories[id_] for id_ in sorted(present.difference(*(classes[image] for image in kept)))]
        images = [image for image in content["images"] if image["id"] in kept]
        theirs = [annotation for annotation in annotations if annotation["image_id"] in kept]
        return Part({**content, "images": images, "annotations": theirs}, lost)

    return part(chosen), part(classes.keys() - chosen)


def choose(classes: Mapping[int, set[int]], count: int, seed: int = 0) -> set[int]:
    """Chooses images by their classes.

    First, images are chosen greedily until each class is present or `count` is reached. The other images are
    stratified, which chooses about `count`. Then images are added or removed where this changes the class proportions
    least. The seed gives the order in which equivalent images are taken.

    Args:
        classes: the classes of each image, by image id.
    """
    order = sorted(classes)
    random.Random(seed).shuffle(order)
    # Images without a class are stratified as a separate class.
    labels: Labels = {id_: classes[id_] or {None} for id_ in order}
    totals = Counter(label for id_ in order for label in labels[id_])
    share = count / len(order)
    cover = _cover(labels, count)
    return _resize(_stratify(labels, totals, share, cover), cover, labels, totals, count)


def _cover(labels: Labels, count: int) -> set[int]:
    """At most `count` images that show every class, or as many classes as a greedy search finds."""
    missing = set().union(*labels.values()) - {None}
    chosen: set[int] = set()
    while missing and len(chosen) < count:
        best = max(labels, key=lambda id_: len(labels[id_] & missing))
        chosen.add(best)
        missing -= labels[best]
    return chosen


def _stratify(labels: Labels, totals: Counter[int | None], share: float, chosen: set[int]) -> set[int]:
    """Splits images into a share and the rest by iterative stratification; `chosen` are in the share already."""
    lacking = {label: [share * total, (1 - share) * total] for label, total in totals.items()}
    room = [share * len(labels), (1 - share) * len(labels)]
    showing: dict[int | None, dict[int, None]] = defaultdict(dict)
    for id_ in labels:
        for label in labels[id_]:
            showing[label][id_] = None
    result = set(chosen)

    def put(id_: int, side: int) -> None:
        room[side] -= 1
        for label in labels[id_]:
            lacking[label][side] -= 1
            del showing[label][id_]
        if side == 0:
            result.add(id_)

    for id_ in chosen:
        put(id_, 0)
    while open_ := {label: images for label, images in showing.items() if images}:
        rarest = min(open_, key=lambda label: len(open_[label]))
        for id_ in list(open_[rarest]):
            put(id_, 0 if (lacking[rarest][0], room[0]) > (lacking[rarest][1], room[1]) else 1)
    return result


def _resize(chosen: set[int], kept: set[int], labels: Labels, totals: Counter[int | None], count: int) -> set[int]:
    """Adds or removes one image at a time until `count` are chosen.

    Each step takes the image after which the label counts have the smallest chi-square distance to their shares.
    """
    images, columns = list(labels), {label: column for column, label in enumerate(totals)}
    # One entry for each label of each image.
    rows = np.repeat(np.arange(len(images)), [len(labels[id_]) for id_ in images])
    column_of = np.asarray([columns[label] for id_ in images for label in labels[id_]])
    expected = np.asarray([totals[label] for label in columns], dtype=np.float64)
    inside = np.asarray([id_ in chosen for id_ in images])
    fixed = np.asarray([id_ in kept for id_ in images])
    while (missing := count - int(inside.sum())) != 0:
        step = 1 if missing > 0 else -1
        excess = np.bincount(column_of, inside[rows], len(columns)) - count / len(images) * expected
        cost = np.bincount(rows, ((2 * step * excess + 1) / expected)[column_of], len(images))
        cost[inside if step == 1 else ~inside | fixed] = np.inf
        inside[cost.argmin()] ^= True
    return {id_ for id_, is_inside in zip(images, inside, strict=True) if is_inside}
