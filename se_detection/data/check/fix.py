"""A corrected copy of an annotation file, and what was changed in it.

What can be told from the images and from the rest of the file is corrected; what can't is left out. Whatever is right
stays as it is.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ...errors import UserError
from ..coco_format import ANNOTATION, CATEGORY, EVALUATED_ANNOTATION, IMAGE, Entry, category_names, entry_name, usable
from ..image_files import ImageFile
from .annotated_folder import AnnotatedFolder, DecodedImages
from .boxes import CornerBox, Place, Size, clip, overhang, place, suspected_notation

# Boxes that reach out of an image no further than this (pixels) may be meant for one of its size.
SLACK = 1.0
# Sizes of the same shape that differ by more than this (pixels) may be those of one image at two scales.
OFF = 2


class Change(NamedTuple):
    """One thing that was changed, with every entry that it was changed in."""

    what: str
    entries: Sequence[str]


class Note:
    """Takes down changes, by what was changed."""

    def __init__(self) -> None:
        self._entries: dict[str, list[str]] = defaultdict(list)

    def __call__(self, what: str, entry: str) -> None:
        self._entries[what].append(entry)

    def changes(self) -> list[Change]:
        """All that was taken down, in the order in which it first occurred."""
        return [Change(what, entries) for what, entries in self._entries.items()]


def fix_split(split: AnnotatedFolder, decoded_images: DecodedImages) -> tuple[AnnotatedFolder, list[Change]]:
    """The split as :func:`check_coco` accepts it for evaluation, and what was changed; the input is left alone.

    Args:
        split: the annotations; their images' folder must be known.
        decoded_images: what :func:`decode_images` found.

    Raises:
        UserError: categories that contradict each other, or boxes that are not (x, y, width, height) in pixels; or
            nothing would be left.
    """
    note = Note()
    categories = _fix_categories(split, note)
    boxes = _boxes_by_image(split)
    _check_notation(split)
    images = list(_fix_images(split, decoded_images, boxes, note))
    annotations = list(_fix_annotations(split, images, {category["id"] for category in categories}, note))
    if not any(not annotation["iscrowd"] for annotation in annotations):
        done = "; ".join(f"{change.what} ({len(change.entries)})" for change in note.changes())
        raise UserError(
            f"{split.json_file}: nothing to train on would be left ({done or 'it has no annotations'}); see whether "
            "the image folder is the right one, and correct the file by hand"
        )
    content = {**split.content, "images": images, "annotations": annotations, "categories": categories}
    return split._replace(content=content), note.changes()


def _fix_categories(split: AnnotatedFolder, note: Note) -> list[Entry]:
    kept: list[Entry] = []
    first: dict[int, Entry] = {}
    for index, category in enumerate(split.content["categories"]):
        if usable(category, CATEGORY, *CATEGORY):
            earlier = first.setdefault(category["id"], category)
            if earlier is not category and earlier == category:
                note("categories removed: the same as an earlier one", entry_name("categories", index, category))
                continue
        kept.append(category)
    try:
        category_names(split.json_file, {**split.content, "categories": kept})
    except UserError as error:
        raise UserError(f"{error} (what was meant can't be told from the file)") from error
    return kept


def _check_notation(split: AnnotatedFolder) -> None:
    notation = suspected_notation(
        [(annotation["bbox"], (image["width"], image["height"])) for annotation, image in split.boxes()]
    )
    if notation is not None:
        raise UserError(
            f"{split.json_file}: the boxes look like {notation.value}, and clipping would spoil them; convert them to "
            "COCO's [x, y, width, height] in pixels first"
        )


def _boxes_by_image(split: AnnotatedFolder) -> dict[int, list[CornerBox]]:
    boxes = defaultdict(list)
    for annotation in split.content["annotations"]:
        if usable(annotation, ANNOTATION, "image_id", "bbox"):
            boxes[annotation["image_id"]].append(annotation["bbox"])
    return boxes


def _fix_images(
    split: AnnotatedFolder, decoded_images: DecodedImages, boxes: dict[int, list[CornerBox]], note: Note
) -> Iterator[Entry]:
    files_of_id = defaultdict(set)
    for _, image in split.images():
        if usable(image, IMAGE, "id"):
            files_of_id[image["id"]].add(image["file_name"])
    seen: set[int] = set()
    for index, image in enumerate(split.content["images"]):
        name = entry_name("images", index, image)
        if not usable(image, IMAGE, "id", "file_name"):
            note("images removed: no usable id or file_name", name)
            continue
        name += f": {image['file_name']!r}"
        decoded = decoded_images[image["file_name"]]
        if len(files_of_id[image["id"]]) > 1:
            note("images removed: several share an id, and whose its annotations are can't be told", name)
        elif image["id"] in seen:
            note("images removed: the same as an earlier one", name)
        elif decoded is None:
            note("images removed: not in the folder", name)
        elif not isinstance(decoded, ImageFile):
            note("images removed: they can't be decoded", name)
        else:
            stated = (image["width"], image["height"]) if usable(image, IMAGE, "width", "height") else None
            problem = _frame_problem(boxes.get(image["id"], []), stated, decoded)
            if stated == decoded[:2]:
                yield image
            elif problem is not None:
                note(f"images removed: their size is wrong, and {problem}", name)
            else:
                note("images: width and height set to the image's", name)
                yield {**image, "width": decoded.width, "height": decoded.height}
            seen.add(image["id"])


def _frame_problem(boxes: Sequence[CornerBox], stated: Size | None, decoded: ImageFile) -> str | None:
    """Why boxes may not be those of the image as it is; None where nothing speaks against it."""

    def fit(size: Size) -> bool:
        return all(overhang(box, size) <= SLACK for box in boxes)

    actual = (decoded.width, decoded.height)
    if not fit(actual):
        return "the boxes don't fit the image"
    if not boxes or stated is None or not fit(stated):
        return None
    if decoded.turned and stated == actual[::-1]:
        return "whether the boxes are those of the turned image can't be told"
    across, down = (mine / theirs for mine, theirs in zip(stated, actual, strict=True))
    same_shape = abs(across - down) * min(actual) <= 1
    if same_shape and max(abs(mine - theirs) for mine, theirs in zip(stated, actual, strict=True)) > OFF:
        return "the boxes may be for the image at another scale"
    return None


def _fix_annotations(split: AnnotatedFolder, images: list[Entry], categories: set[int], note: Note) -> Iterator[Entry]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    ids = {
        annotation["id"]
        for annotation in split.content["annotations"]
        if usable(annotation, EVALUATED_ANNOTATION, "id")
    }
    next_id = max([0, *ids]) + 1
    seen: set[int] = set()
    for index, annotation in enumerate(split.content["annotations"]):
        name = entry_name("annotations", index, annotation)
        reason = _reason_to_remove(annotation, sizes, categories)
        if reason is not None:
            note(f"annotations removed: {reason}", name)
            continue
        fixed = dict(annotation)
        if not usable(annotation, EVALUATED_ANNOTATION, "id") or annotation["id"] in seen:
            fixed["id"] = next_id
            next_id += 1
            note("annotations: a new id", f"{name} is now {fixed['id']}")
        seen.add(fixed["id"])
        _fix_values(fixed, sizes[annotation["image_id"]], note, name)
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


def _fix_values(fixed: Entry, size: Size, note: Note, name: str) -> None:
    """Corrects what an annotation that stays has beside its ids."""
    if place(fixed["bbox"], size) is Place.STICKING_OUT:
        note("annotations: the box clipped to the image", name)
        fixed["bbox"] = clip(fixed["bbox"], size)
        if usable(fixed, EVALUATED_ANNOTATION, "area"):
            fixed["area"] = min(fixed["area"], _area(fixed))
    if not usable({"ignore": 0, **fixed}, ANNOTATION, "ignore"):
        if _is_set(fixed.pop("ignore")):
            note("annotations: ignored ones made crowds, which detectron2 neither trains on nor counts", name)
            fixed["iscrowd"] = 1
        else:
            note("annotations: a meaningless 'ignore' removed", name)
    if not usable(fixed, EVALUATED_ANNOTATION, "iscrowd"):
        fixed["iscrowd"] = int(_is_set(fixed.get("iscrowd")))
        note(f"annotations: iscrowd set to {fixed['iscrowd']}", name)
    if not usable(fixed, EVALUATED_ANNOTATION, "area"):
        fixed["area"] = _area(fixed)
        note("annotations: area set to the box's", name)
    for key in ("segmentation", "keypoints"):
        if not usable({key: None, **fixed}, ANNOTATION, key):
            del fixed[key]
            note(f"annotations: '{key}' removed, which is not {ANNOTATION[key].what}", name)


def _area(annotation: Entry) -> float:
    width, height = annotation["bbox"][2:]
    return float(width * height)


def _is_set(value: Any) -> bool:
    return bool(value) and value != "0"
