"""Detectors as functions that can be exported: from an image, (3, H, W) of uint8, to tensors."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import UserError
from ..modeling.ops.channels_last_pooler import boxes_and_levels
from .metadata import FIELDS


def find_instances(model: nn.Module, image: Tensor) -> Instances:
    """Detections of a model in evaluation mode, in pixels of the image; masks are relative to the boxes.

    Args:
        model: an R-CNN or RetinaNet.
        image: (3, H, W) in the detector's channel order, 0 to 255.
    """
    instances: Instances
    if isinstance(model, GeneralizedRCNN):
        (instances,) = model.inference([{"image": image}], do_postprocess=False)
    else:
        instances = model([{"image": image}])[0]["instances"]
    return instances


def output_names(instances: Instances) -> list[str]:
    """Names of an exported detector's outputs, in order: `boxes`, `scores`, `classes`, and `masks` or `keypoints`."""
    return [name for name, field in FIELDS.items() if instances.has(field)]


def traceable(model: nn.Module, image: Tensor, outputs: Iterable[str]) -> nn.Module:
    """A module from (3, H, W) to a tuple of the tensors named by :func:`output_names`."""
    fields = [FIELDS[name] for name in outputs]
    model = copy.deepcopy(model)
    module: Any
    for module in model.modules():
        transform = getattr(module, "box2box_transform", None)
        if type(transform) is Box2BoxTransform:
            transform.__class__ = _NeverEmpty
        if type(module) is ROIPooler and len(module.level_poolers) > 1:
            module.__class__ = _GatheringPooler

    def run(model: nn.Module, inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        instances = find_instances(model, inputs[0]["image"])
        return tuple(tensor_of(instances.get(field)) for field in fields)

    return TracingAdapter(model, [{"image": image}], inference_func=run).eval()


class _NeverEmpty(Box2BoxTransform):
    """Pads the boxes by one, which is dropped again: onnxruntime's optimized graph fails on zero boxes."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(N, k * 4) and (N, 4) to (N, k * 4)."""
        moved: Tensor = super().apply_deltas(F.pad(deltas, (0, 0, 0, 1)), F.pad(boxes, (0, 0, 0, 1)))
        return moved[:-1]


class _GatheringPooler(ROIPooler):
    """Puts the regions of all levels together by one gather: detectron2 writes each level into a map of zeros, which
    is traced as a copy of the whole map for each level."""

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Maps of each level and boxes of each image to (M, C, size, size)."""
        boxes, levels = boxes_and_levels(self, box_lists)
        places = [torch.nonzero(levels == level)[:, 0] for level in range(len(x))]
        pooled = [pooler(map_, boxes[place]) for map_, pooler, place in zip(x, self.level_poolers, places, strict=True)]
        return torch.cat(pooled)[torch.cat(places).argsort()]


def tensor_of(values: Any) -> Tensor:
    """The tensor of one of the fields of Instances."""
    return values.tensor if isinstance(values, Boxes) else values


def script(model: nn.Module) -> torch.jit.ScriptModule:
    """A scripted module from (3, H, W) to a dictionary with detectron2's names (`pred_boxes`, `scores`, ...).

    Raises:
        UserError: TorchScript can't compile the detector.
    """
    fields = {"proposal_boxes": Boxes, "objectness_logits": Tensor, "pred_boxes": Boxes, "scores": Tensor}
    fields |= {"pred_classes": Tensor, "pred_masks": Tensor, "pred_keypoints": Tensor, "pred_keypoint_heatmaps": Tensor}
    # The compiler changes the model, also if it fails half way.
    model = copy.deepcopy(model)
    module = _ScriptableRCNN(model) if isinstance(model, GeneralizedRCNN) else _ScriptableDense(model)
    try:
        return scripting_with_instances(module.eval(), fields)
    except Exception as error:  # TorchScript's compiler has no exception class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            "export.not_scriptable", f"this detector can't be scripted ({reason}); omit --scripting to trace it"
        ) from error


class _Scriptable(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _ScriptableRCNN(_Scriptable):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.model.inference([{"image": image}], do_postprocess=False)[0].get_fields()


class _ScriptableDense(_Scriptable):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        instances = self.model([{"image": image}])[0]
        # detectron2 skips this when scripted.
        instances.pred_boxes.clip((image.shape[1], image.shape[2]))
        return instances[instances.pred_boxes.nonempty()].get_fields()
