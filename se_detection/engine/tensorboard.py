"""What TensorBoard shows besides detectron2's scalars: the gates of SE, and detections beside the ground truth."""

import logging
import math
import re
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from detectron2.engine import HookBase
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..compare.side_by_side import MIN_SCORE
from ..data.coco_files import load_annotations, load_coco
from ..data.coco_format import image_path
from ..files import read_json
from ..modeling.squeeze_excitation import SqueezeExcitation
from ..runs.evaluated_run import DETECTIONS
from ..visualization.drawing import class_colours, draw_boxes, side_by_side

# detectron2 writes every so many iterations.
PERIOD = 20
STAGE = re.compile(r"(?:^|\.)(res[2-5])\.")
IMAGES = 4
# Pixels of the longer side of an image.
LONGEST = 640

logger = logging.getLogger(__name__)


class GateMeans(HookBase):
    """The mean gate of each stage at the iterations that are written, as the scalars `gates/res2` to `gates/res5`.

    A block's gates are averaged over its channels and this process's images, and a stage's over its blocks. At other
    iterations, and where there is no SE, nothing is done. To be registered in the main process, before whatever else
    runs the model after a step.

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
        """Looks at the gates of a step that is written."""
        done = self.trainer.iter + 1
        if done % PERIOD == 0 or done == self.trainer.max_iter:
            self.handles = [gate.register_forward_hook(partial(self._see, stage)) for stage, gate in self.gates]

    def after_step(self) -> None:
        """Hands over what was seen, and looks away."""
        self._look_away()
        for stage, means in self.means.items():
            mean = sum(map(float, means)) / len(means)
            # That of a step that was not taken, as its loss was not finite, may not be; JSON has no NaN.
            if math.isfinite(mean):
                self.trainer.storage.put_scalar(f"gates/{stage}", mean, smoothing_hint=False)
        self.means.clear()

    def after_train(self) -> None:
        """Looks away from a step that was broken off."""
        self._look_away()

    def _see(self, stage: str, gate: nn.Module, inputs: Any, output: Tensor) -> None:
        # A number only when all is done: a GPU would be waited for at every block.
        self.means[stage].append(output.detach().float().mean())

    def _look_away(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []


class DetectionImages(HookBase):
    """Some images of the first test set after each evaluation, as images `detections/<number>_<name>`.

    The ground truth stands on the left, and what was found with a score of 0.5 or more on the right, as the evaluation
    has left it in the run's folder. The images are spread evenly over the set, and the same each time. To be
    registered in the main process, after the evaluation.

    Args:
        cfg: the run's.
    """

    def __init__(self, cfg: CfgNode) -> None:
        folder = Path(cfg.OUTPUT_DIR, "inference")
        self.folder = folder / cfg.DATASETS.TEST[0] if len(cfg.DATASETS.TEST) > 1 else folder
        self.coco: COCO | None = None
        self.drawn = -1

    def before_train(self) -> None:
        """Draws what a run that goes on has evaluated first."""
        self._draw_latest()

    def after_step(self) -> None:
        """Draws what was evaluated after a step."""
        self._draw_latest()

    def after_train(self) -> None:
        """Draws what was evaluated at the end."""
        self._draw_latest()

    def _draw_latest(self) -> None:
        storage = self.trainer.storage
        evaluated = max((at for key, (_, at) in storage.latest().items() if key.endswith("/AP")), default=-1)
        if evaluated <= self.drawn:
            return
        self.drawn, now = evaluated, storage.iter
        try:
            images = self._draw()
        except Exception as error:  # of any class: it is no reason to end a training
            logger.warning("TensorBoard gets no images of iteration %d: %s", evaluated, error)
            return
        # A run that goes on evaluates what the iteration before has left.
        storage.iter = evaluated
        for name, image in images.items():
            storage.put_image(name, np.asarray(image).transpose(2, 0, 1))
        storage.iter = now

    def _draw(self) -> dict[str, Image.Image]:
        coco = self.coco = self.coco or self._choose()
        names = {id_: category["name"] for id_, category in coco.cats.items()}
        colours = class_colours(names)
        found = [item for item in read_json(self.folder / DETECTIONS) if item["score"] >= MIN_SCORE]
        images = {}
        for image in coco.imgs.values():
            pixels = Image.fromarray(read_image(image["path"], "RGB"))
            panels = []
            for entries in (coco.anns.values(), found):
                here = [entry for entry in entries if entry["image_id"] == image["id"]]
                panels.append(draw_boxes(pixels, here, names, colours, longest=LONGEST))
            sheet = side_by_side(panels, ["ground truth", f"detections of score {MIN_SCORE} or more"])
            images[f"detections/{image['number']:05d}_{Path(image['file_name']).stem}"] = sheet
        return images

    def _choose(self) -> COCO:
        """The images with their annotations; the rest of a large set would fill the memory."""
        results = read_json(self.folder / "results.json")
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
