"""Finds all problems of a COCO-format data set that stop or spoil training or evaluation.

:func:`check_coco` stops at the first problem that detectron2 or pycocotools would fail on. This check applies the same
rules, finds all problems, and also finds wrong values that they would silently accept.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any, Literal

from detectron2.config import CfgNode

from ...errors import UserError
from ..coco_format import (
    ANNOTATION,
    CATEGORY,
    EVALUATED_ANNOTATION,
    IMAGE,
    KINDS,
    Entry,
    Rule,
    category_names,
    entry_name,
    problems,
    usable,
)
from ..coco_sets import check_same_categories
from ..image_files import Undecodable
from .anchors import AnchorFit, fit_anchors
from .annotated_folder import AnnotatedFolder, DecodedImages
from .boxes import CornerBox, Notation, Place, Size, clip, overhang, place, suspected_notation
from .duplicates import find_overlap, same_files

Level = Literal["error", "warning", "note"]
# Annotations, each with its image's entry.
Boxes = Sequence[tuple[Entry, Entry]]

RULES: dict[str, dict[str, Rule]] = {"images": IMAGE, "annotations": EVALUATED_ANNOTATION, "categories": CATEGORY}
# LVIS calls a class rare if at most 10 training images show it (Gupta et al. 2019, section 4).
RARE = 10
# With the default anchors, about 15 % of COCO's boxes have no anchor of this IoU.
MAX_UNCOVERED = 0.25


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of problem, with all its occurrences.

    Args:
        count: the number of occurrences.
        level: `error` (stops or spoils training or evaluation), `warning` (may do so), or `note` (good to know).
        key: a stable name for programs.
        what: a description.
        examples: all entries, images or classes with this problem, or a summary of the boxes.
        advice: what to do.
    """

    count: int
    level: Level
    key: str
    what: str
    examples: Sequence[str]
    advice: str


@dataclass(frozen=True, kw_only=True)
class ClassCount:
    """A category's boxes other than crowds, the images with such boxes, and the crowds."""

    id: int
    name: str
    boxes: int
    images: int
    crowds: int


@dataclass(frozen=True, kw_only=True)
class Health:
    """The result of :func:`check_health`; `anchors` is None if there are no boxes to compare with the anchors."""

    json_file: str
    image_root: str
    images: int
    annotations: int
    findings: tuple[Finding, ...]
    classes: tuple[ClassCount, ...]
    anchors: AnchorFit | None

    def count(self, level: Level) -> int:
        """The number of findings of a level."""
        return sum(finding.level == level for finding in self.findings)


def check_health(
    annotated: AnnotatedFolder, images: DecodedImages, others: Sequence[AnnotatedFolder], cfg: CfgNode
) -> Health:
    """Finds all problems of a data set; errors come first.

    Args:
        annotated: the annotations and their images.
        images: the result of :func:`decode_images`.
        others: other splits, which must not share images with this data set.
        cfg: the detector's config, for its anchors.

    Raises:
        UserError: the config can't be used.
    """
    boxes = annotated.boxes()
    notation = suspected_notation([(annotation["bbox"], _size(image)) for annotation, image in boxes])
    classes = _count_classes(annotated)
    anchors = _fit_anchors(boxes, images, cfg) if notation is None else None
    findings = [
        *_entry_findings(annotated),
        *_reference_findings(annotated),
        *_image_findings(annotated, images),
        *(_notation_finding(boxes, notation) if notation else _box_findings(boxes)),
        *_duplicate_findings(annotated),
        *(finding for other in others for finding in _overlap_findings(annotated, other)),
        *_class_findings(annotated, classes),
        *_anchor_findings(anchors),
    ]
    order = ("error", "warning", "note")
    return Health(
        json_file=str(annotated.json_file),
        image_root=str(annotated.image_root),
        images=len(annotated.content["images"]),
        annotations=len(annotated.content["annotations"]),
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.level))),
        classes=tuple(classes),
        anchors=anchors,
    )


def _finding(level: Level, key: str, what: str, examples: Iterable[str], advice: str) -> Iterator[Finding]:
    """A finding, if there are examples."""
    if found := list(examples):
        yield Finding(count=len(found), level=level, key=key, what=what, examples=found, advice=advice)


