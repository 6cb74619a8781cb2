"""Makes a corrected copy of an annotation file and lists the changes.

Values that follow from the images or from the rest of the file are corrected. Other bad entries are removed. Correct
entries are not changed.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ...errors import UserError
from ..coco_format import ANNOTATION, CATEGORY, EVALUATED_ANNOTATION, IMAGE, Entry, category_names, entry_name, usable
from ..image_files import ImageFile
from .annotated_folder import AnnotatedFolder, DecodedImages
from .boxes import CornerBox, Place, Size, clip, overhang, place, suspected_notation

# Boxes that extend beyond an image by at most this (pixels) still fit it.
SLACK = 1.0
# Sizes of the same aspect ratio that differ by more than this (pixels) may belong to one image at two scales.
OFF = 2


class Change(NamedTuple):
    """One kind of change, with all entries that were changed."""

    what: str
    entries: Sequence[str]


class ChangeLog:
    """Collects changes by kind."""

    def __init__(self) -> None:
        self._entries: dict[str, list[str]] = defaultdict(list)

    def add(self, what: str, entry: str) -> None:
        """Adds an entry to a kind of change."""
        self._entries[what].append(entry)

    def changes(self) -> list[Change]:
        """All changes, in the order in which their kinds first occurred."""
        return [Change(what, entries) for what, entries in self._entries.items()]


def fix_annotations(annotated: AnnotatedFolder, decoded_images: DecodedImages) -> tuple[AnnotatedFolder, list[Change]]:
    """A copy that :func:`check_coco` accepts for evaluation, and the changes; the input is not modified.

    Args:
        annotated: the annotations, with an image folder.
        decoded_images: the result of :func:`decode_images`.

    Raises:
        UserError: categories contradict each other, boxes are not (x, y, width, height) in pixels, or nothing to train
            on would be left.
    """
    log = ChangeLog()
    categories = _fixed_categories(annotated, log)
    boxes = _boxes_by_image(annotated)
    _check_notation(annotated)
    images = list(_fixed_images(annotated, decoded_images, boxes, log))
    annotations = list(_fixed_annotations(annotated, images, {category["id"] for category in categories}, log))
    if not any(not annotation["iscrowd"] for annotation in annotations):
        done = "; ".join(f"{change.what} ({len(change.entries)})" for change in log.changes())
        raise UserError(
            f"{annotated.json_file}: nothing to train on would be left ({done or 'it has no annotations'}); check "
            "the image folder, and correct the file by hand"
        )
    content = {**annotated.content, "images": images, "annotations": annotations, "categories": categories}
    return annotated._replace(content=content), log.changes()


def _fixed_categories(annotated: AnnotatedFolder, log: ChangeLog) -> list[Entry]:
    kept: list[Entry] = []
    first: dict[int, Entry] = {}
    for index, category in enumerate(annotated.content["categories"]):
        if usable(category, CATEGORY, *CATEGORY):
            earlier = first.setdefault(category["id"], category)
            if earlier is not category and earlier == category:
                log.add("categories removed: duplicates of an earlier one", entry_name("categories", index, category))
                continue
        kept.append(category)
    try:
        category_names(annotated.json_file, {**annotated.content, "categories": kept})
    except UserError as error:
        raise UserError(f"{error} (--fix can't correct this)") from error
    return kept


def _check_notation(annotated: AnnotatedFolder) -> None:
    notation = suspected_notation(
        [(annotation["bbox"], (image["width"], image["height"])) for annotation, image in annotated.boxes()]
    )
    if notation is not None:
        raise UserError(
            f"{annotated.json_file}: the boxes look like {notation.value}; convert them to COCO's "
            "[x, y, width, height] in pixels first"
        )


def _boxes_by_image(annotated: AnnotatedFolder) -> dict[int, list[CornerBox]]:
    boxes = defaultdict(list)
    for annotation in annotated.content["annotations"]:
        if usable(annotation, ANNOTATION, "image_id", "bbox"):
            boxes[annotation["image_id"]].append(annotation["bbox"])
    return boxes


def _fixed_images(
    annotated: AnnotatedFolder, decoded_images: DecodedImages, boxes: dict[int, list[CornerBox]], log: ChangeLog
) -> Iterator[Entry]:
    files_of_id = defaultdict(set)
    for _, image in annotated.images():
        if usable(image, IMAGE, "id"):
            files_of_id[image["id"]].add(image["file_name"])
    seen: set[int] = set()
    for index, image in enumerate(annotated.content["images"]):
        name = entry_name("images", index, image)
        if not usable(image, IMAGE, "id", "file_name"):
            log.add("images removed: no usable id or file_name", name)
            continue
        name += f": {image['file_name']!r}"
        decoded = decoded_images[image["file_name"]]
        if len(files_of_id[image["id"]]) > 1:
            log.add("images removed: several share an id, so their annotations are ambiguous", name)
        elif image["id"] in seen:
            log.add("images removed: duplicates of an earlier one", name)
        elif decoded is None:
            log.add("images removed: not in the folder", name)
        elif not isinstance(decoded, ImageFile):
            log.add("images removed: they can't be decoded", name)
        else:
            stated = (image["width"], image["height"]) if usable(image, IMAGE, "width", "height") else None
            problem = _size_problem(boxes.get(image["id"], []), stated, decoded)
            if stated == decoded[:2]:
                yield image
            elif problem is not None:
                log.add(f"images removed: their size is wrong, and {problem}", name)
            else:
                log.add("images: width and height set to the image's", name)
                yield {**image, "width": decoded.width, "height": decoded.height}
            seen.add(image["id"])


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
    across, down = (mine / theirs for mine, theirs in zip(stated, actual, strict=True))
    same_shape = abs(across - down) * min(actual) <= 1
    if same_shape and max(abs(mine - theirs) for mine, theirs in zip(stated, actual, strict=True)) > OFF:
        return "the boxes may be for the image at another scale"
    return None


def _fixed_annotations(
    annotated: AnnotatedFolder, images: list[Entry], categories: set[int], log: ChangeLog
) -> Iterator[Entry]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    ids = {
        annotation["id"]
        for annotation in annotated.content["annotations"]
        if usable(annotation, EVALUATED_ANNOTATION, "id")
    }
    next_id = max([0, *ids]) + 1
    seen: set[int] = set()
    for index, annotation in enumerate(annotated.content["annotations"]):
        name = entry_name("annotations", index, annotation)
        reason = _reason_to_remove(annotation, sizes, categories)
        if reason is not None:
            log.add(f"annotations removed: {reason}", name)
            continue
        fixed = dict(annotation)
        if not usable(annotation, EVALUATED_ANNOTATION, "id") or annotation["id"] in seen:
            fixed["id"] = next_id
            next_id += 1
            log.add("annotations: a new id", f"{name} is now {fixed['id']}")
        seen.add(fixed["id"])
        _fix_values(fixed, sizes[annotation["image_id"]], log, name)
        yield fixed


def _reason_to_remove(annotation: Any, sizes: dict[int, Size], categories: set[int]) -> str | None:
    if not usable(annotation, ANNOTATION, "image_id", "category_id", "bbox"):
        return "no usable image_id, category_id or bbox"
    if annotation["image_id"] not in sizes:
        return "their image is not in the file, or was removed"
    if annotation["category_id"] not in categories:
        return "their category is not in the file"
    where = place(annotation["bbox"], sizes[annotation["image_id"]])
    if where is Place.EMPTY:
        return "a box without width or height"
    return "a box outside the image" if where is Place.OUTSIDE else None


def _fix_values(fixed: Entry, size: Size, log: ChangeLog, name: str) -> None:
    """Corrects the values of an annotation that is kept, except its ids."""
    if place(fixed["bbox"], size) is Place.STICKING_OUT:
        log.add("annotations: the box clipped to the image", name)
        fixed["bbox"] = clip(fixed["bbox"], size)
        if usable(fixed, EVALUATED_ANNOTATION, "area"):
            fixed["area"] = min(fixed["area"], _area(fixed))
    if not usable({"ignore": 0, **fixed}, ANNOTATION, "ignore"):
        if _is_set(fixed.pop("ignore")):
            log.add("annotations: ignored ones made crowds, which detectron2 neither trains on nor counts", name)
            fixed["iscrowd"] = 1
        else:
            log.add("annotations: a meaningless 'ignore' removed", name)
    if not usable(fixed, EVALUATED_ANNOTATION, "iscrowd"):
        fixed["iscrowd"] = int(_is_set(fixed.get("iscrowd")))
        log.add(f"annotations: iscrowd set to {fixed['iscrowd']}", name)
    if not usable(fixed, EVALUATED_ANNOTATION, "area"):
        fixed["area"] = _area(fixed)
        log.add("annotations: area set to the box's", name)
    for key in ("segmentation", "keypoints"):
        if not usable({key: None, **fixed}, ANNOTATION, key):
            del fixed[key]
            log.add(f"annotations: '{key}' removed; it must be {ANNOTATION[key].what}", name)


def _area(annotation: Entry) -> float:
    width, height = annotation["bbox"][2:]
    return float(width * height)


def _is_set(value: Any) -> bool:
    return bool(value) and value != "0"
