"""detectron2's dataset mapper, which names the image that it stumbles over."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from ..errors import UserError
from .image_files import reason


class CheckedMapper(DatasetMapper):
    """Reads one image as detectron2 does. Built-in data sets are too large to be read through before training."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """See detectron2's; an evaluation of keypoints needs no training data."""
        if not is_train:
            # For the training data's metadata alone: flipped keypoints change places.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        return super().from_config(cfg, is_train)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """See detectron2's `DatasetMapper`.

        Raises:
            UserError: the image is missing, can't be decoded or resized, or has another size than the annotations say.
        """
        try:
            return super().__call__(self._without_outlines(dataset_dict))
        except Exception as error:  # of any class: see `image_files.decode`
            name = dataset_dict["file_name"]
            raise UserError(f"image {name} can't be used: {reason(error)}; mend or remove it") from error

    def _without_outlines(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        # detectron2 copies them before it drops them, and they are most of COCO's annotations.
        if not self.is_train or self.use_instance_mask or "annotations" not in dataset_dict:
            return dataset_dict
        annotations = [
            {key: value for key, value in annotation.items() if key != "segmentation"}
            for annotation in dataset_dict["annotations"]
        ]
        return {**dataset_dict, "annotations": annotations}
