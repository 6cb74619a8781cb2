"""A weights file's assumptions about the network and its input; the tensors' shapes show only a few of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isclose
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor

from ..config.se_config import PLAIN, STAGES, SEConfig
from ..errors import UserError
from .convert import CAFFE_SOURCES, backbone_depth

# ImageNet's, for RGB in 0..255: the default of every source.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
PLAIN_BUILDERS = ("build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone")
SE_BUILDERS = ("build_se_resnet_backbone", "build_se_resnet_fpn_backbone", "build_retinanet_se_resnet_fpn_backbone")
CONFIG_KEYS = {
    "depth": "MODEL.RESNETS.DEPTH",
    "num_groups": "MODEL.RESNETS.NUM_GROUPS",
    "width_per_group": "MODEL.RESNETS.WIDTH_PER_GROUP",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "stem": "MODEL.RESNETS.STEM_TYPE",
    "se_reduction": "MODEL.SE.REDUCTION of res2 to res5",
    "se_position": "MODEL.SE.POSITION",
    "se_squeeze": "MODEL.SE.SQUEEZE",
    "se_gate": "MODEL.SE.GATE",
    "se_bias": "MODEL.SE.BIAS",
    "se_init": "MODEL.SE.INIT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "channel_order": "INPUT.FORMAT",
}
OF_ALL_GATES = ("se_squeeze", "se_gate", "se_init")
VISIBLE_IN_SHAPES = ("depth", "num_groups", "width_per_group", "se_reduction", "se_bias")


@dataclass(frozen=True, kw_only=True)
class WeightsAssumptions:
    """The layers of a backbone, and the input that it was trained on.

    Args:
        depth, num_groups, width_per_group, stride_in_1x1: as in `MODEL.RESNETS`; basic blocks have no stride_in_1x1.
        stem: `MODEL.RESNETS.STEM_TYPE`.
        se_reduction: the reduction ratio of res2 to res5, 0 in a stage without SE.
        se_position, se_squeeze, se_gate, se_bias: as in `MODEL.SE`.
        se_init: as in `MODEL.SE`; empty without SE, also in FPN and after RoIAlign. With `identity`, the gates
            are doubled.
        pixel_mean, pixel_std: for values in 0..255, in the order of `channel_order`.
        channel_order: `RGB` or `BGR`.
        source: the project that the file comes from (:data:`SOURCES`), or `se_detection` for a checkpoint of a run.
        sha256: of the file that was converted, or of the tensors if there was no file.
    """

    depth: int
    num_groups: int
    width_per_group: int
    stride_in_1x1: bool
    stem: str
    se_reduction: tuple[int, ...]
    se_position: str
    se_squeeze: str
    se_gate: str
    se_bias: bool
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    channel_order: str
    se_init: str = ""
    source: str = "se_detection"
    sha256: str = ""

    @property
    def has_se(self) -> bool:
        return any(self.se_reduction)

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "WeightsAssumptions | None":
        """The assumptions of a config; None if its backbone is not a ResNet of detectron2 or this project."""
        if cfg.MODEL.BACKBONE.NAME not in PLAIN_BUILDERS + SE_BUILDERS:
            return None
        has_se = cfg.MODEL.BACKBONE.NAME in SE_BUILDERS
        resnets = cfg.MODEL.RESNETS
        se = SEConfig.from_cfg(cfg) if has_se else PLAIN
        gated = (has_se and (se.stages or cfg.MODEL.SE.FPN)) or cfg.MODEL.SE.ROI
        gates = SEConfig.from_cfg(cfg) if gated else PLAIN
        return cls(
            depth=resnets.DEPTH,
            num_groups=resnets.NUM_GROUPS,
            width_per_group=resnets.WIDTH_PER_GROUP,
            stride_in_1x1=resnets.STRIDE_IN_1X1 and resnets.DEPTH >= 50,
            stem=resnets.STEM_TYPE if has_se else "basic",
            se_reduction=tuple(se.reduction_in(stage) or 0 for stage in STAGES),
            se_position=se.position,
            se_squeeze=gates.squeeze,
            se_gate=gates.gate,
            se_bias=se.bias,
            se_init=gates.init if gated else "",
            pixel_mean=tuple(map(float, cfg.MODEL.PIXEL_MEAN)),
            pixel_std=tuple(map(float, cfg.MODEL.PIXEL_STD)),
            channel_order=cfg.INPUT.FORMAT,
        )

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        source: str,
        *,
        sha256: str,
        pixel_mean: tuple[float, ...] = IMAGENET_MEAN,
        pixel_std: tuple[float, ...] = IMAGENET_STD,
        stride_in_1x1: bool = False,
    ) -> "WeightsAssumptions":
        """The assumptions of the result of :func:`convert_state_dict`, from its shapes and its source.

        Args:
            stride_in_1x1: for `pytorchcv`, which has networks of both kinds.
        """
        depth = backbone_depth(weights)
        num_groups, width_per_group = 1, 64
        if depth >= 50:
            width, per_group = weights["res2.0.conv2.weight"].shape[:2]
            # SENet-154's 3x3 convolution has twice as many channels as its input.
            num_groups = weights["res2.0.conv1.weight"].shape[0] // per_group
            width_per_group = width // num_groups
        squeezes = [weights.get(f"{stage}.0.se.fc1.weight") for stage in STAGES]
        caffe = source in CAFFE_SOURCES
        return cls(
            depth=depth,
            num_groups=num_groups,
            width_per_group=width_per_group,
            stride_in_1x1=(caffe or stride_in_1x1) and num_groups == 1 and depth >= 50,
            stem="deep" if depth == 154 else "caffe" if caffe else "basic",
            se_reduction=tuple(0 if each is None else each.shape[1] // each.shape[0] for each in squeezes),
            se_position="standard",
            se_squeeze="avg",
            se_gate="sigmoid",
            se_bias="res2.0.se.fc1.bias" in weights,
            se_init="" if all(each is None for each in squeezes) else "default",
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            channel_order="RGB",
            source=source,
            sha256=sha256,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint or for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Any) -> "WeightsAssumptions":
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: the content has other fields.
        """
        names = {field.name for field in fields(cls)}
        if isinstance(content, dict) and "se_reduction" in content:
            # Of a file that was written before there were other initializations.
            content = {"se_init": "default" if any(content["se_reduction"]) else "", **content}
        if not isinstance(content, dict) or set(content) != names:
            raise UserError(
                "weights.bad_metadata",
                f"the weights file's assumptions must have the fields {', '.join(sorted(names))}; convert it again",
            )
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in content.items()}
        return cls(**values)

    def __str__(self) -> str:
        shown = {field: key for field, key in CONFIG_KEYS.items() if self.has_se or not field.startswith("se_")}
        return ", ".join(f"{key} {_show(getattr(self, field))}" for field, key in shown.items())


def contradictions(file: WeightsAssumptions, config: WeightsAssumptions, *, ignore_shapes: bool = False) -> list[str]:
    """The differences between a file and a config, one line each with both values.

    If only one of them has SE, the SE fields are skipped: missing SE layers are reported separately.

    Args:
        ignore_shapes: skip the fields that show in the tensors' shapes.
    """
    differences = []
    for field, key in CONFIG_KEYS.items():
        # The gates' functions are the same in the backbone, in FPN and after RoIAlign.
        both = (file.se_init and config.se_init) if field in OF_ALL_GATES else (file.has_se and config.has_se)
        if field.startswith("se_") and not both:
            continue
        if ignore_shapes and field in VISIBLE_IN_SHAPES:
            continue
        in_file, in_config = getattr(file, field), getattr(config, field)
        if not _same(in_file, in_config):
            differences.append(f"{key} is {_show(in_file)} in the file and {_show(in_config)} in the config")
    return differences


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(isclose(a, b, abs_tol=0.01) for a, b in zip(one, other, strict=True))
    return one == other


def _show(value: Any) -> str:
    return f"[{', '.join(f'{number:g}' for number in value)}]" if isinstance(value, tuple) else str(value)
