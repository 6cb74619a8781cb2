"""detectron2's COCO evaluation, which also writes its metrics to a file."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from PIL import Image

from ..data.coco_sets import converted_name, forget_conversion, name_failing_dataset
from ..data.image_files import refuse_postscript
from ..errors import UserError
from ..files import write_json
from ..runs.run_folder import DETECTIONS, RESULTS

# The supported values of `evaluator_type` in a data set's metadata: things only, and things and stuff.
EVALUATED = ("coco", "coco_panoptic_seg")
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class COCODetectionEvaluator(COCOEvaluator):
    """detectron2's evaluator with pycocotools, which also writes `results.json` into its output folder.

    The file has `dataset`, `annotations` and `image_root` (paths; null if unknown), `images` (their number),
    `categories` (names in the model's order), `bbox` (AP, AP50, AP75, APs, APm, APl) and `per_class` (AP by name), all
    in percent and null if undefined. `segm` and `keypoints` have the metrics of masks and keypoints, with the AP of a
    class as `AP-<name>`. `coco_instances_results.json` and `results.json` are written even without any predictions, for
    which detectron2 writes nothing.

    A data set without an annotation file is converted to one in the output folder, again for each evaluator: detectron2
    keeps the first conversion, although the labels may have been corrected since.

    Args:
        dataset_name: a registered data set.
        expected: the tasks of the detector: `bbox`, `segm`, `keypoints`. detectron2 infers them from the predictions,
            which may be empty.
        options: detectron2's arguments; without `output_dir` no file is written.
    """

    def __init__(self, dataset_name: str, *, expected: Sequence[str] = ("bbox",), **options: Any) -> None:
        writes = comm.is_main_process() or not options.get("distributed", True)
        with _annotation_file(dataset_name, options.get("output_dir"), writes) as self.image_root:
            # detectron2's own C++ evaluation is unofficial, and not always built.
            super().__init__(dataset_name, **{"use_fast_impl": False, **options})
            self.annotations = self._metadata.json_file
        self.dataset_name = dataset_name
        self.expected = expected

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, Any]:
        """Metrics by task, as in detectron2; empty in processes other than the main one."""
        writes = self._output_dir and (comm.is_main_process() or not self._distributed)
        if writes:
            # They are of the detections that detectron2 replaces first: a killed evaluation leaves none.
            Path(self._output_dir, RESULTS).unlink(missing_ok=True)
        # pycocotools prints its table.
        with redirect_stdout(StringIO()) as printed:
            results: dict[str, Any] = super().evaluate(img_ids)
        if text := printed.getvalue():
            self._logger.info("pycocotools:\n%s", text)
        if writes:
            self._write(Path(self._output_dir), results)
        return results

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        return super()._tasks_from_predictions(predictions) if predictions else list(self.expected)

    def _write(self, folder: Path, results: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not results and self._do_evaluation:
            (folder / DETECTIONS).write_text("[]", encoding="utf-8")
        boxes, *others = {"bbox": {}, **results}.items()
        ap = _strict(boxes[1])
        names = list(self._metadata.thing_classes)
        # detectron2 gives no AP per class if there is only one.
        per_class = {name: ap.get(f"AP-{name}", ap.get("AP") if len(names) == 1 else None) for name in names}
        content = {
            "dataset": self.dataset_name,
            "annotations": _absolute(self.annotations),
            "image_root": _absolute(self.image_root),
            "images": len(self._coco_api.imgs),
            "categories": names,
            "bbox": {metric: ap.get(metric) for metric in METRICS},
            "per_class": per_class,
            **{task: _strict(values) for task, values in others},
        }
        (folder / RESULTS).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def _annotation_file(dataset_name: str, folder: str | None, writes: bool) -> Iterator[str | None]:
    """A context in which a data set without an annotation file has one: in the folder, if this process writes there.

    Yields the folder of the images.
    """
    forget_conversion(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if folder is None or metadata.get("json_file"):
        yield metadata.get("image_root")
        return
    content = _converted(dataset_name)
    files = [os.path.abspath(image["file_name"]) for image in content["images"]]
    image_root = os.path.commonpath(map(os.path.dirname, files)) if files else None
    for image, file in zip(content["images"], files, strict=True):
        image["file_name"] = os.path.relpath(file, image_root)
    with TemporaryDirectory() as temporary:
        path = Path(folder if writes else temporary, converted_name(dataset_name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
        metadata.json_file = str(path)
        try:
            yield image_root
        finally:
            del metadata.json_file


def _converted(dataset_name: str) -> Any:
    """The COCO annotations of a data set."""
    load = DatasetCatalog.data[dataset_name]
    # detectron2 changes the keypoints of the items that it converts, which may be the caller's.
    DatasetCatalog.data[dataset_name] = lambda: deepcopy(load())
    try:
        return convert_to_coco_dict(dataset_name)
    finally:
        DatasetCatalog.data[dataset_name] = load


def _strict(metrics: dict[str, float]) -> dict[str, float | None]:
    """Replaces values that are not finite by None: JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _absolute(path: str | None) -> str | None:
    return str(Path(PathManager.get_local_path(path)).absolute()) if path else None


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str) -> DatasetEvaluator:
    """The evaluator of a data set, as detectron2's own tools/train_net.py chooses it.

    Raises:
        UserError: its `evaluator_type` is not supported.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATED:
        needed = f"set it to {' or '.join(EVALUATED)} in MetadataCatalog"
        raise UserError("data.bad_evaluator", f"data set {dataset_name!r} has evaluator_type {kind!r}; {needed}")
    expected = ("bbox", *("segm",) * cfg.MODEL.MASK_ON, *("keypoints",) * cfg.MODEL.KEYPOINT_ON)
    with name_failing_dataset([dataset_name]):
        things = COCODetectionEvaluator(
            dataset_name, expected=expected, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS
        )
        if kind == "coco":
            return things
        stuff = SemSegEvaluator(dataset_name, output_dir=folder, sem_seg_loading_fn=_read_labels)
        return DatasetEvaluators([stuff, things, COCOPanopticEvaluator(dataset_name, folder)])


def _read_labels(path: str, dtype: type[int] | None = None) -> NDArray[Any]:
    """Reads the labels of an image; detectron2's own function fails with numpy 2."""
    refuse_postscript(path)
    with Image.open(path) as image:
        return np.array(image, dtype=dtype)
