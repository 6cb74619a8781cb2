"""Any network of timm, torchvision or pytorchcv as a detectron2 backbone, alone and with FPN, and its builders."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from ..config.meta_device import Uninitialized
from ..config.se_config import STAGES, SEConfig
from ..config.timm_config import TimmConfig
from ..errors import UserError
from .insert_se import insert_se
from .network_names import check_name, named_weights, trained_input, weights_url
from .partial_load import refuse_partial_load
from .se_resnet import check_no_fpn, check_roi_heads, ignoring_padding, with_fpn
from .timm_maps import fit_maps
from .timm_network import (
    STEM,
    check_drop,
    create_features,
    create_network,
    feature_info,
    find_parts,
    find_timm_names,
    map_indices,
    named_tensors,
)

# The arguments of timm's function that have keys of their own, or that are not for backbones.
RESERVED = (
    *("features_only", "out_indices", "pretrained", "num_classes", "in_chans", "output_stride"),
    *("drop_path_rate", "drop_block_rate"),
)


class TimmBackbone(Backbone):
    """A network that returns its maps by stride, for detectron2; made by :func:`create_timm_backbone`.

    Args:
        network: made by timm with `features_only`, or like it; it returns the maps of `strides`, in this order.
        name: of the network, as in `MODEL.TIMM.NAME`, with or without a tag.
        strides: the stride of each map, by name.
        channels: the channels of each map, by name.
        timm_names: the names of the classifier's tensors by those of the network's; inserted layers are missing.
        other_names: the names of the classifier's other tensors, such as those of its last layer.
        parts: the names of the network's modules in its stem and in `res2` to `res5`; empty if these are not one after
            another.
        in_channels: of the images.

    Raises:
        UserError: the maps do not have the sizes that a detector needs (:func:`~.timm_maps.fit_maps`).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        strides: Mapping[str, int],
        channels: Mapping[str, int],
        timm_names: Mapping[str, str],
        other_names: Iterable[str] = (),
        parts: Mapping[str, Sequence[str]] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.timm_names = dict(timm_names)
        self.other_names = frozenset(other_names)
        self.parts = dict(parts or {})
        self._out_features = list(strides)
        self._out_feature_strides = dict(strides)
        self._out_feature_channels = dict(channels)
        # Of transformers: (N, H, W, C).
        self._channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        self._size_divisibility = fit_maps(self, name, channels=in_channels)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to the maps by name: (N, C, ceil(H / stride), ceil(W / stride))."""
        maps = self.network(x)
        if self._channels_last:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        return dict(zip(self._out_features, maps, strict=True))

    def with_own_names(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of timm's classifier in the names of this backbone; those that it does not use are dropped.

        Tensors with names that the classifier does not have keep them.
        """
        own = {theirs: f"network.{name}" for name, theirs in self.timm_names.items()}
        return {own.get(key, key): tensor for key, tensor in state_dict.items() if key not in self.other_names}


