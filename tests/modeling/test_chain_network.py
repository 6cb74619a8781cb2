"""Networks of torchvision and pytorchcv as backbones, next to hooks on the libraries' own networks."""

from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn

from se_detection import SEConfig, SqueezeExcitation, create_timm_backbone
from se_detection.config.meta_device import Uninitialized
from se_detection.modeling.chain_network import describe_chain

from ..helpers import raises, relative_error, with_random_weights

# The modules that give the maps of stride 4, 8, 16 and 32, whether their sizes are right for any image, and the number
# of SE blocks: one for each module or unit of the papers.
NETWORKS = {
    "torchvision/shufflenet_v2_x0_5": (("maxpool", "stage2", "stage3", "conv5"), True, 4 + 8 + 4),
    "torchvision/googlenet": (("conv3", "inception3b", "inception4e", "inception5b"), False, 2 + 5 + 2),
    "pytorchcv/bninception": (
        ("features.init_block.conv2", "features.stage1", "features.stage2", "features.stage3"),
        False,
        2 + 5 + 3,
    ),
    "pytorchcv/shufflenet_g3_wd4": (
        ("features.init_block.pool", "features.stage1", "features.stage2", "features.stage3"),
        True,
        4 + 8 + 4,
    ),
}
REDUCTION = 4


def needs_pytorchcv(name: str) -> None:
    if name.startswith("pytorchcv"):
        pytest.importorskip("pytorchcv", reason="this test needs pytorchcv")


def original(name: str) -> nn.Module:
    library, _, network = name.partition("/")
    if library == "torchvision":
        options = {"init_weights": False} if network == "googlenet" else {}
        return with_random_weights(partial(torchvision.models.get_model, network, **options)).eval()
    needs_pytorchcv(name)
    from pytorchcv import model_provider as models

    return with_random_weights(partial(models.get_model, network)).eval()


def hooked_maps(network: nn.Module, modules: tuple[str, ...], image: Tensor) -> list[Tensor]:
    maps: list[Tensor] = []
    # A copy: the next layer may change it in place.
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output: maps.append(output.clone()))
        for name in modules
    ]
    try:
        network(image)
    except RuntimeError:  # pytorchcv's classifiers need images of 224 pixels for their last pool
        assert len(maps) == len(modules)
    for hook in hooks:
        hook.remove()
    return maps


def load(backbone: nn.Module, network: nn.Module) -> None:
    named = backbone.with_own_names(network.state_dict())
    own = backbone.state_dict().keys()
    assert {key for key in named if key not in own and not key.endswith("num_batches_tracked")} == set()
    # Raises for a missing tensor, except those of new SE blocks.
    backbone.load_state_dict(named, strict=False)


networks = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "nception" in name or "googlenet" in name else [])
        for name in NETWORKS
    ],
)


@networks
def test_a_backbone_gives_the_librarys_maps(name) -> None:
    modules, any_size, _ = NETWORKS[name]
    theirs = original(name)
    with Uninitialized():
        ours = create_timm_backbone(name, norm="FrozenBN", freeze_at=0).eval()
    load(ours, theirs)
    assert ours.size_divisibility == (0 if any_size else 32)
    image = torch.randn(1, 3, *((97, 131) if any_size else (96, 128)), requires_grad=True)
    maps, expected = ours(image), hooked_maps(theirs, modules, image)
    shapes = ours.output_shape().values()
    assert [(one.stride, one.channels) for one in shapes] == [
        (stride, one.shape[1]) for stride, one in zip((4, 8, 16, 32), expected, strict=True)
    ]
    assert max(map(relative_error, maps.values(), expected)) < 1e-6
    if any_size:
        assert [tuple(one.shape[2:]) for one in maps.values()] == [(25, 33), (13, 17), (7, 9), (4, 5)]
    directions = [torch.randn_like(one) for one in expected]
    gradients = [
        torch.autograd.grad(sum((one * way).sum() for one, way in zip(found, directions, strict=True)), image)[0]
        for found in (maps.values(), expected)
    ]
    assert relative_error(*gradients) < 1e-4


@networks
def test_each_unit_gets_se(name) -> None:
    needs_pytorchcv(name)
    with torch.device("meta"), Uninitialized():
        backbone = create_timm_backbone(name, se=SEConfig(reduction=4))
    assert sum(isinstance(module, SqueezeExcitation) for module in backbone.modules()) == NETWORKS[name][2]


@pytest.mark.parametrize(
    "name", ["torchvision/shufflenet_v2_x0_5", pytest.param("pytorchcv/shufflenet_g3_wd4", marks=pytest.mark.slow)]
)
def test_se_starts_as_the_identity_and_learns(name) -> None:
    theirs = original(name)
    with Uninitialized():
        plain = create_timm_backbone(name, norm="BN", freeze_at=0)
    gated = create_timm_backbone(name, norm="BN", freeze_at=0, se=SEConfig(init="identity", reduction=4))
    load(plain, theirs)
    load(gated, theirs)
    gates = [module for module in gated.modules() if isinstance(module, SqueezeExcitation)]
    image = torch.randn(2, 3, 64, 96)
    for training in (False, True):
        expected, maps = (list(one.train(training)(image).values()) for one in (plain, gated))
        assert all(map(torch.equal, maps, expected))
    sum(one.square().mean() for one in maps).backward()
    # Training in several processes fails on a parameter that gets no gradient.
    assert all(parameter.grad is not None for parameter in gated.parameters())
    before = gated.eval()(image)["res5"]
    torch.optim.SGD([parameter for gate in gates for parameter in gate.parameters()], 1.0).step()
    assert not torch.equal(gated(image)["res5"], before)


@networks
def test_frozen_parts(name) -> None:
    needs_pytorchcv(name)
    with Uninitialized():
        backbone = create_timm_backbone(name, norm="BN", freeze_at=2).train()
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert [one.requires_grad for one in maps.values()] == [False, True, True, True]
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(parameter.requires_grad for norm in norms for parameter in norm.parameters())


@pytest.mark.parametrize(
    ("name", "options", "code", "named"),
    [
        ("torchvision/shufflenet", {}, "config.unknown_network", "shufflenet_v2_x0_5"),
        ("torchvision/resnet50.IMAGENET1K_V3", {}, "config.unknown_network", "IMAGENET1K_V2"),
        ("torchvision/swin_t", {}, "model.no_maps", "res2"),
        pytest.param("torchvision/inception_v3", {}, "model.no_maps", "192x20x28", marks=pytest.mark.slow),
        ("torchvision/shufflenet_v2_x0_5", {"output_stride": 16}, "config.not_buildable", "output_stride"),
        ("torchvision/shufflenet_v2_x0_5", {"drop_path": 0.1}, "config.not_buildable", "drop_path_rate"),
        ("torchvision/shufflenet_v2_x0_5", {"in_channels": 1}, "config.not_buildable", "in_chans"),
    ],
)
def test_refused_networks(name, options, code, named) -> None:
    with raises(code, name.split(".")[0].rpartition("/")[2], named), torch.device("meta"), Uninitialized():
        create_timm_backbone(name, **options)


class Branches(nn.Module):
    """The last layer gets the output of an operation that is not a module, which a chain would skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.last(x.relu_())


def test_a_chain_ends_at_an_operation_between_modules() -> None:
    with torch.device("meta"):
        info = describe_chain(Branches())
    assert [(entry["module"], entry["reduction"]) for entry in info] == [("stem", 2), ("norm", 2)]
