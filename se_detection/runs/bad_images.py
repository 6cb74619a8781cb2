"""`bad_images.json`: the training images that a run has skipped because they can't be used."""

from collections.abc import Iterable
from pathlib import Path

from ..data.coco_format import is_integer
from ..data.image_files import BadImage
from ..errors import UserError
from ..files import parse_json, write_json
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
    if not path.is_file():
        return []
    try:
        images = [BadImage(**entry) for entry in parse_json(path.read_bytes())["images"]]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise _corrupt(path) from error
    for image in images:
        numbers = (image.width, image.height, image.iteration)
        texts = isinstance(image.file_name, str) and isinstance(image.reason, str)
        if not texts or not all(number is None or is_integer(number) for number in numbers):
            raise _corrupt(path)
    return images


def _corrupt(path: Path) -> UserError:
    return UserError(f"{path} is not a list of skipped images; remove it, and the next training writes a new one")
