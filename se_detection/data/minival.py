"""Makes COCO 2014's minival and valminusminival from val2014's annotations and the ids of val2017's images.

Detectron and detectron2 use these two files, which are no longer easy to find. minival has the same 5,000 images as
val2017, with the same ids.
"""

import re
from collections import Counter
from pathlib import Path
from reprlib import repr as short

from ..errors import UserError
from ..files import check_output, write_json
from .coco_format import ANNOTATION, ID, check_entries, check_references, read_coco

# File names as in detectron2's built-in data sets (data/datasets/builtin.py).
MINIVAL, VALMINUSMINIVAL = "instances_minival2014.json", "instances_valminusminival2014.json"
COUNTS = {MINIVAL: 5000, VALMINUSMINIVAL: 35504}


def make_minival(val2014: Path, val2017: Path, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes both files into a folder and returns their paths, minival first.

    Args:
        val2014: `instances_val2014.json`.
        val2017: any COCO file with val2017's images, or a text file with an image id or file name on each line.
        folder: the output folder.
        overwrite: whether to replace existing files.

    Raises:
        UserError: an input can't be used or has the wrong number of images or wrong ids, or an output exists.
    """
    outputs = [folder / name for name in COUNTS]
    for path in outputs:
        check_output(path, inputs=[val2014, val2017], overwrite=overwrite)
    minival_ids = read_image_ids(val2017)
    _check_count(val2017, "val2017", minival_ids, COUNTS[MINIVAL])
    content = read_coco(val2014)
    ids = check_entries(val2014, "images", content["images"], {"id": ID})
    check_entries(val2014, "annotations", content["annotations"], {key: ANNOTATION[key] for key in ("id", "image_id")})
    check_references(val2014, content["annotations"], "image", ids)
    _check_count(val2014, "val2014", ids, sum(COUNTS.values()))
    if foreign := sorted(minival_ids - ids):
        raise UserError(
            f"{val2017}: {len(foreign)} of its image ids are not in {val2014}, the first of them {foreign[0]}; "
            "give COCO's original files"
        )
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
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give val2017's annotations or a list of ids"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8; give val2017's annotations or a list of ids") from error
    if text.lstrip().startswith("{"):
        content = read_coco(path, lists=("images",))
        return check_entries(path, "images", content["images"], {"id": ID})
    # A JSON list, or one id or file name per line: `139`, `000000000139.jpg`, `val2017/000000000139.jpg`.
    ids = []
    for item in filter(None, map(str.strip, re.split(r"[\s,\[\]]+", text))):
        match = re.search(r"(?<!\d)(\d{1,18})(\.jpg)?[\"']?$", item)
        if match is None:
            raise UserError(f"{path}: {short(item)} is not an image id or a COCO image's file name; give one per line")
        ids.append(int(match[1]))
    if len(set(ids)) < len(ids):
        repeated = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{path}: image id {repeated} appears more than once; give each id once")
    return set(ids)


def _check_count(path: Path, name: str, ids: set[int], expected: int) -> None:
    if len(ids) != expected:
        raise UserError(f"{path}: {len(ids)} images instead of {name}'s {expected}; give COCO's complete file")
