"""Makes a corrected copy of an annotation file and lists the changes.

Values that follow from the images or from the rest of the file are corrected. Other bad entries are removed. Correct
entries are not changed.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import UserError
from ..coco_format import (
    ANNOTATION,
    CATEGORY,
    EVALUATED_ANNOTATION,
    IMAGE,
    KINDS,
    Entry,
    category_names,
    entry_name,
    is_crowd,
    is_set,
    mostly_crowds,
    usable,
)
from ..image_files import ImageFile
from .annotated_folder import AnnotatedFolder, DecodedImages, image_size
from .areas import wrong_areas
from .boxes import CornerBox, Size, clip, overhang, place, suspected_notation
from .polygons_and_keypoints import right_shapes

# The changed entries of each kind of change, in the order in which the kinds first occurred.
Changes = defaultdict[str, list[str]]

WHOLE_NUMBERS = ("id", "image_id", "category_id", "width", "height")
# Longer ones don't fit in 64 bits.
NUMBER = re.compile(r"-?\d{1,18}(\.\d{0,18})?", re.ASCII)
# Boxes that extend beyond an image by at most this (pixels) still fit it.
SLACK = 1.0
# Sizes of the same aspect ratio that differ by more than this (pixels) may belong to one image at two scales.
OFF = 2


def fix_annotations(annotated: AnnotatedFolder, decoded_images: DecodedImages) -> tuple[AnnotatedFolder, Changes]:
    """A copy that :func:`check_coco` accepts for evaluation, and the changes; the input is not modified.

    Args:
        annotated: the annotations, with an image folder.
        decoded_images: the result of :func:`decode_images`.

    Raises:
        UserError: categories contradict each other, boxes are not (x, y, width, height) in pixels, or nothing to train
            on would be left.
    """
    changes: Changes = defaultdict(list)
    if annotated.encoding != "utf-8":
        changes["file: written in UTF-8, without a byte order mark"].append(annotated.encoding)
        annotated = annotated._replace(encoding="utf-8")
    annotated = _with_right_names(_with_numbers(annotated, changes), changes)
    categories = _fixed_categories(annotated, changes)
    if notation := suspected_notation([item[:2] for item in annotated.boxes()]):
        advice = "convert them to COCO's [x, y, width, height] in pixels first"
        raise UserError("data.box_notation", f"{annotated.json_file}: the boxes look like {notation}; {advice}")
    images = list(_fixed_images(annotated, decoded_images, changes))
    annotations = list(_fixed_annotations(annotated, images, {category["id"] for category in categories}, changes))
    if mostly_crowds(annotations):
        for crowd in filter(is_crowd, annotations):
            crowd["iscrowd"] = 0
            changes["annotations: iscrowd cleared, as it was set for most"].append(f"annotation {crowd['id']}")
    sizes = {image["id"]: image_size(image) for image in images}
    areas = wrong_areas([(annotation, sizes[annotation["image_id"]]) for annotation in annotations])
    for index, area in areas.items():
        annotations[index]["area"] = area
        what = "annotations: area set to the mask's, or without a mask to the box's"
        changes[what].append(f"annotation {annotations[index]['id']}")
    if not annotations:
        done = "; ".join(f"{what} ({len(entries)})" for what, entries in changes.items())
        problem = f"{annotated.json_file}: nothing to train on would be left ({done or 'it has no annotations'})"
        raise UserError("data.no_objects", f"{problem}; check the image folder, and correct the file by hand")
    content = {**annotated.content, "images": images, "annotations": annotations, "categories": categories}
    return annotated._replace(content=content), changes


def _with_numbers(annotated: AnnotatedFolder, changes: Changes) -> AnnotatedFolder:
    """Converts ids, sizes and boxes that are text, and ids and sizes that are decimals, where they mean one number."""

    def convert(kind: str, index: int, entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        fixed = {key: _whole_number(entry[key]) for key in WHOLE_NUMBERS if key in entry}
        fixed |= {key: _number(entry[key]) for key in ("area",) if key in entry}
        if isinstance(entry.get("bbox"), list):
            fixed["bbox"] = [_number(value) for value in entry["bbox"]]
        for key, value in fixed.items():
            if repr(value) != repr(entry[key]):
                changes[f"{kind}: {key!r} made a number"].append(entry_name(kind, index, entry))
        return entry | fixed

    lists = {
        kind: [convert(kind, index, entry) for index, entry in enumerate(annotated.content[kind])] for kind in KINDS
    }
    return annotated._replace(content={**annotated.content, **lists})


def _number(value: Any) -> Any:
    """The number that a text is; other values are not changed."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    return value


