"""A detector as a function of one image: (3, H, W) of uint8 to tensors. That is what can be exported."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import UserError
from .metadata import FIELDS


def check_kind(model: nn.Module, run: Path) -> None:
    """Makes sure that a run's detector is one that :func:`find` knows.

    Raises:
        UserError: it is none of detectron2's R-CNNs or RetinaNet.
    """
    if not isinstance(model, GeneralizedRCNN | RetinaNet) or isinstance(model, PanopticFPN):
        raise UserError(f"{run}: a {type(model).__name__} can't be exported; R-CNNs and RetinaNet can")


def find(model: nn.Module, image: Tensor) -> Instances:
    """What a detector in evaluation finds in an image, in the image's pixels; masks are those of the boxes.

    Args:
        model: of a kind that :func:`check_kind` lets pass.
        image: (3, H, W) in the detector's channel order, 0 to 255.
    """
    found: Instances
    if isinstance(model, GeneralizedRCNN):
        (found,) = model.inference([{"image": image}], do_postprocess=False)
    else:
        found = model([{"image": image}])[0]["instances"]
    return found


def outputs_of(found: Instances) -> list[str]:
    """The names of what an exported detector gives, in order: `boxes`, `scores`, `classes`, and what else it finds."""
    return [name for name, field in FIELDS.items() if found.has(field)]


def traceable(model: nn.Module, image: Tensor, outputs: Iterable[str]) -> nn.Module:
    """A module of (3, H, W) to a tuple of the tensors that :func:`outputs_of` named."""
    fields = [FIELDS[name] for name in outputs]
    model = copy.deepcopy(model)
    for module in model.modules():
        transform = getattr(module, "box2box_transform", None)
        if type(transform) is Box2BoxTransform:
            transform.__class__ = _NeverEmpty

    def run(model: nn.Module, inputs: list[dict[str, Tensor]]) -> tuple[Tensor, ...]:
        found = find(model, inputs[0]["image"])
        return tuple(_tensor(found.get(field)) for field in fields)

    return TracingAdapter(model, [{"image": image}], inference_func=run).eval()


class _NeverEmpty(Box2BoxTransform):
    """The same of boxes that may be none, to which onnxruntime, its graph once optimised, gives no shape."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(N, k * 4) and (N, 4) to (N, k * 4)."""
        moved: Tensor = super().apply_deltas(F.pad(deltas, (0, 0, 0, 1)), F.pad(boxes, (0, 0, 0, 1)))
        return moved[:-1]


def _tensor(values: Boxes | Tensor) -> Tensor:
    return values.tensor if isinstance(values, Boxes) else values


def script(model: nn.Module) -> torch.jit.ScriptModule:
    """A scripted module of (3, H, W) to a dictionary with detectron2's names (`pred_boxes`, `scores`, ...).

    Raises:
        UserError: the detector has parts that TorchScript can't compile.
    """
    fields = {"proposal_boxes": Boxes, "objectness_logits": Tensor, "pred_boxes": Boxes, "scores": Tensor}
    fields |= {"pred_classes": Tensor, "pred_masks": Tensor, "pred_keypoints": Tensor, "pred_keypoint_heatmaps": Tensor}
    # Where it fails half way, the model is left as the compiler has changed it.
    model = copy.deepcopy(model)
    module = _ScriptableRCNN(model) if isinstance(model, GeneralizedRCNN) else _ScriptableDense(model)
    try:
        return scripting_with_instances(module.eval(), fields)
    except Exception as error:  # TorchScript's compiler has no errors of its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"this detector can't be scripted ({reason}); leave --scripting out to trace it") from error


class _ScriptableRCNN(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.model.inference([{"image": image}], do_postprocess=False)[0].get_fields()


class _ScriptableDense(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        found = self.model([{"image": image}])[0]
        # Scripted, detectron2 leaves this out.
        found.pred_boxes.clip((image.shape[1], image.shape[2]))
        return found[found.pred_boxes.nonempty()].get_fields()