def _entry_findings(annotated: AnnotatedFolder) -> Iterator[Finding]:
    for kind in KINDS:
        rules, entries = RULES[kind], annotated.content[kind]
        found: dict[tuple[str | None, bool], list[str]] = defaultdict(list)
        seen: set[int] = set()
        repeated = []
        for index, entry in enumerate(entries):
            name = entry_name(kind, index, entry)
            for key, missing, _ in problems(entry, rules):
                value = "" if missing or key == "id" else f": {short(entry if key is None else entry[key])}"
                found[key, missing].append(name + value)
            if usable(entry, rules, "id"):
                if entry["id"] in seen:
                    repeated.append(name)
                seen.add(entry["id"])
        for (key, missing), examples in found.items():
            if key is None:
                yield from _finding(
                    "error", f"{kind}-no-object", f"{kind}: entries that are not objects", examples, "remove them"
                )
            elif missing:
                what, advice = f"{kind}: no {key!r}", f"add it: {rules[key].what}"
                yield from _finding("error", f"{kind}-without-{key}", what, examples, advice)
            else:
                what, advice = f"{kind}: wrong {key!r}", f"it must be {rules[key].what}"
                yield from _finding("error", f"{kind}-wrong-{key}", what, examples, advice)
        what = f"{kind}: the id of an earlier entry"
        yield from _finding("error", f"{kind}-repeated-id", what, repeated, "make ids unique")
        if kind != "annotations" and not entries:
            yield from _finding("error", f"{kind}-empty", f"{kind}: empty list", [f"{kind!r} is empty"], "add some")


def _reference_findings(annotated: AnnotatedFolder) -> Iterator[Finding]:
    for kind, target in (("images", "image"), ("categories", "category")):
        ids = {entry["id"] for entry in annotated.content[kind] if usable(entry, RULES[kind], "id")}
        lost = [
            f"{entry_name('annotations', index, entry)}: {target} {entry[f'{target}_id']}"
            for index, entry in enumerate(annotated.content["annotations"])
            if usable(entry, ANNOTATION, f"{target}_id") and entry[f"{target}_id"] not in ids
        ]
        what = f"annotations with unknown {target} ids"
        yield from _finding("error", f"annotations-unknown-{target}", what, lost, "correct or remove them")
    if not any(isinstance(entry, dict) and not entry.get("iscrowd") for entry in annotated.content["annotations"]):
        found = ["no annotations other than crowds"]
        yield from _finding("error", "nothing-to-learn", "nothing to train on or to detect", found, "add annotations")


def _image_findings(annotated: AnnotatedFolder, images: DecodedImages) -> Iterator[Finding]:
    missing, undecodable = list[str](), list[str]()
    turned, resized = list[str](), list[str]()
    for index, image in annotated.images():
        decoded = images[image["file_name"]]
        name = f"{entry_name('images', index, image)}: {image['file_name']!r}"
        if decoded is None:
            missing.append(name)
        elif isinstance(decoded, Undecodable):
            undecodable.append(f"{name}: {decoded.reason}")
        elif usable(image, IMAGE, "width", "height") and _size(image) != decoded[:2]:
            swapped = decoded.turned and _size(image) == (decoded.height, decoded.width)
            sizes = f"{image['width']}×{image['height']} in the file, the image is {decoded.width}×{decoded.height}"
            (turned if swapped else resized).append(f"{name}: {sizes}")
    what = f"images: not in {annotated.image_root}"
    yield from _finding("error", "images-missing", what, missing, "add them or give another folder")
    what = "images: cannot be decoded"
    yield from _finding("error", "images-undecodable", what, undecodable, "replace or remove them")
    what = "images: width and height before the EXIF rotation"
    advice = "give the size after it, as detectron2 rotates the image; check that the boxes fit the rotated image"
    yield from _finding("error", "images-turned", what, turned, advice)
    what = "images: wrong width or height"
    advice = "correct them; check whether the boxes fit the image or must be scaled"
    yield from _finding("error", "images-wrong-size", what, resized, advice)


def _notation_finding(boxes: Boxes, notation: Notation) -> Iterator[Finding]:
    examples = [_name_box(annotation, image) for annotation, image in boxes]
    what, advice = f"boxes: look like {notation.value}", "convert them to COCO's [x, y, width, height] in pixels"
    yield from _finding("error", "boxes-notation", what, examples, advice)


