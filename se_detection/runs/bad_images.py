"""`bad_images.json`: the training images that a run has skipped because they can't be used."""

from collections.abc import Iterable
from pathlib import Path

from ..data.image_files import BadImage
from ..errors import UserError
from ..files import read_json, write_json
from .run_folder import BAD_IMAGES


def write_bad_images(folder: Path, images: Iterable[BadImage]) -> None:
    """Writes `bad_images.json`: `count`, and `images` with the fields of :class:`BadImage`.

    Raises:
        UserError: the file can't be written.
    """
    entries = [image._asdict() for image in images]
    write_json(folder / BAD_IMAGES, {"count": len(entries), "images": entries}, indent=2)


def read_bad_images(folder: Path) -> list[BadImage]:
    """Reads the list of a run; empty if the run has none.

    Raises:
        UserError: the file can't be read, or is not such a list.
    """
    path = folder / BAD_IMAGES
    try:
        return [BadImage(**entry) for entry in read_json(path)["images"]] if path.is_file() else []
    except (TypeError, LookupError) as error:
        message = f"{path} is not a list of skipped images; remove it, and the next training writes a new one"
        raise UserError("run.bad_list", message) from error
