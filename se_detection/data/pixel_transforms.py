"""Albumentations' transforms of pixels (blur, noise, compression, color, weather) from a saved pipeline."""

import os
from typing import Any

import numpy as np
from detectron2.data import transforms as T

from ..config.yaml_file import read_yaml
from ..errors import UserError

KEY = "INPUT.ALBUMENTATIONS"


class PixelTransforms(T.Augmentation):
    """A pipeline of Albumentations on the image alone; boxes, masks and keypoints stay.

    Transforms that move objects are refused: detectron2 has its own, and Albumentations places keypoints half a pixel
    or a pixel from where it places boxes. Its random numbers come from numpy's generator, which the loader seeds.

    Args:
        path: a file written by `albumentations.save`, JSON or YAML.
        image_format: `RGB` or `BGR`, the order of the image's channels; Albumentations gets RGB.

    Raises:
        UserError: Albumentations is not installed, or the file is not a pipeline of such transforms.
    """

    def __init__(self, path: str, image_format: str) -> None:
        super().__init__()
        self._init({"path": path, "image_format": image_format})
        self._pipeline = load_pipeline(path)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The pipeline, seeded for an image (H, W, 3)."""
        seed = int(np.random.randint(2**31))
        order = slice(None, None, -1 if self.image_format == "BGR" else 1)

        def change(pixels: np.ndarray) -> np.ndarray:
            self._pipeline.set_random_seed(seed)
            changed: np.ndarray = self._pipeline(image=np.ascontiguousarray(pixels[..., order]))["image"]
            return changed[..., order]

        return T.ColorTransform(change)


def load_pipeline(path: str) -> Any:
    """Albumentations' `Compose` from a file that names its classes and their arguments; no code is run from it.

    Raises:
        UserError: see :class:`PixelTransforms`.
    """
    content = read_yaml(path)  # JSON is YAML
    # Its import asks the network for a newer version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        import albumentations
    except ImportError as error:
        raise UserError(
            "config.no_albumentations",
            f"{KEY}: albumentations is not installed ({error}); install it: pip install albumentations==2.0.8",
        ) from error
    try:
        pipeline = albumentations.from_dict(content)
        if not isinstance(pipeline, albumentations.Compose):
            raise TypeError(f"it is not a Compose, but a {type(pipeline).__name__}")
    except Exception as error:  # it raises any class
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            "config.bad_pipeline", f"{KEY}: {path} is not a pipeline ({reason}); write it with albumentations.save"
        ) from error
    if wrong := _others(pipeline, albumentations.ImageOnlyTransform):
        raise UserError(
            "config.bad_pipeline",
            f"{KEY}: {path} has {', '.join(wrong)}, which may move objects; remove them, and use INPUT.RANDOM_FLIP, "
            "CROP, LARGE_SCALE_JITTER or RANDOM_ERASING",
        )
    return pipeline


def _others(transform: Any, kind: type) -> list[str]:
    """The names of the transforms in a pipeline that are not of a kind."""
    if hasattr(transform, "transforms"):
        return [name for inner in transform.transforms for name in _others(inner, kind)]
    return [] if isinstance(transform, kind) else [type(transform).__name__]
