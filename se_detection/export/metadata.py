"""The description inside each exported file: how to prepare an image, and what the outputs mean."""

import json
from dataclasses import asdict, dataclass
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class Description:
    """How to prepare an image for an exported detector, and how to read its outputs.

    Args:
        format: `torchscript`, `onnx` or `torch-export`.
        precision: of backbone and FPN: `float32`, `float16` or `bfloat16`; or `int8`, for all convolutions.
        detector: name of the run, and kind of the detector.
        weights_sha256: of the checkpoint.
        channel_order: `RGB` or `BGR`, of the input image: (3, H, W), uint8, 0 to 255.
        pixel_mean: to subtract from the channels; empty if the exported model does it.
        pixel_std: to divide the channels by, after that; empty in the same case.
        multiple: the normalized image is padded with 0 at the right and bottom to multiples of this.
        shortest_side: the image is first resized to this shorter side, in pixels; 0: it is not resized.
        longest_side: limit for the longer side of the resized image, in pixels.
        classes: category id and name, in the model's order.
        outputs: name and meaning, in order.
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
        """The JSON inside the exported file."""
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
        fields = asdict(self)
        same = {key: fields[key] for key in ("format", "precision", "detector", "weights_sha256", "outputs")}
        return json.dumps(
            {
                "version": 1,
                **same,
                "input": {**image, "channel_order": self.channel_order},
                "resize": resize,
                "classes": classes,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str | bytes, where: object) -> "Description":
        """Reads the result of :meth:`to_json`.

        Args:
            where: the file, for the error message.

        Raises:
            UserError: the text is not such a description.
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
            raise UserError(f"{where} was not written by se-det export, or is damaged; export it again") from error
