"""The `MODEL.TIMM` node of detectron2's config: its defaults, its choices, and the checks of its values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..errors import UserError
from .se_config import STAGES, check_choice

NORMS = ("FrozenBN", "BN", "SyncBN")
OUTPUT_STRIDES = (8, 16, 32)
# The keys of the norm of a backbone, and of how many of its parts are frozen.
TIMM_KEYS, RESNET_KEYS = ("MODEL.TIMM.NORM", "MODEL.TIMM.FREEZE_AT"), ("MODEL.RESNETS.NORM", "MODEL.BACKBONE.FREEZE_AT")
TIMM_BUILDERS = ("build_timm_backbone", "build_timm_fpn_backbone", "build_retinanet_timm_fpn_backbone")


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """A network of timm as a backbone; the fields are the keys of `MODEL.TIMM`.

    Args:
        name: timm's name of the network, such as `seresnet33ts.ra2_in1k`. The tag behind the dot only names weights,
            and these are loaded by `MODEL.WEIGHTS`. Networks of other libraries are `torchvision/NAME` and
            `pytorchcv/NAME`.
        out_features: any of `res2` to `res5`: the network's last maps of stride 4, 8, 16 and 32.
        norm: what becomes of the network's BN: `FrozenBN`, `BN` or `SyncBN`. Other norms stay as they are.
        freeze_at: how many parts are frozen, norms included: 1 is the stem, 2 the stem and res2, ..., 5 the network.
        output_stride: 16 or 8 dilate res5, or res4 and res5, in families that can (DC5 detectors).
        drop_path: the rate of stochastic depth in the last block (timm's `drop_path_rate`).
        drop_block: the rate of DropBlock (timm's `drop_block_rate`).
        kwargs: other arguments of timm's network, one `key=value` each, with values in YAML: `stem_width=32`. A list,
            because yacs accepts new keys neither on the command line nor in a checked node.
        insert_se: put the SE blocks of `MODEL.SE` into a network that has none.

    Raises:
        UserError: a value is not one of its choices, or has another form.
    """

    name: str = ""
    out_features: Sequence[str] = STAGES
    norm: str = "FrozenBN"
    freeze_at: int = 2
    output_stride: int = 32
    drop_path: float = 0.0
    drop_block: float = 0.0
    kwargs: Sequence[str] = ()
    insert_se: bool = False

    def __post_init__(self) -> None:
        for feature in self.out_features:
            check_choice("MODEL.TIMM.OUT_FEATURES", feature, STAGES)
        if not self.out_features or list(self.out_features) != sorted(set(self.out_features)):
            raise UserError(
                "config.bad_value",
                f"MODEL.TIMM.OUT_FEATURES: {list(self.out_features)} must be in the order of {', '.join(STAGES)}",
            )
        check_choice("MODEL.TIMM.NORM", self.norm, NORMS)
        check_choice("MODEL.TIMM.FREEZE_AT", self.freeze_at, range(6))
        check_choice("MODEL.TIMM.OUTPUT_STRIDE", self.output_stride, OUTPUT_STRIDES)
        for key in ("drop_path", "drop_block"):
            value = getattr(self, key)
            if not 0 <= value < 1:
                raise UserError(
                    "config.bad_value",
                    f"MODEL.TIMM.{key.upper()}: {value} is not from 0 to below 1; choose such a rate",
                )
        self.arguments()

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "TimmConfig":
        """Reads `cfg.MODEL.TIMM`."""
        return cls(**{field: getattr(cfg.MODEL.TIMM, field.upper()) for field in asdict(cls())})

    def arguments(self) -> Mapping[str, Any]:
        """`kwargs` as a mapping.

        Raises:
            UserError: an entry is not `key=value`, or its value is not YAML.
        """
        parsed = {}
        for entry in self.kwargs:
            key, equals, value = str(entry).partition("=")
            try:
                if not equals or not key.isidentifier():
                    raise ValueError
                parsed[key] = yaml.safe_load(value)
            except (yaml.YAMLError, ValueError) as error:
                raise UserError(
                    "config.bad_value",
                    f"MODEL.TIMM.KWARGS: {entry!r} is not key=value; give it as, for example, stem_width=32",
                ) from error
        return parsed


def has_timm_backbone(cfg: CfgNode) -> bool:
    """Whether the backbone of a config is a network of timm (`MODEL.TIMM`)."""
    return cfg.MODEL.BACKBONE.NAME in TIMM_BUILDERS


def norm_and_freeze_keys(cfg: CfgNode) -> tuple[str, str]:
    """The config keys of the norm of the backbone, and of how many of its parts are frozen."""
    return TIMM_KEYS if has_timm_backbone(cfg) else RESNET_KEYS


def backbone_label(cfg: CfgNode) -> str:
    """The backbone of a config in a few words: `se_resnet_fpn 18`, or `timm_fpn vgg16_bn with SE in the network`."""
    (network,) = which_network(cfg).values()
    return words_for_backbone(cfg.MODEL.BACKBONE.NAME, network, added_se(cfg))


def words_for_backbone(builder: str, network: str | int, added: Sequence[str]) -> str:
    """A backbone's builder, its network, and the places of :func:`added_se`, as words for people."""
    label = f"{builder.removeprefix('build_').removesuffix('_backbone')} {network}"
    return f"{label} with SE {', '.join(added)}" if added else label


def added_se(cfg: CfgNode) -> list[str]:
    """The places where a config adds SE to a network, or outside of it; their names are in the records of runs."""
    se = cfg.MODEL.SE
    places = {"in the network": cfg.MODEL.TIMM.INSERT_SE, "in FPN": se.FPN, "after RoIAlign": se.ROI}
    return [place for place, is_added in places.items() if is_added]


def which_network(cfg: CfgNode) -> dict[str, str | int]:
    """The network among those of its builder, for the record of a run: its `depth`, or timm's name as `network`."""
    return {"network": cfg.MODEL.TIMM.NAME} if has_timm_backbone(cfg) else {"depth": cfg.MODEL.RESNETS.DEPTH}
