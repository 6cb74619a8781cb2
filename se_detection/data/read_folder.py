"""Recognizes the format of a folder of data."""

from pathlib import Path

from ..errors import UserError
from .coco_folder import find_coco
from .data_folder import DataFolder
from .voc_folder import find_voc
from .yolo_folder import find_yolo


def find_data(folder: Path) -> DataFolder:
    """The parts of a folder with annotations in COCO's, YOLO's or Pascal VOC's format.

    Raises:
        UserError: it is not a folder, or has none of them; or a file that shows the format is broken.
    """
    if not folder.is_dir():
        raise UserError("data.no_folder", f"{folder} is not a folder; give the one with annotations and images")
    found = find_coco(folder) or find_yolo(folder) or find_voc(folder)
    if found is None:
        looked = "a COCO JSON, YOLO's data.yaml or classes.txt, nor Pascal VOC's Annotations/*.xml"
        raise UserError("data.unknown_format", f"{folder} has neither {looked}; see docs/YOUR_DATA.md")
    return found
