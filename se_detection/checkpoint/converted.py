"""A complete converted backbone with its assumptions, to be saved as a file for `MODEL.WEIGHTS`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import ResNet
from safetensors.torch import save as serialize
from torch import Tensor

from ..config.se_config import STAGES, SEConfig
from ..errors import UserError, counted
from ..files import check_output, write_whole
from ..modeling.se_resnet import make_se_resnet
from .assumptions import WeightsAssumptions
from .convert import convert_state_dict

SUFFIXES = (".pth", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Weights in detectron2's names, their assumptions, and the original state dict.

    Args:
        architecture: timm's name of the network, as given by the user; empty if it follows from the tensors.
    """

    weights: dict[str, Tensor]
    assumptions: WeightsAssumptions
    original: Mapping[str, Tensor]
    architecture: str = ""

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        source: str,
        *,
        depth: int | None = None,
        architecture: str = "",
        **assumptions: Any,
    ) -> "Converted":
        """Converts another project's state dict.

        Args:
            source, depth: as in :func:`convert_state_dict`.
            architecture: timm's name of the network, if known.
            assumptions: `sha256`, `pixel_mean` and `pixel_std` of :meth:`WeightsAssumptions.from_weights`.

        Raises:
            UserError: it can't be converted, or tensors of the backbone are missing, unexpected or of another shape.
        """
        converted = convert_state_dict(state_dict, source, depth=depth)
        try:
            described = WeightsAssumptions.from_weights(converted, source, **assumptions)
            result = cls(weights=converted, assumptions=described, original=state_dict, architecture=architecture)
            with torch.device("meta"):
                expected = result.build().state_dict()
        except UserError:
            raise
        except Exception as error:  # of any class: the tensors may have any shape
            reason = " ".join(str(error).split())[:150]
            raise UserError(
                "weights.incomplete", f"the layers' shapes do not fit a ResNet ({reason}); use another file"
            ) from error
        wanted = {key: tensor.shape for key, tensor in expected.items() if not key.endswith(".num_batches_tracked")}
        found = {key: tensor.shape for key, tensor in converted.items() if not key.startswith("linear.")}
        if wrong := sorted({key for key, _ in wanted.items() ^ found.items()}):
            raise UserError(
                "weights.incomplete",
                f"the file is not a complete backbone of depth {described.depth}: {counted(len(wrong), 'tensor')} "
                f"missing, unexpected or of another shape (in detectron2's names: {wrong[0]}, ...); use another file",
            )
        return result

    def build(self) -> ResNet:
        """A backbone that these weights fit, with random weights, all stages as outputs, and no classifier."""
        assumptions = self.assumptions
        se = SEConfig(
            reduction_per_stage=[max(1, reduction) for reduction in assumptions.se_reduction],
            stages=[stage for stage, reduction in zip(STAGES, assumptions.se_reduction, strict=True) if reduction],
            bias=assumptions.se_bias,
        )
        return make_se_resnet(
            assumptions.depth,
            se=se,
            norm="BN",
            out_features=STAGES,
            stem=assumptions.stem,
            stem_channels=self.weights["res2.0.conv1.weight"].shape[1],
            num_groups=assumptions.num_groups,
            width_per_group=assumptions.width_per_group,
            stride_in_1x1=assumptions.stride_in_1x1,
        )

    def save(self, path: Path) -> None:
        """Writes a file for `MODEL.WEIGHTS`: `.pth` for all detectron2 tools, `.safetensors` for this project's only.

        Raises:
            UserError: the file already exists, or has another suffix.
            OSError: it can't be written.
        """
        check_target(path)
        assumptions = self.assumptions.to_dict()
        # Copies, because safetensors takes no tensors that share memory or are not contiguous.
        weights = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in self.weights.items()}
        if path.suffix == ".safetensors":
            data = serialize(weights, {"format": "pt", "assumptions": json.dumps(assumptions)})
            write_whole(path, lambda file: file.write(data))
        else:
            author = f"converted from {self.assumptions.source}"
            content = {"model": weights, "assumptions": assumptions, "matching_heuristics": True, "__author__": author}
            write_whole(path, partial(torch.save, content))


def check_target(path: Path) -> None:
    """Checks that :meth:`Converted.save` can write a file, before anything is downloaded or computed for it.

    Raises:
        UserError: the file already exists, has another suffix, or its folder is missing.
    """
    if path.suffix not in SUFFIXES:
        raise UserError("output.suffix", f"{path}: the name must end with {' or '.join(SUFFIXES)}")
    check_output(path)
