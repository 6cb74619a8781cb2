"""The cases of a benchmark, and the networks that are compared in them: one config with different backbones."""

from dataclasses import dataclass

import timm
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn

from se_detection.config.se_config import STAGES
from se_detection.model_zoo import get_config

PARTS = ("backbone", "backbone+fpn", "detector")
MODES = ("inference", "train")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLAIN, SE, TIMM_LEGACY, TIMM = "plain", "se", "legacy_seresnet", "seresnet"


@dataclass(frozen=True, kw_only=True)
class Case:
    """The conditions of a measurement, the same for all models.

    Args:
        part: `backbone` (without FPN), `backbone+fpn` or `detector` (Faster R-CNN).
        mode: `inference`, or `train`: forward, backward and an SGD step.
        device: `cpu` or `cuda`.
        dtype: `float32`, or a half precision for autocast and fused models.
        size: height of the images in pixels, a multiple of 32.
        width: the same.
        batch: number of images.
        depth: depth of the ResNet.
    """

    part: str
    mode: str
    device: str
    dtype: str
    size: int
    width: int
    batch: int
    depth: int

    def __str__(self) -> str:
        size = str(self.size) if self.width == self.size else f"{self.size}×{self.width}"
        return f"{self.part}, {self.mode}, {self.dtype}, {size} px, batch {self.batch}"


def build_network(backbone: str, case: Case) -> nn.Module:
    """The case's part of a Faster R-CNN with FPN, in the case's mode, on its device.

    It is the network of `COCO-Detection/faster_rcnn_R_50_FPN_1x`: norms, stem and res2 are frozen. Weights are random,
    so that the RPN gives the heads of every network the largest number of proposals: all have the same work.

    Args:
        backbone: `plain` (detectron2's own), `se`, or the prefix of timm's name before the depth.
    """
    cfg = get_config(f"COCO-Detection/faster_rcnn_{'SE_' if backbone == SE else ''}R_50_FPN_1x")
    cfg.MODEL.DEVICE = case.device
    cfg.MODEL.RESNETS.DEPTH = case.depth
    if case.depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    if case.part == "detector":
        network = build_model(cfg)
        fpn = network.backbone
    else:
        network = fpn = build_backbone(cfg).to(case.device)
    if backbone in (TIMM_LEGACY, TIMM):
        fpn.bottom_up = TimmNetwork(f"{backbone}{case.depth}").to(case.device)
    if case.part == "backbone":
        network = fpn.bottom_up
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            # With new frozen norms, activations double in each block, and overflow float16 and the RPN.
            module.weight.fill_(0.5)
    return network.train(case.mode == "train")


class TimmNetwork(nn.Module):
    """One of timm's ResNets with random weights; norms, stem and first stage are frozen as with `FREEZE_AT 2`.

    Args:
        name: such as `legacy_seresnet50` or `seresnet50`.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        network = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        for module in list(network.children())[: list(network).index("layer2")]:
            module.requires_grad_(False)
        self.network = FrozenBatchNorm2d.convert_frozen_batchnorm(network)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> the maps res2 ... res5."""
        return dict(zip(STAGES, self.network(x), strict=True))


def random_image(case: Case, generator: torch.Generator | None = None) -> Tensor:
    """(3, height, width) of uint8, by default the same at each call."""
    generator = generator or torch.Generator().manual_seed(0)
    return torch.randint(256, (3, case.size, case.width), dtype=torch.uint8, generator=generator)