def _whole_number(value: Any) -> Any:
    number = _number(value)
    exact = isinstance(number, float) and abs(number) < 2**53 and number.is_integer()
    return int(number) if exact else number


def _with_right_names(annotated: AnnotatedFolder, changes: Changes) -> AnnotatedFolder:
    renamed = annotated.renamed()
    images = list(annotated.content["images"])
    for index, image in enumerate(images):
        name = image.get("file_name") if isinstance(image, dict) else None
        if isinstance(name, str) and name in renamed:
            images[index] = {**image, "file_name": renamed[name]}
            changes["images: file_name set to the file's"].append(
                f"{entry_name('images', index, image)}: {renamed[name]!r}"
            )
    return annotated._replace(content={**annotated.content, "images": images})


def _fixed_categories(annotated: AnnotatedFolder, changes: Changes) -> list[Entry]:
    kept: dict[str, Entry] = {}
    for index, category in enumerate(annotated.content["categories"]):
        if kept.setdefault(repr(category), category) is not category:
            changes["categories removed: duplicates of an earlier one"].append(
                entry_name("categories", index, category)
            )
    used = {
        entry["category_id"] for entry in annotated.content["annotations"] if usable(entry, ANNOTATION, "category_id")
    }
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for category in kept.values():
        if usable(category, CATEGORY, *CATEGORY):
            by_name[category["name"]].append(category)
    for key, category in list(kept.items()):
        same = by_name[category["name"]] if usable(category, CATEGORY, *CATEGORY) else []
        if same and category["id"] not in used and any(_replaces(other, category, used) for other in same):
            what = "categories removed: no annotations, and the name of another, as Roboflow's root"
            changes[what].append(entry_name("categories", annotated.content["categories"].index(category), category))
            del kept[key]
    try:
        category_names(annotated.json_file, {**annotated.content, "categories": list(kept.values())})
    except UserError as error:
        raise UserError(error.code, f"{error.message} (--fix can't correct this)") from error
    return list(kept.values())


def _replaces(other: Entry, category: Entry, used: set[int]) -> bool:
    """Whether another category of the same name is used, or below this one."""
    below = other.get("supercategory") == category["name"] != category.get("supercategory")
    return other["id"] in used or below


def _fixed_images(annotated: AnnotatedFolder, decoded_images: DecodedImages, changes: Changes) -> Iterator[Entry]:
    boxes: dict[int, list[CornerBox]] = defaultdict(list)
    for annotation in annotated.content["annotations"]:
        if usable(annotation, ANNOTATION, "image_id", "bbox"):
            boxes[annotation["image_id"]].append(annotation["bbox"])
    files_of_id: dict[int, set[str]] = defaultdict(set)
    for _, image in annotated.images():
        if usable(image, IMAGE, "id"):
            files_of_id[image["id"]].add(image["file_name"])
    seen: set[int] = set()
    for index, image in enumerate(annotated.content["images"]):
        name = entry_name("images", index, image)
        if not usable(image, IMAGE, "id", "file_name"):
            changes["images removed: no usable id or file_name"].append(name)
            continue
        name += f": {image['file_name']!r}"
        decoded = decoded_images[image["file_name"]]
        if len(files_of_id[image["id"]]) > 1:
            changes["images removed: several share an id, so their annotations are ambiguous"].append(name)
        elif image["id"] in seen:
            changes["images removed: duplicates of an earlier one"].append(name)
        elif decoded is None:
            changes["images removed: not in the folder"].append(name)
        elif not isinstance(decoded, ImageFile):
            changes["images removed: they can't be decoded"].append(name)
        else:
            seen.add(image["id"])
            stated = image_size(image) if usable(image, IMAGE, "width", "height") else None
            problem = _size_problem(boxes[image["id"]], stated, decoded)
            if stated == decoded[:2]:
                yield image
            elif problem:
                changes[f"images removed: their size is wrong, and {problem}"].append(name)
            else:
                changes["images: width and height set to the image's"].append(name)
                yield {**image, "width": decoded.width, "height": decoded.height}


