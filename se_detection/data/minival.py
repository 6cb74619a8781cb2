"""COCO 2014's minival and valminusminival, from val2014's annotations and the ids of val2017's images.

Detectron and detectron2 look for these files, which are hard to find by now. The 5,000 images of val2017 are those of
minival, with the same ids.
"""

import re
from collections import Counter
from pathlib import Path
from reprlib import repr as short

from ..errors import UserError
from ..files import check_output, write_json
from .coco_format import ANNOTATION, ID, check_entries, check_references, read_coco

# The names are those in detectron2's list of built-in data sets (data/datasets/builtin.py).
MINIVAL, VALMINUSMINIVAL = "instances_minival2014.json", "instances_valminusminival2014.json"
COUNTS = {MINIVAL: 5000, VALMINUSMINIVAL: 35504}


def make_minival(val2014: Path, val2017: Path, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes both files into a folder and returns their paths, minival's first.

    Args:
        val2014: `instances_val2014.json`.
        val2017: any COCO file of val2017's images, or a text with an id or a file name on each line.
        folder: where the files go.
        overwrite: replace files that are there already.

    Raises:
        UserError: a file can't be used, is not the one that is meant (by its number of images, and ids), or is in the
            way.
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
            "give COCO's own files"
        )
    for path, chosen in zip(outputs, (minival_ids, ids - minival_ids), strict=True):
        images = [image for image in content["images"] if image["id"] in chosen]
        annotations = [annotation for annotation in content["annotations"] if annotation["image_id"] in chosen]
        write_json(path, {**content, "images": images, "annotations": annotations})
    return outputs


def read_image_ids(path: Path) -> set[int]:
    """The image ids of a COCO file (with annotations or without), of a JSON list, or of a text of ids or file names.

    Raises:
        UserError: it can't be read, or an id is none or is there twice.
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
    # A JSON list of ids, or one id or file name a line: `139`, `000000000139.jpg`, `val2017/000000000139.jpg`.
    ids = []
    for item in filter(None, map(str.strip, re.split(r"[\s,\[\]]+", text))):
        match = re.search(r"(?<!\d)(\d{1,18})(\.jpg)?[\"']?$", item)
        if match is None:
            raise UserError(f"{path}: {short(item)} is no image id and no name of a COCO image; give one a line")
        ids.append(int(match[1]))
    if len(set(ids)) < len(ids):
        repeated = Counter(ids).most_common(1)[0][0]
        raise UserError(f"{path}: image id {repeated} is there twice; give every id once")
    return set(ids)


def _check_count(path: Path, name: str, ids: set[int], expected: int) -> None:
    if len(ids) != expected:
        raise UserError(f"{path}: {len(ids)} images instead of {name}'s {expected}; give COCO's own file, whole")
