"""detectron2's dataset mapper, with errors that name the image."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T

from ..errors import UserError
from .augmentations import augmentations
from .image_files import reason, refuse_postscript
from .masks_and_keypoints import flipped_indices


class CheckedMapper(DatasetMapper):
    """detectron2's mapper, which reports a bad image as a :class:`UserError`."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """As detectron2's `from_config`, with the :mod:`.augmentations` of this project.

        Evaluating keypoints does not need the training data.
        """
        if not is_train:
            # detectron2 would read the keypoints' flip map from the training data's metadata.
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        arguments = super().from_config(cfg, is_train)
        if is_train:
            arguments["augmentations"] = augmentations(cfg, arguments["augmentations"])
            # A crop may cut off the part of an object that its box was drawn around.
            arguments["recompute_boxes"] |= cfg.INPUT.LARGE_SCALE_JITTER.ENABLED and cfg.MODEL.MASK_ON
        if cfg.MODEL.KEYPOINT_ON and cfg.INPUT.KEYPOINT_FLIP_MAP:
            names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).keypoint_names
            arguments["keypoint_hflip_indices"] = flipped_indices(names, cfg.INPUT.KEYPOINT_FLIP_MAP)
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """As detectron2's `DatasetMapper`.

        Raises:
            UserError: the image is missing, can't be decoded or resized, or has another size than the annotations say.
        """
        try:
            for key in ("file_name", "sem_seg_file_name"):
                if key in dataset_dict:
                    refuse_postscript(dataset_dict[key])
            return super().__call__(self._drop_unused_masks(dataset_dict))
        except Exception as error:  # decoders raise any class: see `inspect_image`
            name = dataset_dict["file_name"]
            raise UserError(
                "data.bad_image", f"image {name} can't be used: {reason(error)}; fix or remove it"
            ) from error

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        # detectron2 pads segmentations with 255, to be ignored; as part of an object's mask, 255 is the object.
        for transform in transforms.transforms:
            if isinstance(transform, T.PadTransform):
                transform.seg_pad_value = 0
        super()._transform_annotations(dataset_dict, transforms, image_shape)

    def _drop_unused_masks(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        # detectron2 copies the polygons before it drops them, and they are most of COCO's annotations.
        if not self.is_train or self.use_instance_mask or "annotations" not in dataset_dict:
            return dataset_dict
        annotations = [
            {key: value for key, value in annotation.items() if key != "segmentation"}
            for annotation in dataset_dict["annotations"]
        ]
        return {**dataset_dict, "annotations": annotations}