def create_timm_backbone(
    name: str,
    *,
    out_features: Sequence[str] = STAGES,
    norm: str = "FrozenBN",
    freeze_at: int = 2,
    output_stride: int = 32,
    drop_path: float = 0.0,
    drop_block: float = 0.0,
    kwargs: Mapping[str, Any] | None = None,
    se: SEConfig | None = None,
    in_channels: int = 3,
) -> TimmBackbone:
    """A network of timm as a detectron2 backbone, with random weights; for lazy configs and code.

    The maps are those of timm's `features_only` network, selected by stride. Weights come from `MODEL.WEIGHTS` (lazy:
    `train.init_checkpoint`), such as `timm://NAME`.

    One forward pass without arithmetic checks the sizes of the maps: `ceil(input / stride)` at any size, or at
    multiples of 32, which is then the backbone's `size_divisibility`. If convolutions without padding make them smaller
    (Inception, Xception, NASNet), which would shift FPN's grid, these are padded; the weights stay the same.

    Args:
        name: timm's name, with or without a tag (which only names weights), or `torchvision/NAME` or `pytorchcv/NAME`.
            Of these libraries, the networks whose modules run one after another have maps.
        se: SE blocks to insert, as :func:`~se_detection.modeling.insert_se.insert_se` does; only in `se.stages`, if
            these are not all.
        kwargs: other arguments of the library's function.
        others: the keys of `MODEL.TIMM` (:class:`~se_detection.config.timm_config.TimmConfig`).

    Raises:
        UserError: timm has no such network, it can't be built with these options, or it lacks maps that a detector
            can use.
    """
    options = dict(kwargs or {})
    # The checks of the values.
    config = TimmConfig(
        name=name,
        out_features=out_features,
        norm=norm,
        freeze_at=freeze_at,
        output_stride=output_stride,
        drop_path=drop_path,
        drop_block=drop_block,
    )
    check_name(name)
    if taken := sorted(set(options).intersection(RESERVED)):
        raise UserError("config.bad_value", f"MODEL.TIMM.KWARGS: {taken[0]} is set by another key of MODEL.TIMM")
    options |= {"drop_path_rate": drop_path} if drop_path else {}
    options |= {"drop_block_rate": drop_block} if drop_block else {}
    options |= {"in_chans": in_channels} if in_channels != 3 else {}
    with torch.device("meta"), Uninitialized():
        classifier = create_network(name, options)
    info = feature_info(classifier, name)
    indices = map_indices(info, out_features, name)
    options |= {"output_stride": output_stride} if output_stride != 32 else {}
    network = create_features(name, options, info, indices)
    check_drop(network, config)
    timm_names = find_timm_names(network, classifier)
    if se is not None:
        before = {id(tensor): key for key, tensor in named_tensors(network)}
        skip = _outside(se.stages, network, find_parts(network, info, out_features), name)
        insert_se(network, replace(se, stages=STAGES), skip=skip)
        # An inserted layer may become the parent of another one and change its name.
        names = {key: timm_names.get(before.get(id(tensor), "")) for key, tensor in named_tensors(network)}
        timm_names = {key: theirs for key, theirs in names.items() if theirs is not None}
    backbone = TimmBackbone(
        network,
        name=name,
        strides={feature: min(4 * 2 ** STAGES.index(feature), output_stride) for feature in out_features},
        channels=dict(zip(out_features, (info[index]["num_chs"] for index in indices), strict=True)),
        timm_names=timm_names,
        other_names=set(classifier.state_dict()) - set(timm_names.values()),
        parts=find_parts(network, info, out_features),
        in_channels=in_channels,
    )
    if norm == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        backbone.network = convert_sync_batchnorm(network)
    elif norm == "FrozenBN":
        _freeze_norms(network, [key for key, _ in network.named_modules() if key])
    _freeze(backbone, freeze_at)
    from .fold_timm import fold_frozen_norms

    fold_frozen_norms(network)
    refuse_partial_load(backbone)
    return backbone


def _outside(
    stages: Sequence[str], network: nn.Module, parts: Mapping[str, Sequence[str]], name: str
) -> Collection[str]:
    """The names of the modules that are not in these stages; none if these are all stages."""
    if set(stages) == set(STAGES):
        return ()
    if not parts:
        raise UserError(
            "model.parallel_stages",
            f"MODEL.SE.STAGES: the stages of {name} are not one after another; use {', '.join(STAGES)}",
        )
    inside = {module for stage in stages for module in parts.get(stage, ())}
    return [module for module, _ in network.named_modules() if module not in inside]


def _freeze(backbone: TimmBackbone, freeze_at: int) -> None:
    """Freezes parameters and statistics of the first parts, and the parameters behind the last map."""
    network = backbone.network
    names = [name for name, _ in network.named_modules() if name]
    used = set().union(*backbone.parts.values())
    for name in names if backbone.parts else ():
        # EfficientNet builds its last stages even if no map needs them, and DDP refuses parameters without gradients.
        if name not in used:
            for parameter in network.get_submodule(name).parameters():
                parameter.requires_grad = False
    if freeze_at < 5:
        if freeze_at and not backbone.parts:
            raise UserError(
                "model.parallel_stages",
                f"MODEL.TIMM.FREEZE_AT: the stages of {backbone.name} are not one after another; use 0, or 5 for all",
            )
        names = [name for part in (STEM, *STAGES)[:freeze_at] for name in backbone.parts.get(part, ())]
    if not freeze_at:
        return
    for module in (network, *map(network.get_submodule, names)):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False
    _freeze_norms(network, names)


def _freeze_norms(network: nn.Module, names: Sequence[str]) -> None:
    """Replaces BN by timm's frozen BN, which keeps eps, and the activation and dropout in timm's own norms."""
    from timm.layers import freeze_batch_norm_2d

    for name in names:
        module = network.get_submodule(name)
        if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
            parent, _, child = name.rpartition(".")
            network.get_submodule(parent).add_module(child, freeze_batch_norm_2d(module))


