"""What has to be known to use an exported detector; it travels inside of the file."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError
from ..files import parse_json

# The name under which it lies in the file.
KEY = "se_detection.json"
# detectron2's names of an `Instances`' fields, in the order in which a traced detector gives them.
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
    "classes": "(N,) int64, places in `classes`",
    "masks": "(N, 1, M, M) float32, probabilities in M x M equal parts of the box",
    "keypoints": "(N, K, 3) float32: x and y in pixels of the resized image, and a score",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """How to prepare an image for an exported detector, and to read what it gives.

    Args:
        format: `torchscript`, `onnx` or `torch-export`.
        precision: what backbone and FPN compute in: `float32`, `float16`, `bfloat16`; or `int8`, of all convolutions.
        detector: of which run it was made, and what it is.
        weights_sha256: of the checkpoint.
        channel_order: `RGB` or `BGR`, of the image that goes in: (3, H, W), uint8, 0 to 255.
        pixel_mean: what is to be subtracted from an image's channels; empty where that is done inside.
        pixel_std: what they are to be divided by then; the same.
        multiple: with 0, to whose multiples an image is to be padded to the right and below after that.
        shortest_side: pixels that an image's shorter side is resized to before; 0 for not at all.
        longest_side: pixels that its longer side may have after that; the image is made smaller if it has more.
        classes: category id and name, in the model's order.
        outputs: names and meaning, in order.
    """

    format: str
    precision: str
    detector: str
    weights_sha256: str
    channel_order: str
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    multiple: int = 1
    shortest_side: int
    longest_side: int
    classes: tuple[tuple[int, str], ...]
    outputs: dict[str, str]

    def to_json(self) -> str:
        """As it is written into the file."""
        classes = [{"id": id_, "name": name} for id_, name in self.classes]
        resize = {
            "shortest_side": self.shortest_side,
            "longest_side": self.longest_side,
            "filter": "bilinear with antialiasing, as Pillow's",
            "rounding": "to the nearest pixel, halves up",
        }
        image: dict[str, Any] = {"shape": [3, "height", "width"], "dtype": "uint8"}
        if self.pixel_mean:
            image = {"shape": ["images", 3, "height", "width"], "dtype": "float32"}
            image |= {"subtract": self.pixel_mean, "divide_by": self.pixel_std, "pad_to_multiples_of": self.multiple}
        whole = asdict(self)
        own = {key: whole[key] for key in ("format", "precision", "detector", "weights_sha256", "outputs")}
        return json.dumps(
            {
                "version": 1,
                **own,
                "input": {**image, "channel_order": self.channel_order},
                "resize": resize,
                "classes": classes,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str | bytes, where: object) -> "Description":
        """Reads what :meth:`to_json` wrote.

        Raises:
            UserError: it is something else; `where` is named.
        """
        try:
            content: Any = parse_json(text.encode() if isinstance(text, str) else text)
            return cls(
                **{key: str(content[key]) for key in ("format", "precision", "detector", "weights_sha256")},
                channel_order=str(content["input"]["channel_order"]),
                pixel_mean=tuple(map(float, content["input"].get("subtract", ()))),
                pixel_std=tuple(map(float, content["input"].get("divide_by", ()))),
                multiple=int(content["input"].get("pad_to_multiples_of", 1)),
                shortest_side=int(content["resize"]["shortest_side"]),
                longest_side=int(content["resize"]["longest_side"]),
                classes=tuple((int(item["id"]), str(item["name"])) for item in content["classes"]),
                outputs={str(name): str(meaning) for name, meaning in content["outputs"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{where} was not written by tools/export.py, or is damaged; export it again") from error
