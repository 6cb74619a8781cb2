"""Training images that can't be used and are skipped: counted, logged, and listed in `bad_images.json`."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.image_files import BadImage
from ..errors import counted, printable
from ..runs.bad_images import read_bad_images, write_bad_images
from ..runs.run_folder import BAD_IMAGES
from .signals import RankMaximum

logger = logging.getLogger(__name__)


class SkippedImages(HookBase):
    """Keeps `bad_images.json` of the run, with the skipped images of all processes.

    Args:
        folder: the run folder.
        known: the images that are skipped from the start.
        found: returns the images that this process has skipped since the last call.
        agreement: lets all processes know when one has skipped an image.
    """

    def __init__(
        self,
        folder: Path,
        *,
        known: Iterable[BadImage],
        found: Callable[[], list[BadImage]],
        agreement: RankMaximum,
    ) -> None:
        self.folder = folder
        self.known = list(known)
        self.found = found
        self.agreement = agreement
        self.images: dict[tuple[str, int | None, int | None], BadImage] = {}

    def before_train(self) -> None:
        """Starts the list, or continues that of a resumed run."""
        if not comm.is_main_process():
            return
        before = read_bad_images(self.folder) if self.trainer.start_iter else []
        for image in [*before, *self.known]:
            self.images.setdefault(image.key, image)
        write_bad_images(self.folder, self.images.values())
        if self.images:
            logger.warning(
                "%s can't be used and will be skipped; %s lists them",
                counted(len(self.images), "image"),
                self.folder / BAD_IMAGES,
            )

    def after_step(self) -> None:
        """Adds the images that were skipped in this step."""
        found = self.found()
        if not self.agreement.largest(len(found))[0]:
            return
        gathered = comm.all_gather(found)
        if not comm.is_main_process():
            return
        new = {image.key: image for images in gathered for image in images if image.key not in self.images}
        for key, image in new.items():
            self.images[key] = image._replace(iteration=self.trainer.iter)
            logger.warning(
                "Iteration %d: %s can't be used and is skipped (%s)",
                self.trainer.iter,
                printable(image.file_name),
                printable(image.reason),
            )
        if new:
            write_bad_images(self.folder, self.images.values())
