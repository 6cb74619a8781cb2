"""Hooks that give the loggers more to write: the mean gates of SE, and detections next to the ground truth."""

import logging
import math
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import read_image
from detectron2.engine import HookBase
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..comparison.side_by_side import MIN_SCORE
from ..data.coco_files import load_annotations, load_coco
from ..data.coco_format import image_path
from ..files import read_json
from ..modeling.squeeze_excitation import SqueezeExcitation
from ..runs.run_folder import DETECTIONS, RESULTS
from ..visualization.drawing import class_colours, draw_boxes, side_by_side

# detectron2 writes every 20 iterations.
PERIOD = 20
STAGE = re.compile(r"(?:^|\.)(res[2-5])\.")
IMAGES = 4
# The longer side of an image, in pixels.
LONGEST = 640

logger = logging.getLogger(__name__)


class GateMeans(HookBase):
    """Writes the mean gate of each stage as the scalars `gates/res2` to `gates/res5`, when detectron2 writes scalars.

    A block's gates are averaged over its channels and this process's images, and a stage's over its blocks. Register it
    in the main process, before other hooks that run the model after a step.

    Args:
        model: the detector, not wrapped for DDP.
    """

    def __init__(self, model: nn.Module) -> None:
        named = ((STAGE.search(name), module) for name, module in model.named_modules())
        self.gates = [
            (found[1], module.activation) for found, module in named if found and isinstance(module, SqueezeExcitation)
        ]
        self.means: dict[str, list[Tensor]] = defaultdict(list)
        self.handles: list[RemovableHandle] = []

    def before_step(self) -> None:
        """Records the gates of a step that is written."""
        done = self.trainer.iter + 1
        if done % PERIOD == 0 or done == self.trainer.max_iter:
            self.handles = [gate.register_forward_hook(partial(self._record, stage)) for stage, gate in self.gates]

    def after_step(self) -> None:
        """Puts the recorded means into the storage."""
        self.after_train()
        for stage, means in self.means.items():
            mean = sum(map(float, means)) / len(means)
            # It may not be finite at a step whose loss was not; JSON has no NaN.
            if math.isfinite(mean):
                self.trainer.storage.put_scalar(f"gates/{stage}", mean, smoothing_hint=False)
        self.means.clear()

    def after_train(self) -> None:
        """Removes the hooks of a step, also of one that was interrupted."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _record(self, stage: str, gate: nn.Module, inputs: Any, output: Tensor) -> None:
        # Not converted to a number yet: that would wait for the GPU at every block.
        self.means[stage].append(output.detach().float().mean())


class DetectionImages(HookBase):
    """Draws some images of the first test set after each evaluation, as `detections/<number>_<name>`.

    The ground truth is on the left, the detections with a score of 0.5 or more on the right, as read from the results
    in the run folder. The images are spread evenly over the set, and the same each time. Register it in the main
    process, after the evaluation.

    Args:
        folder: the folder of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.coco: COCO | None = None
        self.drawn = -1

    def after_step(self) -> None:
        """Draws the latest evaluation, unless it is drawn already."""
        storage = self.trainer.storage
        evaluated = max((at for key, (_, at) in storage.latest().items() if key.endswith("/AP")), default=-1)
        if evaluated <= self.drawn:
            return
        self.drawn, now = evaluated, storage.iter
        try:
            images = self._draw()
        except Exception as error:  # of any class: it must not end the training
            logger.warning("No images of iteration %d are logged: %s", evaluated, error)
            return
        # A resumed run evaluates the iteration before its first.
        storage.iter = evaluated
        for name, image in images.items():
            storage.put_image(name, np.asarray(image).transpose(2, 0, 1))
        storage.iter = now

    # A resumed run may have repeated an evaluation before its first step.
    before_train = after_train = after_step

    def _draw(self) -> dict[str, Image.Image]:
        coco = self.coco = self.coco or self._choose()
        names = {id_: category["name"] for id_, category in coco.cats.items()}
        colours = class_colours(names)
        detections = [item for item in read_json(self.folder / DETECTIONS) if item["score"] >= MIN_SCORE]
        images = {}
        for image in coco.imgs.values():
            pixels = Image.fromarray(read_image(image["path"], "RGB"))
            panels = []
            for entries in (coco.anns.values(), detections):
                here = [entry for entry in entries if entry["image_id"] == image["id"]]
                panels.append(draw_boxes(pixels, here, names, colours, longest=LONGEST))
            sheet = side_by_side(panels, ["ground truth", f"detections of score {MIN_SCORE} or more"])
            images[f"detections/{image['number']:05d}_{Path(image['file_name']).stem}"] = sheet
        return images

    def _choose(self) -> COCO:
        """Chooses the images, and keeps only their annotations: all annotations of a large set need much memory."""
        results = read_json(self.folder / RESULTS)
        content = load_annotations(results["annotations"]).dataset
        images = content["images"]
        places = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int)
        root = results["image_root"] or ""
        chosen = [
            {**images[place], "number": place, "path": str(image_path(results["annotations"], root, images[place]))}
            for place in places
        ]
        ids = {image["id"] for image in chosen}
        annotations = [item for item in content["annotations"] if item["image_id"] in ids]
        return load_coco({"images": chosen, "annotations": annotations, "categories": content["categories"]})