def _box_findings(boxes: Boxes) -> Iterator[Finding]:
    found: dict[Place, list[str]] = defaultdict(list)
    furthest = 0.0
    seen: set[tuple[Any, ...]] = set()
    repeated = []
    for annotation, image in boxes:
        where = place(annotation["bbox"], _size(image))
        if where is not Place.INSIDE:
            found[where].append(_name_box(annotation, image))
        if where is Place.STICKING_OUT:
            furthest = max(furthest, overhang(annotation["bbox"], _size(image)))
        key = (image["id"], str(annotation.get("category_id")), *annotation["bbox"])
        if key in seen:
            repeated.append(_name_box(annotation, image))
        seen.add(key)
    what, advice = "boxes: wholly outside the image", "correct or remove them"
    yield from _finding("error", "boxes-outside", what, found[Place.OUTSIDE], advice)
    what = f"boxes: extend beyond the image, by up to {furthest:.6g} pixels"
    advice = "clip them (--fix does); detectron2 clips them in training, but not in evaluation"
    yield from _finding("warning", "boxes-sticking-out", what, found[Place.STICKING_OUT], advice)
    what = "boxes: no width or no height"
    advice = "remove them (--fix does); detectron2 drops them in training, but AP counts them as missed"
    yield from _finding("warning", "boxes-empty", what, found[Place.EMPTY], advice)
    what, advice = "boxes: duplicates of the same class in an image", "remove one, or AP counts it as missed"
    yield from _finding("warning", "boxes-repeated", what, repeated, advice)


def _duplicate_findings(annotated: AnnotatedFolder) -> Iterator[Finding]:
    counts = Counter(image["file_name"] for _, image in annotated.images())
    examples = [f"{name!r}: {count} times" for name, count in counts.items() if count > 1]
    what, advice = "images: several entries for one file", "merge the entries, as each has only its own boxes"
    yield from _finding("warning", "images-repeated-name", what, examples, advice)
    groups = [" and ".join(map(repr, sorted(group))) for group in same_files(annotated.files())]
    what, advice = "images: the same image under several names", "keep one of them"
    yield from _finding("warning", "images-repeated-content", what, groups, advice)


def _overlap_findings(annotated: AnnotatedFolder, other: AnnotatedFolder) -> Iterator[Finding]:
    with suppress(UserError):  # other findings report unusable categories
        names = [(each.json_file, category_names(each.json_file, each.content)) for each in (annotated, other)]
        try:
            check_same_categories(*names)
        except UserError as error:
            what, advice = f"categories: different from {other.json_file}", "give both files the same categories"
            yield from _finding("error", "categories-differ", what, [str(error).rsplit(";", 1)[0]], advice)
    overlap = find_overlap(annotated, other)
    advice = "remove them from one of the two: training images must not be used for evaluation"
    for key, pairs, what in (
        ("overlap-same-content", overlap.same_content, "images: also in {} (the same file)"),
        ("overlap-same-look", overlap.same_look, "images: also in {} (the same name and look)"),
    ):
        yield from _finding("error", key, what.format(other.json_file), _name_pairs(pairs), advice)
    what = f"images: look almost the same as others in {other.json_file}"
    advice = "look at them: copies and images of one scene must be in the same split"
    yield from _finding("warning", "overlap-near-look", what, _name_pairs(overlap.near_look), advice)
    what = f"images: the same names as in {other.json_file}; the images could not be compared"
    advice = "give its image folder after it, to compare the images"
    yield from _finding("warning", "overlap-same-name", what, _name_pairs(overlap.same_name), advice)