def timm_backbone_of_config(cfg: CfgNode, **changes: Any) -> TimmBackbone:
    """The network that `MODEL.TIMM` describes, with other arguments of :func:`create_timm_backbone`."""
    timm = TimmConfig.from_cfg(cfg)
    options: dict[str, Any] = {
        "out_features": timm.out_features,
        "norm": timm.norm,
        "freeze_at": timm.freeze_at,
        "output_stride": timm.output_stride,
        "drop_path": timm.drop_path,
        "drop_block": timm.drop_block,
        "kwargs": timm.arguments(),
        "se": SEConfig.from_cfg(cfg) if timm.insert_se else None,
    }
    return create_timm_backbone(timm.name, **options | changes)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """The network that `MODEL.TIMM` describes, for DC5 detectors.

    Raises:
        UserError: it can't be built, is for a C4 detector, or SE is set for an FPN or heads that don't have it.
    """
    check_no_fpn(cfg)
    check_roi_heads(cfg)
    backbone = _bottom_up(cfg, input_shape)
    return ignoring_padding(cfg, backbone)


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A network of timm with FPN: p2 to p5, and p6 by subsampling (Faster, Mask and Cascade R-CNN)."""
    return with_fpn(cfg, _bottom_up(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A network of timm with RetinaNet's FPN: p3 to p5, and p6 and p7 by convolution from res5."""
    backbone = _bottom_up(cfg, input_shape)
    if "res5" not in backbone.output_shape():
        raise UserError("config.bad_value", "MODEL.TIMM.OUT_FEATURES: RetinaNet's p6 and p7 need res5; add it")
    return with_fpn(cfg, backbone, LastLevelP6P7(backbone.output_shape()["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    if "TIMM" not in cfg.MODEL:
        raise UserError(
            "config.no_se_keys",
            "the config has no MODEL.TIMM: import se_detection before get_cfg(), or call add_se_config(cfg)",
        )
    # With FPN, it is only detectron2's default, which this detector may not use.
    is_c4 = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    if is_c4 and cfg.MODEL.ROI_HEADS.NAME.endswith("Res5ROIHeads"):
        raise UserError(
            "model.no_c4",
            f"MODEL.ROI_HEADS.NAME: {cfg.MODEL.ROI_HEADS.NAME} (C4) has a ResNet's res5, and timm's networks can't be "
            "split there; use StandardROIHeads with FPN or DC5 (MODEL.TIMM.OUTPUT_STRIDE 16)",
        )
    wanted = cfg.MODEL.FPN.IN_FEATURES if "fpn" in cfg.MODEL.BACKBONE.NAME else ()
    if missing := [feature for feature in wanted if feature not in cfg.MODEL.TIMM.OUT_FEATURES]:
        raise UserError(
            "config.bad_value", f"MODEL.TIMM.OUT_FEATURES: MODEL.FPN.IN_FEATURES needs {', '.join(missing)} too; add it"
        )
    backbone = timm_backbone_of_config(cfg, in_channels=input_shape.channels)
    if weights := named_weights(cfg.MODEL.WEIGHTS):
        check_input(cfg, weights)
    return backbone


def check_input(cfg: CfgNode, weights: str) -> None:
    """Compares a config with what a library says of weights by name, such as timm's `pretrained_cfg`.

    Raises:
        UserError: the weights are not of the network in `MODEL.TIMM.NAME`, or are for images in another form.
    """
    url = weights_url(weights)
    if weights.split(".")[0] != cfg.MODEL.TIMM.NAME.split(".")[0]:
        raise UserError(
            "weights.other_network",
            f"MODEL.WEIGHTS: {url} is not of {cfg.MODEL.TIMM.NAME} (MODEL.TIMM.NAME); change one of them",
        )
    check_name(weights)
    mean, std = trained_input(weights)
    expected = {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [round(value, 3) for value in mean],
        "MODEL.PIXEL_STD": [round(value, 3) for value in std],
    }
    given = (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    if not all(map(_is_close, expected.values(), given)):
        lines = ", ".join(f"{key}: {value}" for key, value in expected.items())
        raise UserError("weights.other_input", f"{url} was trained on other images; write {lines}")


def _is_close(expected: Any, given: Any) -> bool:
    if isinstance(expected, str):
        return expected == given
    # Rounded values of std are in use: 57.375 for 57.38.
    return len(given) == len(expected) and all(abs(a - b) < 0.02 for a, b in zip(expected, given, strict=True))
