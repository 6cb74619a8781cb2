"""The description inside each exported file: how to prepare an image, and what the outputs mean."""

from typing import Any

from detectron2.config import CfgNode

from ..errors import UserError
from ..files import parse_json

# Its name in the file.
KEY = "se_detection.json"
# Names of outputs, in the order of a traced detector, and detectron2's names of the fields of `Instances`.
FIELDS = {
    "boxes": "pred_boxes",
    "scores": "scores",
    "classes": "pred_classes",
    "masks": "pred_masks",
    "keypoints": "pred_keypoints",
}
MEANING = {
    "boxes": "(N, 4) float32: left, top, right and bottom in pixels of the resized image",
    "scores": "(N,) float32, from 0 to 1",
    "classes": "(N,) int64, indices into `classes`",
    "masks": "(N, 1, M, M) float32, probabilities in M x M equal parts of the box",
    "keypoints": "(N, K, 3) float32: x and y in pixels of the resized image, and a score",
}
# The content of the JSON; :func:`describe` has the keys.
Description = dict[str, Any]


def describe(
    cfg: CfgNode, categories: dict[int, str], *, detector: str, weights_sha256: str, outputs: dict[str, str]
) -> Description:
    """The description of a detector that takes an image, (3, H, W) of uint8; the exporter adds format and precision.

    Args:
        cfg: has the test size and the channel order.
        categories: names by category id, in the model's order.
        detector: name of the run, and kind of the detector.
        weights_sha256: of the checkpoint.
        outputs: name and meaning, in order.
    """
    return {
        "version": 1,
        "format": "",
        "precision": "",
        "detector": detector,
        "weights_sha256": weights_sha256,
        "outputs": outputs,
        "input": {"shape": [3, "height", "width"], "dtype": "uint8", "channel_order": cfg.INPUT.FORMAT},
        "resize": {
            # 0: the image is not resized.
            "shortest_side": cfg.INPUT.MIN_SIZE_TEST,
            "longest_side": cfg.INPUT.MAX_SIZE_TEST,
            "filter": "bilinear with antialiasing, as Pillow's",
            "rounding": "to the nearest pixel, halves up",
        },
        "classes": [{"id": id_, "name": name} for id_, name in categories.items()],
    }


def read_description(text: str | bytes, where: object) -> Description:
    """The description of a whole detector.

    Args:
        text: the JSON inside an exported file.
        where: the file, for the error message.

    Raises:
        UserError: the text is not a description.
    """
    try:
        found = parse_json(text.encode() if isinstance(text, str) else text)
        if not isinstance(found, dict) or not set(found["outputs"]) <= set(FIELDS):
            raise ValueError("it has other outputs")
        for name in ("input", "resize", "classes", "precision"):
            found[name]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            "export.not_an_export", f"{where} was not written by se-det export, or is damaged; export it again"
        ) from error
    return found
