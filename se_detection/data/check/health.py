"""Finds all problems of a COCO-format data set that stop or spoil training or evaluation.

:func:`check_coco` stops at the first problem that detectron2 or pycocotools would fail on. This check applies the same
rules, finds all problems, and also finds wrong values that they would silently accept.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from reprlib import repr as short
from typing import Any, Literal

from detectron2.config import CfgNode

from ...errors import UserError, counted
from ..coco_format import (
    ANNOTATION,
    CATEGORY,
    EVALUATED_ANNOTATION,
    IMAGE,
    KINDS,
    REFERENCES,
    category_names,
    entry_name,
    is_crowd,
    is_number,
    mostly_crowds,
    problems,
    usable,
)
from ..coco_sets import category_difference
from .anchors import fit_anchors
from .annotated_folder import AnnotatedFolder, Box, DecodedImages, image_size
from .areas import wrong_areas
from .boxes import clip, overhang, place, suspected_notation
from .duplicates import find_overlap, same_files
from .polygons_and_keypoints import COUNT, SHORT, right_shapes

Finding = dict[str, Any]
Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
RULES = {"images": IMAGE, "annotations": EVALUATED_ANNOTATION, "categories": CATEGORY}
# LVIS calls a class rare if at most 10 training images show it (Gupta et al. 2019, section 4).
RARE = 10
# With the default anchors, about 15 % of COCO's boxes have no anchor of this IoU.
MAX_UNCOVERED = 0.25


def check_health(
    annotated: AnnotatedFolder, images: DecodedImages, others: Sequence[AnnotatedFolder], cfg: CfgNode
) -> dict[str, Any]:
    """Finds all problems of a data set.

    Args:
        annotated: the annotations and their images.
        images: the result of :func:`decode_images`.
        others: other splits, which must not share images with this data set.
        cfg: the detector's config, for its anchors.

    Returns:
        For JSON: the paths, the numbers of `images`, `annotations`, `errors` and `warnings`; `findings`, errors first;
        `classes`: id, name, and the numbers of boxes other than crowds, of images with such boxes, and of crowds;
        `anchors`: from :func:`fit_anchors`, None without boxes. A finding is a kind of problem: the number of problems
        (`count`), its `level`, a `key` for programs, `what` it is, all `examples`, and `advice`. Errors stop or spoil
        training or evaluation, warnings may do so, notes are good to know.

    Raises:
        UserError: the config can't be used.
    """
    boxes = annotated.boxes()
    notation = suspected_notation([item[:2] for item in boxes])
    classes = _count_classes(annotated)
    anchors = _fit_anchors(boxes, images, cfg) if notation is None else None
    findings = [
        *_entry_findings(annotated),
        *_reference_findings(annotated),
        *_image_findings(annotated, images),
        *_box_findings(boxes, notation),
        *_shape_findings(annotated),
        *_duplicate_findings(annotated),
        *(finding for other in others for finding in _overlap_findings(annotated, other)),
        *_class_findings(annotated, classes),
        *_anchor_findings(anchors),
    ]
    levels = Counter(finding["level"] for finding in findings)
    return {
        "json_file": str(annotated.json_file),
        "image_root": str(annotated.image_root),
        "images": len(annotated.content["images"]),
        "annotations": len(annotated.content["annotations"]),
        "findings": sorted(findings, key=lambda finding: LEVELS.index(finding["level"])),
        "classes": classes,
        "anchors": anchors,
        "errors": levels["error"],
        "warnings": levels["warning"],
    }


def _finding(
    level: Level, key: str, what: str, advice: str, examples: Sequence[str], count: int | None = None
) -> Iterator[Finding]:
    """A finding, if there are examples."""
    if examples:
        count = len(examples) if count is None else count
        yield {"count": count, "level": level, "key": key, "what": what, "examples": examples, "advice": advice}


def _entry_findings(annotated: AnnotatedFolder) -> Iterator[Finding]:
    if annotated.encoding != "utf-8":
        what, advice = "file: not in UTF-8, or with a byte order mark", "write it in UTF-8 (--fix does)"
        yield from _finding("error", "file-encoding", what, advice, [annotated.encoding])
    for kind in KINDS:
        rules, entries = RULES[kind], annotated.content[kind]
        found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        seen: set[int] = set()
        for index, entry in enumerate(entries):
            name = entry_name(kind, index, entry)
            for key, _ in problems(entry, rules):
                if key is None:
                    found["no-object", "entries that are not objects", "remove them"].append(f"{name}: {short(entry)}")
                elif key not in entry:
                    found[f"without-{key}", f"no {key!r}", f"add it: {rules[key].what}"].append(name)
                else:
                    value = "" if key == "id" else f": {short(entry[key])}"
                    found[f"wrong-{key}", f"wrong {key!r}", f"it must be {rules[key].what}"].append(name + value)
            if usable(entry, rules, "id"):
                if entry["id"] in seen:
                    found["repeated-id", "the id of an earlier entry", "make ids unique"].append(name)
                seen.add(entry["id"])
        if kind != "annotations" and not entries:
            found["empty", "empty list", "add some"].append(f"{kind!r} is empty")
        for (key, what, advice), examples in found.items():
            yield from _finding("error", f"{kind}-{key}", f"{kind}: {what}", advice, examples)


def _reference_findings(annotated: AnnotatedFolder) -> Iterator[Finding]:
    annotations = annotated.content["annotations"]
    for kind, key in REFERENCES.items():
        ids = {entry["id"] for entry in annotated.content[kind] if usable(entry, RULES[kind], "id")}
        target = key.removesuffix("_id")
        lost = [
            f"{entry_name('annotations', index, entry)}: {target} {entry[key]}"
            for index, entry in enumerate(annotations)
            if usable(entry, ANNOTATION, key) and entry[key] not in ids
        ]
        what = f"annotations with unknown {target} ids"
        yield from _finding("error", f"annotations-unknown-{target}", what, "correct or remove them", lost)
    flagged = [entry_name("annotations", index, entry) for index, entry in enumerate(annotations) if is_crowd(entry)]
    if not any(isinstance(entry, dict) and not entry.get("iscrowd") for entry in annotations):
        what, examples = "nothing to train on or to detect", ["no annotations other than crowds"]
        yield from _finding("error", "nothing-to-learn", what, "add annotations", examples)
    what = f"annotations: {len(flagged)} of {len(annotations)} are crowds (iscrowd 1), which training does not use"
    advice = "set iscrowd 0 for single objects, if a tool set it because of their masks (--fix does for all)"
    yield from _finding(
        "error", "annotations-mostly-crowds", what, advice, flagged if mostly_crowds(annotations) else []
    )


def _image_findings(annotated: AnnotatedFolder, images: DecodedImages) -> Iterator[Finding]:
    renamed = annotated.renamed()
    renames = [
        f"{entry_name('images', index, image)}: {short(image['file_name'])} is {renamed[image['file_name']]!r}"
        for index, image in enumerate(annotated.content["images"])
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and image["file_name"] in renamed
    ]
    what, advice = f"images: other names than in {annotated.image_root}", "correct the names (--fix does)"
    yield from _finding("error", "images-renamed", what, advice, renames)
    found: dict[str, list[str]] = defaultdict(list)
    for index, image in annotated.images():
        if image["file_name"] in renamed:
            continue
        decoded = images[image["file_name"]]
        name = f"{entry_name('images', index, image)}: {image['file_name']!r}"
        if decoded is None:
            found["missing"].append(name)
        elif isinstance(decoded, str):
            found["undecodable"].append(f"{name}: {decoded}")
        elif usable(image, IMAGE, "width", "height") and image_size(image) != decoded[:2]:
            swapped = decoded.turned and image_size(image) == (decoded.height, decoded.width)
            sizes = f"{image['width']}×{image['height']} in the file, the image is {decoded.width}×{decoded.height}"
            found["turned" if swapped else "wrong-size"].append(f"{name}: {sizes}")
    turned = "give the size after it, as detectron2 rotates the image; check that the boxes fit the rotated image"
    for key, what, advice in (
        ("missing", f"not in {annotated.image_root}", "add them or give another folder"),
        ("undecodable", "cannot be decoded", "replace or remove them"),
        ("turned", "width and height before the EXIF rotation", turned),
        (
            "wrong-size",
            "wrong width or height",
            "correct them; check whether the boxes fit the image or must be scaled",
        ),
    ):
        yield from _finding("error", f"images-{key}", f"images: {what}", advice, found[key])


def _box_findings(boxes: Sequence[Box], notation: str | None) -> Iterator[Finding]:
    if notation:
        what, advice = f"boxes: look like {notation}", "convert them to COCO's [x, y, width, height] in pixels"
        yield from _finding("error", "boxes-notation", what, advice, list(map(_name_box, boxes)))
        return
    found: dict[str, list[str]] = defaultdict(list)
    furthest = 0.0
    seen: set[tuple[Any, ...]] = set()
    for item in boxes:
        where = place(item.box, item.size)
        found[where].append(_name_box(item))
        if where == "sticking out":
            furthest = max(furthest, overhang(item.box, item.size))
        key = (item.image["id"], str(item.annotation.get("category_id")), *item.box)
        if key in seen:
            found["repeated"].append(_name_box(item))
        seen.add(key)
    clipped = "clip them (--fix does); detectron2 clips them in training, but not in evaluation"
    dropped = "remove them (--fix does); detectron2 drops them in training, but AP counts them as missed"
    yield from _finding(
        "error", "boxes-outside", "boxes: outside the image", "correct or remove them", found["outside"]
    )
    what = f"boxes: extend beyond the image, by up to {furthest:.6g} pixels"
    yield from _finding("warning", "boxes-sticking-out", what, clipped, found["sticking out"])
    yield from _finding("warning", "boxes-empty", "boxes: no width or no height", dropped, found["empty"])
    what, advice = "boxes: duplicates of the same class in an image", "remove one, or AP counts it as missed"
    yield from _finding("warning", "boxes-repeated", what, advice, found["repeated"])
    stated = [
        item
        for item in boxes
        if usable(item.annotation, EVALUATED_ANNOTATION, "area")
        and place(item.box, item.size) in ("inside", "sticking out")
    ]
    areas = wrong_areas([(item.annotation, item.size) for item in stated])
    examples = [
        f"{_name_box(stated[index])}: area {stated[index].annotation['area']:.6g}, should be {area:.6g}"
        for index, area in areas.items()
    ]
    what = "annotations: area is not that of the mask or the box"
    advice = "correct it (--fix does): AP of small, medium and large objects is wrong"
    yield from _finding("warning", "annotations-area", what, advice, examples)


def _shape_findings(annotated: AnnotatedFolder) -> Iterator[Finding]:
    found: dict[str, list[str]] = defaultdict(list)
    for index, annotation in enumerate(annotated.content["annotations"]):
        name = entry_name("annotations", index, annotation)
        for what in right_shapes(annotation):
            found[what].append(name)
        attributes = annotation.get("attributes") if isinstance(annotation, dict) else None
        rotation = attributes.get("rotation", 0) if isinstance(attributes, dict) else 0
        if is_number(rotation) and rotation % 180:
            found["rotated"].append(f"{name}: {rotation:.6g} degrees")
    what, advice = "annotations: polygons of fewer than three points", "remove them (--fix does): mask AP needs three"
    yield from _finding("warning", "annotations-short-polygons", what, advice, found[SHORT])
    what = "annotations: num_keypoints is not the number of labelled keypoints"
    advice = "correct it (--fix does): keypoint AP needs it, and ignores objects with 0"
    yield from _finding("warning", "annotations-num-keypoints", what, advice, found[COUNT])
    what = "boxes: before a rotation, which CVAT gives in 'attributes'"
    advice = "give the boxes around the rotated ones, or draw polygons: no detector here rotates its boxes"
    yield from _finding("warning", "boxes-rotated", what, advice, found["rotated"])


def _duplicate_findings(annotated: AnnotatedFolder) -> Iterator[Finding]:
    names = (image["file_name"] for _, image in annotated.images())
    what, advice = "images: several entries for one file", "merge the entries, as each has only its own boxes"
    yield from _finding("warning", "images-repeated-name", what, advice, _repeated(names))
    groups = [" and ".join(map(repr, sorted(group))) for group in same_files(annotated.files())]
    what = "images: the same image under several names"
    yield from _finding("warning", "images-repeated-content", what, "keep one of them", groups)


def _overlap_findings(annotated: AnnotatedFolder, other: AnnotatedFolder) -> Iterator[Finding]:
    with suppress(UserError):  # other findings report unusable categories
        names = [category_names(each.json_file, each.content) for each in (annotated, other)]
        if difference := category_difference(*names):
            what, examples = f"categories: different from {other.json_file}", [" and ".join(difference)]
            yield from _finding("error", "categories-differ", what, "give both files the same categories", examples)
    remove = "remove them from one of the two: training images must not be used for evaluation"
    look = "look at them: copies and images of one scene must be in the same split"
    compare = "give its image folder after it, to compare the images"
    texts: dict[str, tuple[Level, str, str]] = {
        "same-content": ("error", "also in {} (the same file)", remove),
        "same-look": ("error", "also in {} (the same name and look)", remove),
        "near-look": ("warning", "look almost the same as others in {}", look),
        "same-name": ("warning", "the same names as in {}; the images could not be compared", compare),
    }
    for key, pairs in find_overlap(annotated, other).items():
        level, what, advice = texts[key]
        examples = [repr(mine) if mine == theirs else f"{mine!r} = {theirs!r}" for mine, theirs in pairs]
        yield from _finding(level, f"overlap-{key}", f"images: {what.format(other.json_file)}", advice, examples)


def _class_findings(annotated: AnnotatedFolder, classes: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    categories, annotations = annotated.content["categories"], annotated.content["annotations"]
    names = (category["name"] for category in categories if usable(category, CATEGORY, "name"))
    what, advice = "categories: several of one name", "rename or merge them (--fix removes one without annotations)"
    yield from _finding("error", "categories-repeated-name", what, advice, _repeated(names))
    empty = [f"{row['name']!r} (id {row['id']})" for row in classes if annotations and not row["boxes"]]
    advice = "add some, or remove the class; its AP is undefined"
    yield from _finding("warning", "classes-empty", "classes without a box", advice, empty)
    rare = [
        f"{row['name']!r}: {counted(row['boxes'], 'box', 'boxes')} in {counted(row['images'], 'image')}"
        for row in sorted(classes, key=lambda row: row["images"])
        if 0 < row["images"] <= RARE
    ]
    what, advice = f"classes in {RARE} images or fewer", "add images of them; their AP is unreliable"
    yield from _finding("warning", "classes-rare", what, advice, rare)
    ids = [row["id"] for row in classes]
    gaps = [f"the first is {ids[0]}"] if ids and ids[0] < 1 else []
    for low, high in zip([0, *ids], ids, strict=False):
        if high > low + 1:
            gaps.append(str(low + 1) if high == low + 2 else f"{low + 1} to {high - 1}")
    what, advice = "categories: ids are not 1, 2, 3, …", "nothing: detectron2 numbers classes in the order of their ids"
    yield from _finding("note", "category-gaps", what, advice, gaps)
    annotated_ids = {entry["image_id"] for entry in annotations if usable(entry, ANNOTATION, "image_id")}
    without = [
        f"{entry_name('images', index, image)}: {image['file_name']!r}"
        for index, image in annotated.images()
        if usable(image, IMAGE, "id") and image["id"] not in annotated_ids
    ]
    advice = "check that they show no objects: training skips them, and in evaluation any detection there is wrong"
    yield from _finding("warning", "images-without-annotations", "images without annotations", advice, without)


def _anchor_findings(fit: dict[str, Any] | None) -> Iterator[Finding]:
    if fit is None or (total := fit["classes"][-1])["uncovered"] <= MAX_UNCOVERED * total["boxes"]:
        return
    (low, high), (flat, tall) = fit["sides"], fit["ratios"]
    between = total["uncovered"] - fit["too_small"] - fit["too_large"] - fit["too_long"]
    reasons = {
        f"smaller than all anchors (side of {low:.0f} pixels)": fit["too_small"],
        f"larger than all anchors (side of {high:.0f} pixels)": fit["too_large"],
        f"height / width below {flat:.2g} or above {tall:.2g}": fit["too_long"],
        "between anchors": between,
    }
    examples = [f"{count} {reason}" for reason, count in reasons.items() if count]
    what = f"boxes: {total['uncovered'] / total['boxes']:.0%} have no anchor of IoU 0.5 or more"
    advice = "change MODEL.ANCHOR_GENERATOR.SIZES or ASPECT_RATIOS, or INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST"
    yield from _finding("warning", "boxes-without-anchor", what, advice, examples, total["uncovered"])


def _count_classes(annotated: AnnotatedFolder) -> list[dict[str, Any]]:
    boxes, crowds = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for entry in annotated.content["annotations"]:
        if usable(entry, ANNOTATION, "category_id", "image_id"):
            (crowds if entry.get("iscrowd") else boxes)[entry["category_id"]].append(entry["image_id"])
    categories = (category for category in annotated.content["categories"] if usable(category, CATEGORY, *CATEGORY))
    return [
        {"id": id_, "name": name, "boxes": len(boxes[id_]), "images": len(set(boxes[id_])), "crowds": len(crowds[id_])}
        for id_, name in sorted({category["id"]: category["name"] for category in categories}.items())
    ]


def _fit_anchors(boxes: Sequence[Box], images: DecodedImages, cfg: CfgNode) -> dict[str, Any] | None:
    chosen = [
        (clip(item.box, item.size), item.size[::-1])
        for item in boxes
        if not item.annotation.get("iscrowd")
        and (images[item.image["file_name"]] or ())[:2] == item.size
        and place(item.box, item.size) in ("inside", "sticking out")
    ]
    return fit_anchors([box for box, _ in chosen], [size for _, size in chosen], cfg) if chosen else None


def _name_box(item: Box) -> str:
    numbers = ", ".join(f"{value:.6g}" for value in item.box)
    return f"annotation {short(item.annotation.get('id'))} in {item.image['file_name']!r}: [{numbers}]"


def _repeated(names: Iterable[str]) -> list[str]:
    return [f"{name!r}: {counted(count, 'time')}" for name, count in Counter(names).items() if count > 1]
