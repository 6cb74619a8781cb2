#!/usr/bin/env python3
"""Detects objects in an image with a detector from `se-det export --format openvino`, without torch and detectron2.

pip install numpy openvino pillow
python detect_openvino.py detector.xml street.jpg --output street_boxes.png > street.json
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from PIL import Image, ImageDraw, ImageOps


class Detector:
    """An exported detector, with its `.bin` next to the file; the `description` says how to prepare an image."""

    def __init__(self, file: Path) -> None:
        core = openvino.Core()
        model = core.read_model(file)
        self.description = json.loads(model.get_rt_info(["framework", "se_detection.json"]).astype(str))
        # OpenVINO's own default is bfloat16 where the CPU supports it, which changes the detections.
        hint = "bf16" if self.description["precision"] == "bfloat16" else "f32"
        # The first start takes seconds to minutes, the next ones read the compiled model.
        options = {"INFERENCE_PRECISION_HINT": hint, "CACHE_DIR": str(file.with_suffix(".cache"))}
        self.compiled = core.compile_model(model, "CPU", options)

    def __call__(self, photo: Image.Image) -> list[dict[str, Any]]:
        """Detections in an RGB photo: `{"name", "category_id", "score", "box"}`, the box in pixels of the photo."""
        width, height = self.resized(photo.size)
        pixels = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
        if self.description["input"]["channel_order"] == "BGR":
            pixels = pixels[:, :, ::-1]
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        found = self.compiled({"image": image})
        outputs = {name: found[name] for name in self.description["outputs"]}
        scale = np.array([photo.width / width, photo.height / height] * 2)
        classes = [self.description["classes"][index] for index in outputs["classes"]]
        return [
            {
                **{"name": class_["name"], "category_id": class_["id"]},
                **{"score": round(float(score), 4), "box": (box * scale).round(2).tolist()},
            }
            for class_, score, box in zip(classes, outputs["scores"], outputs["boxes"], strict=True)
        ]

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the resized photo: the shorter side is fixed, the longer side limited."""
        rule = self.description["resize"]
        if not rule["shortest_side"]:
            return size
        # The order of operations matters: it rounds halves as in training.
        scale = rule["shortest_side"] / min(size)
        width, height = (scale * side if side > min(size) else rule["shortest_side"] for side in size)
        fit = min(1.0, rule["longest_side"] / max(width, height))
        return int(width * fit + 0.5), int(height * fit + 0.5)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--output", type=Path, help="image file for a drawing of the boxes with a score of 0.5 or more")
    args = parser.parse_args()
    for path in (args.detector, args.photo):
        if not path.is_file():
            sys.exit(f"error: {path}: there is no such file")
    # Apply the EXIF orientation; drop transparency and palette.
    photo = ImageOps.exif_transpose(Image.open(args.photo)).convert("RGB")
    detections = Detector(args.detector)(photo)
    json.dump(detections, sys.stdout, indent=1)
    if args.output:
        draw = ImageDraw.Draw(photo)
        for entry in detections:
            if entry["score"] >= 0.5:
                draw.rectangle(entry["box"], outline="red", width=2)
                draw.text(entry["box"][:2], f"{entry['name']} {entry['score']:.2f}", fill="red")
        photo.save(args.output)


if __name__ == "__main__":
    main()
