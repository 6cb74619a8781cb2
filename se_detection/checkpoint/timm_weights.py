"""Weights of timm's networks (`MODEL.TIMM`): the names of their tensors, and what a file assumes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isclose
from typing import Any

from detectron2.config import CfgNode
from torch import Tensor, nn

from ..config.se_config import SEConfig
from ..config.timm_config import TIMM_BUILDERS, TimmConfig, added_se
from ..errors import UserError
from ..modeling.timm_backbone import TimmBackbone
from .assumptions import WeightsAssumptions

CONFIG_KEYS = {
    "network": "MODEL.TIMM.NAME",
    "arguments": "MODEL.TIMM.KWARGS",
    "se": "MODEL.SE",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    "channel_order": "INPUT.FORMAT",
}
# Of SEConfig: they do not change the function of trained blocks, or do not apply.
NOT_RECORDED = ("stages", "position", "gate_bias")


@dataclass(frozen=True, kw_only=True)
class TimmAssumptions:
    """A network of timm, and the input that it was trained on.

    Args:
        network: timm's name without tag.
        arguments: `MODEL.TIMM.KWARGS`.
        se: the options of SE in the network, FPN or RoI features; empty without.
        pixel_mean, pixel_std: for values in 0..255, in the order of `channel_order`.
        channel_order: `RGB` or `BGR`.
        source: the name of the weights (`timm://NAME`), or `se_detection` for a checkpoint of a run.
        sha256: of the tensors from timm.
    """

    network: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    channel_order: str
    arguments: tuple[str, ...] = ()
    se: dict[str, Any] = field(default_factory=dict)
    source: str = "se_detection"
    sha256: str = ""

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "TimmAssumptions | None":
        """The assumptions of a config; None if its backbone is not one of timm."""
        if cfg.MODEL.BACKBONE.NAME not in TIMM_BUILDERS:
            return None
        timm = TimmConfig.from_cfg(cfg)
        return cls(
            network=timm.name.split(".")[0],
            arguments=tuple(sorted(timm.kwargs)),
            se=recorded_se(SEConfig.from_cfg(cfg)) if added_se(cfg) else {},
            pixel_mean=tuple(map(float, cfg.MODEL.PIXEL_MEAN)),
            pixel_std=tuple(map(float, cfg.MODEL.PIXEL_STD)),
            channel_order=cfg.INPUT.FORMAT,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a checkpoint."""
        return {key: _plain(value) for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Any) -> "TimmAssumptions":
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: the content has other fields.
        """
        names = {each.name for each in fields(cls)}
        if not isinstance(content, dict) or set(content) != names or not isinstance(content["se"], dict):
            raise UserError(
                "weights.bad_metadata",
                f"the weights file's assumptions must have the fields {', '.join(sorted(names))}; use another file",
            )
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in content.items()}
        return cls(**values)

    def contradictions(self, config: "TimmAssumptions") -> list[str]:
        """The differences between this file and a config, one line each with both values.

        If only one of them has inserted SE, it is skipped: missing and unexpected layers are reported separately.
        """
        differences = []
        for name, key in CONFIG_KEYS.items():
            in_file, in_config = getattr(self, name), getattr(config, name)
            if name == "se" and not (in_file and in_config):
                continue
            # timm's own weights fit a network with other arguments, such as Swin's, or do not load.
            if name == "arguments" and self.source != "se_detection":
                continue
            if not _same(in_file, in_config):
                differences.append(f"{key} is {_show(in_file)} in the file and {_show(in_config)} in the config")
        return differences

    def __str__(self) -> str:
        shown = {name: key for name, key in CONFIG_KEYS.items() if getattr(self, name)}
        return ", ".join(f"{key} {_show(getattr(self, name))}" for name, key in shown.items())


def recorded_se(se: SEConfig) -> dict[str, Any]:
    """The options of SE that a file of weights records."""
    return {key: _plain(value) for key, value in asdict(se).items() if key not in NOT_RECORDED}


def assumptions_of(cfg: CfgNode) -> WeightsAssumptions | TimmAssumptions | None:
    """The assumptions of a config; None if its backbone is neither a ResNet nor a network of timm."""
    return WeightsAssumptions.from_cfg(cfg) or TimmAssumptions.from_cfg(cfg)


def timm_part(model: nn.Module) -> tuple[str, TimmBackbone] | None:
    """The backbone of timm in a model, after the prefix of its names (`backbone.bottom_up.`); None without."""
    for name, module in model.named_modules():
        if isinstance(module, TimmBackbone):
            return (f"{name}." if name else ""), module
    return None


def with_detector_names(state: Mapping[str, Tensor], prefix: str, backbone: TimmBackbone) -> dict[str, Tensor]:
    """A state dict in the names of a detector.

    Args:
        state: of a detector, of its backbone alone, or in timm's names, of a whole classifier. Tensors that only the
            classifier has are dropped.
        prefix: of the backbone's names in the detector.
    """
    own = backbone.state_dict().keys()
    if any(f"{prefix}{key}" in state for key in own):
        return dict(state)
    if not any(key in state for key in own):
        state = backbone.with_own_names(state)
    # Tensors that the backbone does not have are reported by this name.
    return {f"{prefix}{key if key.startswith('network.') else f'network.{key}'}": value for key, value in state.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and all(isinstance(each, float) for each in one + other):
        return len(one) == len(other) and all(isclose(a, b, abs_tol=0.02) for a, b in zip(one, other, strict=True))
    return one == other


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.upper()} {each}" for key, each in value.items())
    if isinstance(value, tuple):
        return f"[{', '.join(f'{each:g}' if isinstance(each, float) else str(each) for each in value)}]"
    return str(value)
