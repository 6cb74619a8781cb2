"""Backbones by name, without a config."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from detectron2.modeling import Backbone
from torch import nn

from .checkpoint.assumptions import WeightsAssumptions, contradictions
from .checkpoint.checkpointer import StrictCheckpointer
from .checkpoint.timm_weights import TimmAssumptions, recorded_se
from .config.se_config import PLAIN, STAGES, SEConfig, check_choice
from .errors import UserError, suggestion
from .modeling.network_names import library_of
from .modeling.partial_load import refuse_partial_load
from .modeling.se_resnet import make_se_resnet
from .modeling.timm_backbone import TimmBackbone, create_timm_backbone

PLAIN_BACKBONES: dict[str, dict[str, Any]] = {
    **{f"resnet{depth}": {"depth": depth} for depth in (18, 34, 50, 101, 152)},
    **{f"resnext{depth}_32x4d": {"depth": depth, "num_groups": 32, "width_per_group": 4} for depth in (50, 101)},
}
SE_BACKBONES: dict[str, dict[str, Any]] = {
    **{f"se_{name}": options for name, options in PLAIN_BACKBONES.items()},
    "senet154": {"depth": 154, "num_groups": 64, "width_per_group": 4, "stem_channels": 128},
}
NAMED_BACKBONES = PLAIN_BACKBONES | SE_BACKBONES
LAYOUTS = ("torchvision", "caffe", "msra")
# Before the name of a network of timm, which `MODEL.TIMM.NAME` does not have. It has no weights, unlike `timm://`.
TIMM = "timm/"
# Of a detector with FPN, and without.
DETECTOR_PREFIXES = ("backbone.bottom_up.", "backbone.")

logger = logging.getLogger(__name__)


def create_backbone(
    name: str,
    *,
    weights: str = "",
    layout: str | None = None,
    norm: str = "BN",
    out_features: Sequence[str] = STAGES,
    num_classes: int | None = None,
    se: SEConfig | None = None,
    freeze_at: int = 0,
) -> Backbone:
    """A backbone by name, without a config.

    Weights are loaded strictly: the file must have every tensor of the backbone in the right shape, and the network
    that it records (stride, stem and pool, depth, position, squeeze and gate of SE) must be the one that was built. The
    input that it records (mean, standard deviation, channel order) can't be compared and is logged: normalize your
    images in this way. A classifier for another number of classes keeps its random weights.

    Args:
        name: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, `resnext50_32x4d` or `resnext101_32x4d`,
            plain or with SE (`se_resnet18`, ...); `senet154`; or any network of timm, such as `timm/efficientnet_b0`,
            of torchvision, such as `torchvision/shufflenet_v2_x1_0`, or of pytorchcv, such as `pytorchcv/bninception`
            (:func:`~se_detection.modeling.create_timm_backbone` has more options).
        weights: a file or URL as in `MODEL.WEIGHTS`, such as `timm://seresnet50.a1_in1k`, of a backbone or a detector;
            empty for random weights.
        layout: `torchvision` (stride in the 3x3 convolution, padded pool); `caffe`, that of the paper's released
            models (stride in the first 1x1 except in ResNeXt, ceil-mode pool); or `msra`, that of detectron2's MSRA
            backbones and pytorchcv's `resnet50` (stride in the first 1x1, padded pool). The default is `torchvision`;
            `senet154` exists only as `caffe`.
        norm: `BN`, `FrozenBN`, `SyncBN`, `GN`, ...
        out_features: any of `stem`, `res2` ... `res5`, and `linear` in addition to `res5` if there is a classifier.
        num_classes: adds a classifier (SENet-154's without its dropout); not for networks of timm.
        se: the SE blocks; by default the paper's standard block. With a network of timm, they are inserted.
        freeze_at: how many stages are frozen, norms included, with the stem as the first.

    Returns:
        A detectron2 `Backbone`: (N, 3, H, W) to a dict of the maps named by `out_features`.

    Raises:
        UserError: an unknown name, layout or feature, `se` for a plain backbone, or weights that can't be read or
            don't fit.
    """
    if name.startswith(TIMM) or library_of(name)[0] != "timm":
        if num_classes is not None or layout is not None:
            raise UserError(
                "model.bad_argument",
                f"{'layout' if layout else 'num_classes'}: it is not for networks of other libraries; omit it "
                "(classifiers: timm.create_model)",
            )
        backbone = create_timm_backbone(
            name.removeprefix(TIMM), norm=norm, out_features=out_features, freeze_at=freeze_at, se=se
        )
        if weights:
            _load_timm(backbone, weights, se)
        return backbone
    if name not in NAMED_BACKBONES:
        choices = ", ".join(NAMED_BACKBONES)
        raise UserError(
            "model.unknown_backbone",
            f"no backbone is named {name!r}; {suggestion(name, NAMED_BACKBONES)}choose from {choices}, or timm/NAME, "
            "torchvision/NAME or pytorchcv/NAME for a network of a library",
        )
    layout = layout or ("caffe" if name == "senet154" else "torchvision")
    check_choice("layout", layout, LAYOUTS)
    if name == "senet154" and layout != "caffe":
        raise UserError("model.bad_argument", "layout: 'senet154' exists only in the caffe layout; omit layout")
    if name in PLAIN_BACKBONES and se is not None:
        raise UserError("model.bad_argument", f"se: {name!r} is a plain backbone; did you mean 'se_{name}'?")
    known = {"stem", *STAGES} | ({"linear"} if num_classes and "res5" in out_features else set())
    if not out_features or not set(out_features) <= known:
        raise UserError(
            "model.bad_argument",
            f"out_features: {list(out_features)} is not a selection of stem, {', '.join(STAGES)} and linear; linear "
            "needs num_classes and res5",
        )
    options = NAMED_BACKBONES[name]
    se = (se or SEConfig()) if name in SE_BACKBONES else PLAIN
    stem = "basic" if layout != "caffe" else "deep" if name == "senet154" else "caffe"
    stride_in_1x1 = layout != "torchvision" and options["depth"] >= 50 and "num_groups" not in options
    backbone = make_se_resnet(
        **options,
        se=se,
        norm=norm,
        out_features=out_features,
        num_classes=num_classes,
        stem=stem,
        stride_in_1x1=stride_in_1x1,
        freeze_at=freeze_at,
    )
    if weights:
        # Assumptions that the tensors' shapes do not show; with only some of the stages, the depth too.
        _load(
            backbone,
            weights,
            depth=options["depth"],
            stride_in_1x1=stride_in_1x1,
            stem=stem,
            se_position=se.position,
            se_squeeze=se.squeeze,
            se_gate=se.gate,
            se_init=se.init,
        )
    # A classifier may be fine-tuned from a file with other classes.
    if num_classes is None:
        refuse_partial_load(backbone)
    return backbone


def create_res5(
    name: str, *, weights: str = "", layout: str | None = None, norm: str = "BN", se: SEConfig | None = None
) -> nn.Sequential:
    """The last stage of a backbone by name, for the `Res5ROIHeads` of a C4 detector, whose backbone ends with res4.

    Args: those of :func:`create_backbone`; `weights` are those of the whole backbone.

    Returns:
        (N, channels of res4, H, W) to (N, channels of res5, H / 2, W / 2).

    Raises:
        UserError: as :func:`create_backbone`.
    """
    res5 = create_backbone(name, weights=weights, layout=layout, norm=norm, out_features=("res5",), se=se).res5
    refuse_partial_load(res5)
    return res5


class _BackboneCheckpointer(StrictCheckpointer):
    """Loads a backbone without a detector, and its classifier only if the number of classes is the same."""

    def _load_model(self, checkpoint: Any) -> Any:
        own, state = self.model.state_dict(), checkpoint["model"]
        # In the file of a detector, the backbone has a prefix.
        first = ("stem.conv1.weight", "network.")
        starts = {name: tuple(name + layer for layer in first) for name in DETECTOR_PREFIXES}
        prefix = next((name for name in starts if any(key.startswith(starts[name]) for key in state)), "")
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        checkpoint["model"] = {
            key: tensor
            for key, tensor in state.items()
            if not key.startswith("linear.") or (key in own and own[key].shape == tensor.shape)
        }
        return super()._load_model(checkpoint)


def _load_timm(backbone: TimmBackbone, weights: str, se: SEConfig | None) -> None:
    recorded = _BackboneCheckpointer(backbone).load(weights).get("assumptions")
    if not isinstance(recorded, dict) or "network" not in recorded:
        logger.warning(f"{weights} does not record its network and its input; check mean, std and channel order")
        return
    file = TimmAssumptions.from_dict(recorded)
    built = replace(file, network=backbone.name.split(".")[0], se=recorded_se(se) if se else {})
    if found := file.contradictions(built):
        raise UserError(
            "weights.other_network",
            f"{weights} was made for another network: {'; '.join(found)}; change name, se or weights",
        )
    _log_input(weights, file)


def _log_input(weights: str, file: WeightsAssumptions | TimmAssumptions) -> None:
    mean, std = ([round(value, 3) for value in values] for values in (file.pixel_mean, file.pixel_std))
    logger.info(f"{weights} assumes {file.channel_order} images in 0..255 with mean {mean} and std {std}")


def _load(backbone: Backbone, weights: str, **built: Any) -> None:
    """Loads a file, and compares its recorded assumptions with those of the built backbone (`built`)."""
    recorded = _BackboneCheckpointer(backbone).load(weights).get("assumptions")
    if recorded is None:
        logger.warning(
            f"{weights} does not record its network and its input; check layout, mean, std and channel order"
        )
        return
    file = WeightsAssumptions.from_dict(recorded)
    if found := contradictions(file, replace(file, **built)):
        raise UserError(
            "weights.other_network",
            f"{weights} was made for another network: {'; '.join(found)}; change name, layout or se",
        )
    _log_input(weights, file)
