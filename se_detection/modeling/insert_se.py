"""SE in networks that have none (the paper's Sec. 3.3): by family, in FPN levels, and after RoIAlign.

The weights of the network keep their names, so that a file of the network without SE still fits: SE is put into a slot
that the block has (`se` of timm's ResNets), or next to the parameters of the module whose output it scales, and a
forward hook applies it. A norm whose output is scaled is the exception, because converting norms (FrozenBN, SyncBN)
would lose the hook: see :class:`NormAndSE`.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from detectron2.modeling import FPN
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn

from ..config.meta_device import WithoutNorms
from ..config.se_config import STAGES, SEConfig
from ..errors import UserError, counted, one_line
from .squeeze_excitation import SqueezeExcitation

# Of the image that shows the channels of each site; classifiers of pytorchcv need this size.
SIZE = 224


class SESite(NamedTuple):
    """A place for SE in a block.

    Args:
        module: the name of a module in the block, such as `conv2` or `branches.1`; empty for the block itself.
        before: scale the input of this module, not its output. It is then a slot: None, or a module without parameters
            (`nn.Identity`, `DropPath`) that the block calls.
    """

    module: str = ""
    before: bool = False


# What timm's blocks call their attention.
ATTENTION = ("se", "attn", "attn_last", "attn3")
Rule = Callable[[nn.Module], Iterable[SESite]]


def _at(module: str = "", *, before: bool = False) -> Rule:
    return lambda block: (SESite(module, before),)


def _in_depthwise_separable(block: Any) -> Iterable[SESite]:
    # MobileNet v1's block ends with an activation. Without one it is an inverted residual that does not expand.
    return (SESite(),) if block.has_pw_act and not block.has_skip else (SESite("se", before=True),)


def _after_activations(layers: nn.Module, prefix: str = "") -> Iterator[SESite]:
    """After the ReLU of each convolution in a chain of layers."""
    convolved = False
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Conv2d):
            convolved = True
        elif isinstance(layer, nn.ReLU) and convolved:
            yield SESite(prefix + name)
            convolved = False


def _in_vgg(network: Any) -> Iterable[SESite]:
    return _after_activations(network.features, "features.")


def _in_features_of_vgg(network: nn.Module) -> Iterable[SESite]:
    # timm's features_only wraps all families in this class, but only VGG is a chain of layers without blocks.
    is_chain = not any(list(child.children()) for child in network.children())
    return _after_activations(network) if is_chain else ()


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {}

    def add(module: str, classes: str, rule: Rule) -> None:
        table.update({f"{module}.{name}": rule for name in classes.split()})

    # Residual networks: at the end of the branch, before the sum or the concatenation.
    add("timm.models.resnet", "BasicBlock Bottleneck", _at("se", before=True))  # ResNeXt, WRN and HRNet too
    add("timm.models.resnetv2", "PreActBasic PreActBottleneck Bottleneck", _at("drop_path", before=True))
    add("timm.models.byobnet", "BasicBlock BottleneckBlock", _at("attn_last", before=True))
    add("timm.models.cspnet", "BottleneckBlock", _at("attn3", before=True))
    add("timm.models.cspnet", "DarkBlock EdgeBlock", _at("drop_path", before=True))
    add("timm.models.inception_resnet_v2", "Block35 Block17 Block8", _at("conv2d"))
    add("timm.models.densenet", "DenseLayer", _at())
    add("torchvision.models.densenet", "_DenseLayer", _at())
    add("torchvision.models.resnet", "BasicBlock", _at("bn2"))
    add("torchvision.models.resnet", "Bottleneck", _at("bn3"))
    add("torchvision.models.shufflenetv2", "InvertedResidual", _at("branch2"))
    add("pytorchcv.models.shufflenet", "ShuffleUnit", _at("expand_bn3"))
    # Inception networks: after the concatenation of each module, those of stride 2 included.
    add("timm.models.inception_v3", "InceptionA InceptionB InceptionC InceptionD InceptionE", _at())
    add("timm.models.inception_v4", "InceptionA InceptionB InceptionC ReductionA ReductionB", _at())
    add("torchvision.models.inception", "InceptionA InceptionB InceptionC InceptionD InceptionE", _at())
    add("torchvision.models.googlenet", "Inception", _at())
    add("pytorchcv.models.bninception", "InceptionBlock ReductionBlock", _at())
    # VGG: after the ReLU of each convolution.
    add("timm.models.vgg", "VGG", _in_vgg)
    add("torchvision.models.vgg", "VGG", _in_vgg)
    add("timm.models._features", "FeatureListNet FeatureDictNet", _in_features_of_vgg)
    # MobileNet v1: after the pointwise convolution. Inverted residuals: where EfficientNet has it. RegNetX: as RegNetY.
    add("timm.models._efficientnet_blocks", "DepthwiseSeparableConv", _in_depthwise_separable)
    inverted = "InvertedResidual CondConvResidual EdgeResidual UniversalInvertedResidual"
    add("timm.models._efficientnet_blocks", inverted, _at("se", before=True))
    add("timm.models.regnet", "Bottleneck PreBottleneck", _at("se", before=True))
    return table


# In the name of a tensor of an inserted block.
INSERTED_SE = r"\.(se|se_output)\."
# By the full name of the block's class: importing a class would import its library.
SE_SITES = _table()


def register_se_sites(block: type[nn.Module] | str, sites: Rule) -> None:
    """Says where :func:`insert_se` puts SE in a block.

    Args:
        block: the class of the block (or of a whole network), or its full name, such as `timm.models.dla.DlaBasic`.
            Subclasses have their own entries, because they may compute something else.
        sites: a function from a block to its sites: `lambda block: [SESite("conv2")]`.
    """
    SE_SITES[block if isinstance(block, str) else _full_name(block)] = sites


def insert_se(
    network: nn.Module, se: SEConfig, sites: Sequence[str] | None = None, skip: Collection[str] = ()
) -> list[str]:
    """Puts SE into a network that has none, in place.

    Call it on a network with its final norms (converting norms afterwards is safe for the families of the table), and
    load weights before or after it: the layers of the network keep their names. With `SEConfig(init="identity")`, the
    network computes, to the last bit, what it computed before.

    Args:
        network: a network of timm, also one made with `features_only`, of torchvision or of pytorchcv, for images
            (N, C, H, W). One image is run through a copy on the meta device to find the channels.
        se: the SE blocks, which get `reduction`, `squeeze`, `gate`, `bias`, `gate_bias` and `init`; or the blocks of
            another `kind`.
        sites: names of modules whose output is scaled, instead of those of the network's family.
        skip: names of modules that stay without SE.

    Returns:
        The names of the new SE modules, such as `layer1.0.se`. Sites in layers that do not run are skipped.

    Raises:
        UserError: the family is unknown, the network has SE already, its maps have fewer channels than the reduction
            ratio, or `se` has options of ResNets only.
    """
    _check_options(se)
    if sites is None:
        found = ((name, _join(name, site.module), site.before) for name, site in _sites(network))
        places = [(place, before) for block, place, before in found if not {block, place} & set(skip)]
        if not places:
            raise UserError(
                "model.no_se_sites",
                f"{type(network).__name__}: it is not known where SE belongs in this network; name the modules to "
                "scale (sites=[...]), or register its blocks with register_se_sites",
            )
    else:
        places = [(name, False) for name in sites]
    channels = _channels(network, places)
    like = next(network.parameters())
    inserted = []
    for (name, before), width in zip(places, channels, strict=True):
        if width:
            block = _block(width, se, name).to(device=like.device, dtype=like.dtype).train(network.training)
            inserted.append(_put(network, name, before, block))
    return inserted


def add_se_to_fpn(fpn: FPN, se: SEConfig) -> FPN:
    """Puts SE after the output convolution of each FPN level, in place; p6 and p7 follow from these levels.

    Args:
        fpn: of detectron2.
        se: as for :func:`insert_se`; `position`, `stages` and `reduction_per_stage` are the backbone's, and not read.

    Returns:
        The same FPN, for lazy configs.
    """
    for name, layer in list(fpn.named_children()):
        if name.startswith("fpn_output"):
            _scale_output(layer, _block(layer.out_channels, se, name))
    return fpn


def add_se_to_pooler(pooler: ROIPooler, channels: int, se: SEConfig) -> ROIPooler:
    """Puts SE after RoIAlign, in place: each region's features (C, H, W) get gates of their own.

    Args:
        pooler: of the box, mask or keypoint head.
        channels: C, those of the FPN levels.
        se: as for :func:`add_se_to_fpn`.

    Returns:
        The same pooler, for lazy configs.
    """
    _scale_output(pooler, _block(channels, se, "the RoI features"))
    return pooler


class NormAndSE(nn.Sequential):
    """A norm, then SE: the norm's parameters are named `norm.weight`, ..., and are also loaded under their old names.

    A norm has no slot, and a hook would be lost when a conversion to FrozenBN or SyncBN replaces the norm.
    """

    def __init__(self, norm: nn.Module, se: nn.Module) -> None:
        super().__init__(OrderedDict(norm=norm, se=se))
        self.register_load_state_dict_pre_hook(_rename)


def _rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
    for key in module.get_submodule("norm").state_dict():
        if prefix + key in state:
            state[f"{prefix}norm.{key}"] = state.pop(prefix + key)


class _Probe(nn.Module):
    """Takes the place of SE and keeps the number of channels."""

    channels = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"SE needs maps (N, C, H, W), and this layer's shape is {tuple(x.shape)}")
        self.channels = x.shape[1]
        return x


def _check_options(se: SEConfig) -> None:
    of_resnets = {
        "POSITION": (se.position, "standard"),
        "STAGES": (list(se.stages), list(STAGES)),
        "REDUCTION_PER_STAGE": (list(se.reduction_per_stage), []),
    }
    for key, (value, usual) in of_resnets.items():
        if value != usual:
            raise UserError(
                "config.bad_value", f"MODEL.SE.{key}: {value} is for SE-ResNets; SE in other networks needs {usual}"
            )


def _sites(network: nn.Module) -> Iterator[tuple[str, SESite]]:
    for name, module in network.named_modules():
        if rule := SE_SITES.get(_full_name(type(module))):
            for slot in ATTENTION:
                _check_free(_join(name, slot), getattr(module, slot, None))
            for site in rule(module):
                yield name, site


def _check_free(name: str, slot: Any) -> None:
    """Checks that a slot has no module with parameters."""
    if isinstance(slot, nn.Module) and any(True for _ in slot.parameters()):
        raise UserError(
            "model.has_se",
            f"{name} already has {type(slot).__name__}; insert SE only into networks without attention, and once",
        )


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _join(name: str, part: str) -> str:
    return ".".join(filter(None, (name, part)))


def _block(channels: int, se: SEConfig, where: str) -> nn.Module:
    if se.kind != "se":
        # Here, as importing timm takes seconds.
        from timm.layers import create_attn

        return create_attn(se.kind, channels, rd_ratio=1 / se.reduction)
    if channels < se.reduction:
        raise UserError(
            "config.bad_value",
            f"MODEL.SE.REDUCTION: {se.reduction} is too large for {where} ({counted(channels, 'channel')}); choose at "
            f"most {channels}",
        )
    return SqueezeExcitation.from_config(channels, se)


def _channels(network: nn.Module, places: Sequence[tuple[str, bool]]) -> list[int]:
    """The channels at each place, 0 if it is not reached, from one image on the meta device."""
    memo: dict[int, Any] = {id(each): _meta(each) for each in chain(network.parameters(), network.buffers())}
    probed = copy.deepcopy(network, memo).eval()
    first = next((module for module in probed.modules() if isinstance(module, nn.Conv2d)), None)
    probes = [_Probe() for _ in places]
    for (name, before), probe in zip(places, probes, strict=True):
        _put(probed, name, before, probe)
    if first is not None:
        image = torch.zeros(1, first.in_channels * first.groups, SIZE, SIZE, device="meta", dtype=first.weight.dtype)
        try:
            with torch.no_grad(), WithoutNorms():
                probed(image)
        except Exception as error:  # of any class: a network may compute anything
            reason = one_line(error)
            raise UserError(
                "model.no_se_sites",
                f"{type(network).__name__}: SE can't be inserted, because the network fails on an image of "
                f"{SIZE}x{SIZE} ({reason}); use a convolutional network with maps (N, C, H, W)",
            ) from error
    return [probe.channels for probe in probes]


def _meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _put(network: nn.Module, name: str, before: bool, se: nn.Module) -> str:
    """Puts a module before or after the module `name`, and returns its own name."""
    parent_name, _, own = name.rpartition(".")
    try:
        parent: Any = network.get_submodule(parent_name)
        module = getattr(parent, own) if own else network
    except AttributeError as error:
        raise UserError(
            "model.no_se_sites", f"sites: {type(network).__name__} has no module {name!r}; see named_modules()"
        ) from error
    _check_free(name, module if before else getattr(module, "se_output", getattr(module, "se", None)))
    if before and own == "se":
        parent.se = se
        return name
    if before:
        setattr(parent, own, nn.Sequential(OrderedDict(se=se, slot=module or nn.Identity())))
    elif own and _is_norm(module):
        setattr(parent, own, NormAndSE(module, se))
    else:
        return _join(name, _scale_output(module, se))
    return _join(name, "se")


def _is_norm(module: nn.Module) -> bool:
    # timm's norms hold their activation; FrozenBN is not PyTorch's.
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
        return True
    return "Norm" in type(module).__name__ and not list(module.children())


def _scale_output(module: nn.Module, se: nn.Module) -> str:
    # Some blocks call another module of this name.
    name = "se_output" if hasattr(module, "se") else "se"
    module.add_module(name, se)
    # In an `nn.Sequential`, it is the last module.
    if type(module).forward is not nn.Sequential.forward:
        # First, because the hooks of timm's feature extraction would take the output without SE.
        module.register_forward_hook(_apply, prepend=True)
    return name


def _apply(module: Any, inputs: Any, output: Tensor) -> Tensor:
    # Not a closure over the SE block, which a deep copy of the network would share.
    return (module.se_output if hasattr(module, "se_output") else module.se)(output)


__all__ = ["SESite", "add_se_to_fpn", "add_se_to_pooler", "insert_se", "register_se_sites"]