def _size_problem(boxes: Sequence[CornerBox], stated: Size | None, decoded: ImageFile) -> str | None:
    """Why the boxes may not belong to the decoded image; None if they fit it."""

    def fit(size: Size) -> bool:
        return all(overhang(box, size) <= SLACK for box in boxes)

    actual = (decoded.width, decoded.height)
    if not fit(actual):
        return "the boxes don't fit the image"
    if not boxes or stated is None or not fit(stated):
        return None
    if decoded.turned and stated == actual[::-1]:
        return "the boxes may be for the image before or after its EXIF rotation"
    across, down = stated[0] / actual[0], stated[1] / actual[1]
    same_shape = abs(across - down) * min(actual) <= 1
    if same_shape and max(abs(stated[0] - actual[0]), abs(stated[1] - actual[1])) > OFF:
        return "the boxes may be for the image at another scale"
    return None


def _fixed_annotations(
    annotated: AnnotatedFolder, images: list[Entry], categories: set[int], changes: Changes
) -> Iterator[Entry]:
    sizes = {image["id"]: image_size(image) for image in images}
    annotations = annotated.content["annotations"]
    next_id = max([0, *(entry["id"] for entry in annotations if usable(entry, EVALUATED_ANNOTATION, "id"))]) + 1
    seen: set[int] = set()
    for index, annotation in enumerate(annotations):
        name = entry_name("annotations", index, annotation)
        if reason := _reason_to_remove(annotation, sizes, categories):
            changes[f"annotations removed: {reason}"].append(name)
            continue
        fixed = dict(annotation)
        if not usable(annotation, EVALUATED_ANNOTATION, "id") or annotation["id"] in seen:
            fixed["id"] = next_id
            next_id += 1
            changes["annotations: a new id"].append(f"{name} is now {fixed['id']}")
        seen.add(fixed["id"])
        for change in _fix_values(fixed, sizes[annotation["image_id"]]):
            changes[f"annotations: {change}"].append(name)
        yield fixed


def _reason_to_remove(annotation: Any, sizes: dict[int, Size], categories: set[int]) -> str | None:
    if not usable(annotation, ANNOTATION, "image_id", "category_id", "bbox"):
        return "no usable image_id, category_id or bbox"
    if annotation["image_id"] not in sizes:
        return "their image is not in the file, or was removed"
    if annotation["category_id"] not in categories:
        return "their category is not in the file"
    where = place(annotation["bbox"], sizes[annotation["image_id"]])
    return {"empty": "a box without width or height", "outside": "a box outside the image"}.get(where)


def _fix_values(fixed: Entry, size: Size) -> Iterator[str]:
    """Corrects the values of an annotation that is kept, except its ids; yields the changes."""
    if place(fixed["bbox"], size) == "sticking out":
        fixed["bbox"] = clip(fixed["bbox"], size)
        if usable(fixed, EVALUATED_ANNOTATION, "area"):
            fixed["area"] = min(fixed["area"], float(math.prod(fixed["bbox"][2:])))
        yield "the box clipped to the image"
    if "ignore" in fixed and not usable(fixed, ANNOTATION, "ignore"):
        if is_set(fixed.pop("ignore")):
            fixed["iscrowd"] = 1
            yield "ignored ones made crowds, which detectron2 neither trains on nor counts"
        else:
            yield "a meaningless 'ignore' removed"
    if not usable(fixed, EVALUATED_ANNOTATION, "iscrowd"):
        fixed["iscrowd"] = int(is_set(fixed.get("iscrowd")))
        yield f"iscrowd set to {fixed['iscrowd']}"
    for what, values in right_shapes(fixed).items():
        fixed |= values
        yield what
    for key in ("segmentation", "keypoints"):
        if key in fixed and not usable(fixed, ANNOTATION, key):
            del fixed[key]
            yield f"'{key}' removed; it must be {ANNOTATION[key].what}"
