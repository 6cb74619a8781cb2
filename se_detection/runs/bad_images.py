"""Training images that can't be used and were left out, as a run lists them."""

from collections.abc import Iterable
from pathlib import Path

from ..data.coco_format import is_integer
from ..data.image_files import BadImage
from ..errors import UserError
from ..files import parse_json, write_json

BAD_IMAGES = "bad_images.json"


def write_bad_images(folder: Path, images: Iterable[BadImage]) -> None:
    """Writes `bad_images.json`: `count`, and `images` with what :class:`BadImage` has.

    Raises:
        UserError: it can't be written.
    """
    entries = [image._asdict() for image in images]
    write_json(folder / BAD_IMAGES, {"count": len(entries), "images": entries}, indent=2)


def read_bad_images(folder: Path) -> list[BadImage]:
    """What a run has listed; nothing where it has no list.

    Raises:
        UserError: the file can't be read, or is no such list.
    """
    path = folder / BAD_IMAGES
    if not path.is_file():
        return []
    try:
        images = [BadImage(**entry) for entry in parse_json(path.read_bytes())["images"]]
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise _damaged(path) from error
    for image in images:
        numbers = (image.width, image.height, image.iteration)
        texts = isinstance(image.file_name, str) and isinstance(image.reason, str)
        if not texts or not all(number is None or is_integer(number) for number in numbers):
            raise _damaged(path)
    return images


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is no list of images that were left out; remove it, and a training makes it anew")
