"""Backbones by name, without a config."""

from collections.abc import Sequence
from typing import Any

from detectron2.modeling import Backbone
from torch import nn

from .config.se_config import PLAIN, STAGES, SEConfig
from .errors import UserError
from .modeling.partial_load import refuse_partial_load
from .modeling.se_resnet import make_se_resnet

NAMED_BACKBONES: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": {"depth": depth} for depth in (18, 34, 50, 101, 152)},
    **{f"resnext{depth}_32x4d": {"depth": depth, "num_groups": 32, "width_per_group": 4} for depth in (50, 101)},
}


SENET154 = {"depth": 154, "num_groups": 64, "width_per_group": 4, "stem_channels": 128}


LAYOUTS = ("torchvision", "caffe")


def create_backbone(
    name: str,
    *,
    layout: str | None = None,
    norm: str = "BN",
    out_features: Sequence[str] = STAGES,
    num_classes: int | None = None,
    se: SEConfig | None = None,
    freeze_at: int = 0,
) -> Backbone:
    """A backbone by name, without a config; without a classifier, it refuses weights that fill it in part.

    Args:
        name: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, `resnext50_32x4d` or `resnext101_32x4d`,
            plain; the same after `se_` with SE; or `senet154`.
        layout: `torchvision` (stride in the 3x3 convolution, padded pool) or `caffe`, that of the paper's released
            models (stride in the first 1x1, but for ResNeXt; ceil-mode pool). By default `caffe` for
            `senet154`, which has no other, and `torchvision` for the rest.
        norm: `BN`, `FrozenBN`, `SyncBN`, `GN`, ...
        out_features: any of `stem`, `res2` ... `res5`, and `linear` beside `res5` where there is a classifier.
        num_classes: adds a classifier (of SENet-154 without its dropout).
        se: what the SE blocks look like; the paper's standard block unless given.
        freeze_at: how many of stem, res2, ... res5 are frozen, their norms included.

    Returns:
        A detectron2 `Backbone`: (N, 3, H, W) to a dict of the maps named by `out_features`.

    Raises:
        UserError: an unknown name or layout, `se` for a plain backbone, or more frozen stages than there are.
    """
    gated = {f"se_{plain}": options for plain, options in NAMED_BACKBONES.items()} | {"senet154": SENET154}
    if name not in NAMED_BACKBONES | gated:
        raise UserError(f"no backbone is named {name!r}; choose from {', '.join(NAMED_BACKBONES | gated)}")
    layout = layout or ("caffe" if name == "senet154" else "torchvision")
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if name == "senet154" and layout != "caffe":
        raise UserError("'senet154' was released in the caffe layout alone; leave layout out")
    if name not in gated and se is not None:
        raise UserError(f"{name!r} is a plain backbone and takes no se=; did you mean 'se_{name}'?")
    known = ("stem", *STAGES, "linear")
    if not out_features or not set(out_features) <= set(known):
        raise UserError(f"out_features: {list(out_features)} are not some of {', '.join(known)}")
    if "linear" in out_features and (num_classes is None or "res5" not in out_features):
        raise UserError("out_features: 'linear' needs num_classes, and 'res5' beside it")
    if freeze_at not in range(len(STAGES) + 2):
        raise UserError(f"freeze_at: {freeze_at!r} is not from 0 (nothing) to {len(STAGES) + 1} (stem to res5)")
    options = (NAMED_BACKBONES | gated)[name]
    stem = "basic" if layout == "torchvision" else "deep" if name == "senet154" else "caffe"
    backbone = make_se_resnet(
        **options,
        se=(se or SEConfig()) if name in gated else PLAIN,
        norm=norm,
        out_features=out_features,
        num_classes=num_classes,
        stem=stem,
        stride_in_1x1=layout == "caffe" and "num_groups" not in options,
        freeze_at=freeze_at,
    )
    # A classifier of other classes takes what a file has of it.
    if num_classes is None:
        refuse_partial_load(backbone)
    return backbone


def create_res5(name: str, *, layout: str | None = None, norm: str = "BN", se: SEConfig | None = None) -> nn.Sequential:
    """The last stage of a backbone by name, for the `Res5ROIHeads` of a C4 detector, whose backbone ends with res4.

    Args:
        others: those of :func:`create_backbone`.

    Returns:
        (N, channels of res4, H, W) to (N, channels of res5, H / 2, W / 2).

    Raises:
        UserError: as there.
    """
    res5 = create_backbone(name, layout=layout, norm=norm, out_features=("res5",), se=se).res5
    refuse_partial_load(res5)
    return res5