def _class_findings(annotated: AnnotatedFolder, classes: Sequence[ClassCount]) -> Iterator[Finding]:
    names = Counter(
        category["name"] for category in annotated.content["categories"] if usable(category, CATEGORY, "name")
    )
    examples = [f"{name!r}: {count} times" for name, count in names.items() if count > 1]
    what, advice = "categories: several of one name", "rename or merge them, as results are reported by name"
    yield from _finding("error", "categories-repeated-name", what, examples, advice)
    if annotated.content["annotations"]:
        examples = [f"{count.name!r} (id {count.id})" for count in classes if not count.boxes]
        what, advice = "classes without a box", "add some, or remove the class; its AP is undefined"
        yield from _finding("warning", "classes-empty", what, examples, advice)
    examples = [
        f"{count.name!r}: {count.boxes} boxes in {count.images} images"
        for count in sorted(classes, key=lambda count: count.images)
        if 0 < count.images <= RARE
    ]
    what, advice = f"classes in {RARE} images or fewer", "add images of them; their AP is unreliable"
    yield from _finding("warning", "classes-rare", what, examples, advice)
    ids = [count.id for count in classes]
    gaps = [_span(low + 1, high - 1) for low, high in zip([0, *ids], ids, strict=False) if high > low + 1]
    if ids and ids[0] < 1:
        gaps.insert(0, f"the first is {ids[0]}")
    what, advice = (
        "categories: ids are not 1, 2, 3, …",
        "nothing: detectron2 numbers classes in the order of their ids",
    )
    yield from _finding("note", "category-gaps", what, gaps, advice)
    annotated_ids = {
        annotation["image_id"]
        for annotation in annotated.content["annotations"]
        if usable(annotation, ANNOTATION, "image_id")
    }
    examples = [
        f"{entry_name('images', index, image)}: {image['file_name']!r}"
        for index, image in annotated.images()
        if usable(image, IMAGE, "id") and image["id"] not in annotated_ids
    ]
    what = "images without annotations"
    advice = "check that they show no objects: training skips them, and in evaluation any detection there is wrong"
    yield from _finding("warning", "images-without-annotations", what, examples, advice)


def _anchor_findings(fit: AnchorFit | None) -> Iterator[Finding]:
    if fit is None:
        return
    total = fit.classes[-1]
    if total.uncovered <= MAX_UNCOVERED * total.boxes:
        return
    low, high = fit.sides
    flat, tall = fit.ratios
    reasons = {
        f"smaller than all anchors (side of {low:.0f} pixels)": fit.too_small,
        f"larger than all anchors (side of {high:.0f} pixels)": fit.too_large,
        f"height / width below {flat:.2g} or above {tall:.2g}": fit.too_long,
        "between anchors": total.uncovered - fit.too_small - fit.too_large - fit.too_long,
    }
    yield Finding(
        count=total.uncovered,
        level="warning",
        key="boxes-without-anchor",
        what=f"boxes: {total.uncovered / total.boxes:.0%} have no anchor of IoU 0.5 or more",
        examples=[f"{count} {reason}" for reason, count in reasons.items() if count],
        advice="change MODEL.ANCHOR_GENERATOR.SIZES or ASPECT_RATIOS, or INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST",
    )


def _count_classes(annotated: AnnotatedFolder) -> list[ClassCount]:
    boxes, crowds = Counter[int](), Counter[int]()
    images: dict[int, set[int]] = defaultdict(set)
    for annotation in annotated.content["annotations"]:
        if usable(annotation, ANNOTATION, "category_id", "image_id"):
            category = annotation["category_id"]
            if annotation.get("iscrowd"):
                crowds[category] += 1
            else:
                boxes[category] += 1
                images[category].add(annotation["image_id"])
    names = {
        category["id"]: category["name"]
        for category in annotated.content["categories"]
        if not any(problems(category, CATEGORY))
    }
    return [
        ClassCount(id=id_, name=name, boxes=boxes[id_], images=len(images[id_]), crowds=crowds[id_])
        for id_, name in sorted(names.items())
    ]


def _fit_anchors(boxes: Boxes, images: DecodedImages, cfg: CfgNode) -> AnchorFit | None:
    chosen = [
        (clip(annotation["bbox"], _size(image)), (image["height"], image["width"]))
        for annotation, image in boxes
        if not annotation.get("iscrowd")
        and (images[image["file_name"]] or ())[:2] == _size(image)
        and place(annotation["bbox"], _size(image)) in (Place.INSIDE, Place.STICKING_OUT)
    ]
    return fit_anchors([box for box, _ in chosen], [size for _, size in chosen], cfg) if chosen else None


def _size(image: Entry) -> Size:
    return image["width"], image["height"]


def _name_box(annotation: Entry, image: Entry) -> str:
    return f"annotation {short(annotation.get('id'))} in {image['file_name']!r}: {_numbers(annotation['bbox'])}"


def _numbers(box: CornerBox) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in box)}]"


def _name_pairs(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [repr(mine) if mine == theirs else f"{mine!r} = {theirs!r}" for mine, theirs in pairs]


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
