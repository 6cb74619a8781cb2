#!/usr/bin/env python3
"""Detects in images with a file of `tools/export.py --format onnx`: no torch, no detectron2.

pip install numpy onnxruntime pillow
python detect_onnx.py detector.onnx street.jpg --output street_boxes.png > street.json
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


class Detector:
    """An exported detector; `description` says how it wants its images, and is inside of the file."""

    def __init__(self, file: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.description = json.loads(self.session.get_modelmeta().custom_metadata_map["se_detection.json"])

    def __call__(self, photo: Image.Image) -> list[dict[str, Any]]:
        """Detections in an RGB photo, as `{"name", "category_id", "score", "box"}`, the box in its pixels."""
        width, height = self.resized(photo.size)
        pixels = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
        if self.description["input"]["channel_order"] == "BGR":
            pixels = pixels[:, :, ::-1]
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        names = list(self.description["outputs"])
        found = dict(zip(names, self.session.run(names, {"image": image}), strict=True))
        scale = np.array([photo.width / width, photo.height / height] * 2)
        classes = [self.description["classes"][place] for place in found["classes"]]
        return [
            {"name": class_["name"], "category_id": class_["id"], "score": float(score), "box": (box * scale).tolist()}
            for class_, score, box in zip(classes, found["scores"], found["boxes"], strict=True)
        ]

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The width and height that a photo is resized to: its shorter side is given, its longer side limited."""
        rule = self.description["resize"]
        if not rule["shortest_side"]:
            return size
        # In this order, so that halves are rounded as in training.
        scale = rule["shortest_side"] / min(size)
        width, height = (scale * side if side > min(size) else rule["shortest_side"] for side in size)
        fit = min(1.0, rule["longest_side"] / max(width, height))
        return int(width * fit + 0.5), int(height * fit + 0.5)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--output", type=Path, help="draw the boxes of score 0.5 or more there")
    args = parser.parse_args()
    # As a camera was held, and without transparency or palette.
    photo = ImageOps.exif_transpose(Image.open(args.photo)).convert("RGB")
    found = Detector(args.detector)(photo)
    json.dump(found, sys.stdout, indent=1)
    if args.output:
        draw = ImageDraw.Draw(photo)
        for entry in found:
            if entry["score"] >= 0.5:
                draw.rectangle(entry["box"], outline="red", width=2)
                draw.text(entry["box"][:2], f"{entry['name']} {entry['score']:.2f}", fill="red")
        photo.save(args.output)


if __name__ == "__main__":
    main()
