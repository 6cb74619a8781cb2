"""Makes COCO 2014's minival and valminusminival from val2014's annotations and the ids of val2017's images.

Detectron and detectron2 use these two files, which are no longer easy to find. minival has the same 5,000 images as
val2017, with the same ids.
"""

import re
from pathlib import Path
from reprlib import repr as short

from ..errors import UserError, counted
from ..files import check_output, write_json
from .coco_format import ANNOTATION, ID, check_content, check_entries, read_coco

# File names as in detectron2's built-in data sets (data/datasets/builtin.py).
MINIVAL, VALMINUSMINIVAL = "instances_minival2014.json", "instances_valminusminival2014.json"
COUNTS = {MINIVAL: 5000, VALMINUSMINIVAL: 35504}


def make_minival(val2014: Path, val2017: Path, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes both files into a folder and returns their paths, minival first.

    Args:
        val2014: `instances_val2014.json`.
        val2017: any COCO file with val2017's images, or a text file with an image id or file name on each line.

    Raises:
        UserError: an input can't be used or has the wrong number of images or wrong ids, or an output exists.
    """
    outputs = [folder / name for name in COUNTS]
    for path in outputs:
        check_output(path, inputs=[val2014, val2017], overwrite=overwrite)
    minival_ids = read_image_ids(val2017)
    content = read_coco(val2014)
    check_content(val2014, content, {"id": ID}, {key: ANNOTATION[key] for key in ("id", "image_id", "category_id")})
    ids = {image["id"] for image in content["images"]}
    for file, found, expected in ((val2017, minival_ids, COUNTS[MINIVAL]), (val2014, ids, sum(COUNTS.values()))):
        if len(found) != expected:
            raise UserError(
                "data.not_coco_val",
                f"{file}: {counted(len(found), 'image')}, not COCO's {expected}; give the whole file",
            )
    if foreign := minival_ids - ids:
        where = f"{val2017}: image ids that are not in {val2014}: {len(foreign)}, such as {min(foreign)}"
        raise UserError("data.not_coco_val", f"{where}; give COCO's original files")
    for path, chosen in zip(outputs, (minival_ids, ids - minival_ids), strict=True):
        images = [image for image in content["images"] if image["id"] in chosen]
        annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in chosen]
        write_json(path, {**content, "images": images, "annotations": annotations})
    return outputs


def read_image_ids(path: Path) -> set[int]:
    """Reads image ids from a COCO file (annotations are not needed), a JSON list, or a text of ids or file names.

    Raises:
        UserError: the file can't be read, or an id is not valid or appears twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("file.unreadable", f"{path}: {error}; give val2017's annotations or a list of ids") from error
    if text.lstrip().startswith("{"):
        return check_entries(path, "images", read_coco(path, lists=("images",))["images"], {"id": ID})
    # A JSON list, or one id or file name per line: `139`, `000000000139.jpg`, `val2017/000000000139.jpg`.
    ids: set[int] = set()
    for item in filter(None, re.split(r"[\s,\[\]]+", text)):
        match = re.search(r"(?<!\d)(\d{1,18})(\.jpg)?[\"']?$", item)
        if match is None or int(match[1]) in ids:
            problem = (
                f"{short(item)} is not an image id or a COCO file name" if match is None else f"{item} appears twice"
            )
            raise UserError("data.bad_id", f"{path}: {problem}; give each image once, one a line")
        ids.add(int(match[1]))
    return ids
