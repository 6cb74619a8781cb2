"""The maps of each family are those of timm's own network for features."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from se_detection import SEConfig
from se_detection.config.meta_device import Uninitialized
from se_detection.modeling.squeeze_excitation import SqueezeExcitation
from se_detection.modeling.timm_backbone import TimmBackbone, _freeze_norms, create_timm_backbone

from ..helpers import raises, relative_error
from .timm_families import FAMILIES, FAST, SHALLOW, SLOW, trained_classifier

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
ODD, DIVISIBLE = (33, 67), (32, 64)


def timms_network(name: str, weights: dict[str, Tensor], folder: Path, **options) -> nn.Module:
    """timm's network for features, into which timm itself loads the file of a classifier."""
    file = folder / "classifier.safetensors"
    save_file(weights, file)
    load = {"features_only": True, "pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    with Uninitialized():
        return timm.create_model(name, **load, **SHALLOW.get(name, {}), **options)


def our_backbone(name: str, weights: dict[str, Tensor], **options) -> TimmBackbone:
    with Uninitialized():
        backbone = create_timm_backbone(name, kwargs=SHALLOW.get(name), **{"freeze_at": 0, **options})
    counters = {key for key, _ in backbone.named_buffers() if key.endswith("num_batches_tracked")}
    named = backbone.with_own_names(weights)
    backbone.load_state_dict({key: value for key, value in named.items() if key in counters or "num_b" not in key})
    return backbone


def maps_by_stride(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    strides = network.feature_info.reduction()
    maps = dict(zip(strides, network(image), strict=True))
    return {name: maps[stride] for name, stride in STRIDES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_and_gradients_are_timms(name, tmp_path) -> None:
    weights = trained_classifier(name)
    theirs = timms_network(name, weights, tmp_path).eval()
    with_gradient = name in ("seresnet33ts", *FAST[::3], *SLOW[::3])
    # Some families need sides that are divisible by 32.
    for size in (ODD, DIVISIBLE):
        image = torch.randn(1, 3, *size, requires_grad=with_gradient)
        with suppress(RuntimeError), torch.set_grad_enabled(with_gradient):
            expected = maps_by_stride(theirs, image)
            break
    ours = our_backbone(name, weights, norm="BN").eval()
    assert {key: (one.stride, one.channels) for key, one in ours.output_shape().items()} == {
        key: (stride, expected[key].shape[1]) for key, stride in STRIDES.items()
    }
    assert ours.size_divisibility in ((32,) if size == DIVISIBLE else (0, 32))
    with torch.no_grad():
        assert_same(ours(image), expected)
    # What a backbone with FrozenBN does when it is built.
    _freeze_norms(ours.network, [key for key, _ in ours.network.named_modules() if key])
    with torch.set_grad_enabled(with_gradient):
        maps = ours(image)
    assert_same(maps, expected)
    if ours.size_divisibility == 0:
        assert [tuple(maps[key].shape[2:]) for key in STRIDES] == [(9, 17), (5, 9), (3, 5), (2, 3)]
    if with_gradient:
        directions = {key: torch.randn_like(value) for key, value in expected.items()}
        gradients = [
            torch.autograd.grad(sum((found[key] * directions[key]).sum() for key in STRIDES), image)[0]
            for found in (maps, expected)
        ]
        assert relative_error(*gradients) < 1e-4


def assert_same(maps: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert max(relative_error(maps[key], expected[key]) for key in STRIDES) < 1e-6


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnety_002", "resnetv2_50"])
@torch.no_grad()
def test_output_stride(name, tmp_path) -> None:
    weights = trained_classifier(name)
    theirs = timms_network(name, weights, tmp_path, output_stride=16).eval()
    ours = our_backbone(name, weights, output_stride=16, out_features=("res4", "res5")).eval()
    image = torch.randn(1, 3, *ODD)
    maps = ours(image)
    assert relative_error(maps["res5"], theirs(image)[-1]) < 1e-5
    assert {key: one.stride for key, one in ours.output_shape().items()} == {"res4": 16, "res5": 16}
    assert maps["res5"].shape[2:] == (3, 5)


def test_a_network_that_cannot_be_dilated_is_refused() -> None:
    for name in ("vgg11_bn", "dla46_c", "repvit_m0_9"):
        with raises("config.not_buildable", name, "output_stride=16"), torch.device("meta"), Uninitialized():
            create_timm_backbone(name, output_stride=16)


@pytest.mark.slow
def test_unpadded_convolutions_are_padded(caplog) -> None:
    """FPN needs maps of size ceil(input / stride). TensorFlow's detection models pad them too."""
    name = "legacy_xception"
    weights = trained_classifier(name)
    ours = our_backbone(name, weights).eval()
    assert "2 unpadded" in caplog.text
    with Uninitialized():
        theirs = timm.create_model(name)
    theirs.load_state_dict(weights)
    # "Valid" in Keras' Xception.
    theirs.eval().conv1.padding = theirs.conv2.padding = (1, 1)
    image = torch.randn(1, 3, *ODD)
    with torch.no_grad():
        maps, expected = ours(image), theirs.forward_features(image)
    assert [tuple(one.shape[2:]) for one in maps.values()] == [(9, 17), (5, 9), (3, 5), (2, 3)]
    assert relative_error(maps["res5"], expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "named"),
    [
        # Its pools are functions, without a padding to change.
        ("inception_v3", "its maps are 192x20x28"),
        ("swin_tiny_patch4_window7_224", "doesn't match model (224)"),
        ("vit_tiny_patch16_224", "res2"),
    ],
)
def test_networks_without_maps_for_a_detector_are_refused(name, named) -> None:
    with raises("model.no_maps", name, named), torch.device("meta"), Uninitialized():
        create_timm_backbone(name)


def test_out_features() -> None:
    with torch.device("meta"), Uninitialized():
        backbone = create_timm_backbone("resnet18", out_features=("res3", "res4"))
        whole = create_timm_backbone("resnet18")
    assert list(backbone.output_shape()) == ["res3", "res4"]
    # Later layers are not built: in training with several processes, they would have no gradient.
    assert not any("layer4" in key for key in backbone.state_dict())
    assert any("layer4" in key for key in whole.state_dict())


@pytest.mark.parametrize(
    ("name", "gated"),
    # The blocks of strides 16 and 32 in the tables of both papers.
    [("tf_efficientnet_lite0", r"blocks\.[3-6]\.\d\.se"), ("resnet18", r"layer[34]\.\d\.se")],
)
def test_se_is_inserted_only_in_its_stages(name, gated) -> None:
    with Uninitialized():
        backbone = create_timm_backbone(name, se=SEConfig(init="identity", stages=("res4", "res5")))
        every = create_timm_backbone(name, se=SEConfig(init="identity"))
    names, all_names = (
        [key for key, module in network.network.named_modules() if isinstance(module, SqueezeExcitation)]
        for network in (backbone, every)
    )
    assert names == [key for key in all_names if re.fullmatch(gated, key)]
    assert 0 < len(names) < len(all_names)


def test_unused_stages_are_not_trained() -> None:
    """Training in several processes fails on a parameter that gets no gradient."""
    backbone = create_timm_backbone("mobilenetv3_small_050", norm="BN", freeze_at=0, out_features=("res2", "res3"))
    sum(one.mean() for one in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert backbone.network.blocks[1][0].conv_pw.weight.requires_grad
    assert not backbone.network.blocks[5][0].conv.weight.requires_grad


FROZEN = [
    *(("resnet18", 1), ("seresnet33ts", 2), ("mobilenetv3_small_050", 2)),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("ghostnet_050", 1), ("repvit_m0_9", 1), ("xception41", 2))
    ),
]


@pytest.mark.parametrize(("name", "freeze_at"), FROZEN)
def test_frozen_parts_have_neither_gradients_nor_new_statistics(name, freeze_at) -> None:
    backbone = create_timm_backbone(name, norm="BN", freeze_at=freeze_at).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert_frozen(backbone, freeze_at)
    changed = {key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])}
    statistics = {key for key in before if key.endswith("running_mean")}
    trained = {key.rpartition(".")[0] for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    # Exactly the norms with trained scales have new statistics.
    assert statistics & changed == {key for key in statistics if key.rpartition(".")[0] in trained}
    assert statistics - changed


def assert_frozen(backbone: TimmBackbone, freeze_at: int) -> None:
    device = next(backbone.parameters()).device
    maps = backbone(torch.randn(2, 3, 64, 96, device=device))
    # Autograd itself says what lies before a map.
    assert [one.requires_grad for one in maps.values()] == [number + 2 > freeze_at for number in range(4)]
    sum(one.mean() for one in maps.values()).backward()
    frozen = {key for key, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all((parameter.grad is None) == (key in frozen) for key, parameter in backbone.named_parameters())


@pytest.mark.parametrize("name", ["rexnet_100", "dla46_c", "densenet121", "resnetv2_50", "tresnet_m", "vgg11_bn"])
def test_frozen_parts_of_other_families(name) -> None:
    """Gradients need no initial weights to be there; frozen BN of timm's has no statistics to update."""
    with Uninitialized():
        backbone = create_timm_backbone(name, norm="BN", freeze_at=2, kwargs=SHALLOW.get(name)).train()
    assert_frozen(backbone, 2)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_freeze_all_and_none() -> None:
    with Uninitialized():
        backbone = create_timm_backbone("hrnet_w18_small", norm="BN", freeze_at=5).train()
        assert not any(one.requires_grad for one in backbone(torch.randn(1, 3, 64, 64)).values())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
        backbone = create_timm_backbone("regnety_002", norm="BN", freeze_at=0)
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        # Its four resolutions are computed at the same time.
        with raises("model.parallel_stages", "FREEZE_AT", "hrnet_w18_small"):
            create_timm_backbone("hrnet_w18_small", freeze_at=2)


def test_frozen_norms_keep_activation_eps_and_drop() -> None:
    with torch.device("meta"), Uninitialized():
        plain = create_timm_backbone("tf_mobilenetv3_small_minimal_100", norm="BN", freeze_at=0, drop_block=0.0)
        for norm in ("FrozenBN", "SyncBN"):
            backbone = create_timm_backbone("tf_mobilenetv3_small_minimal_100", norm=norm, freeze_at=0)
            modules = dict(backbone.named_modules())
            norms = {key: one for key, one in plain.named_modules() if isinstance(one, nn.BatchNorm2d)}
            assert len(norms) > 30
            for key, one in norms.items():
                assert not isinstance(modules[key], nn.BatchNorm2d)
                assert modules[key].eps == one.eps == 1e-3
                assert type(getattr(modules[key], "act", None)) is type(getattr(one, "act", None))
                assert type(getattr(modules[key], "drop", None)) is type(getattr(one, "drop", None))
            assert backbone.state_dict().keys() <= plain.state_dict().keys()


def test_drop_rates_are_timms() -> None:
    for name, kind, options in (
        ("efficientnet_lite0", "DropPath", {"drop_path": 0.2}),
        ("resnet18", "DropBlock2d", {"drop_block": 0.1}),
    ):
        with torch.device("meta"), Uninitialized():
            ours = create_timm_backbone(name, **options)
            theirs = timm.create_model(name, **{f"{key}_rate": value for key, value in options.items()})
        rates = [
            [getattr(module, "drop_prob", None) for module in network.modules() if type(module).__name__ == kind]
            for network in (ours, theirs)
        ]
        assert rates[0] == rates[1]
        assert rates[0]
    with raises("config.not_buildable", "vgg11_bn", "drop_path_rate=0.2"), torch.device("meta"), Uninitialized():
        create_timm_backbone("vgg11_bn", drop_path=0.2)


def test_arguments_of_timm() -> None:
    with torch.device("meta"), Uninitialized():
        backbone = create_timm_backbone("resnet18", kwargs={"stem_type": "deep", "norm_layer": "groupnorm"})
        assert {"network.conv1.0.weight", "network.conv1.3.weight"} <= backbone.state_dict().keys()
        assert any(isinstance(module, nn.GroupNorm) for module in backbone.modules())
        with raises("config.bad_value", "KWARGS", "features_only"):
            create_timm_backbone("resnet18", kwargs={"features_only": False})
        with raises("config.not_buildable", "no_such=1"):
            create_timm_backbone("resnet18", kwargs={"no_such": 1})


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("", "timm.list_models"),
        ("resnet_18", "resnet18"),
        ("../resnet18", "timm has no network"),
        ("seresnet33ts.a1_in1k", "ra2_in1k"),
        ("seresnet18.a1_in1k", "no weights"),
    ],
)
def test_unknown_networks_are_refused(name, named) -> None:
    with raises("config.unknown_network", "MODEL.TIMM.NAME", name, named):
        create_timm_backbone(name)


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("norm", "GN", "config.unknown_choice"),
        ("freeze_at", 6, "config.unknown_choice"),
        ("output_stride", 4, "config.unknown_choice"),
        ("out_features", ("res1", "res2"), "config.unknown_choice"),
        ("out_features", ("res3", "res2"), "config.bad_value"),
        ("drop_path", 1.0, "config.bad_value"),
    ],
)
def test_wrong_values_are_refused(option, value, code) -> None:
    with raises(code, f"MODEL.TIMM.{option.upper()}"):
        create_timm_backbone("resnet18", **{option: value})


def test_stages_of_se_in_parallel_networks_are_refused() -> None:
    with raises("model.parallel_stages", "MODEL.SE.STAGES", "hrnet_w18_small"):
        create_timm_backbone("hrnet_w18_small", freeze_at=0, se=SEConfig(stages=("res5",)))


def test_conversions_by_timm_and_by_detectron2() -> None:
    """SyncBN computes the same. detectron2's frozen BN would lose activations: why timm's own functions freeze."""
    from detectron2.layers import FrozenBatchNorm2d

    weights = trained_classifier("regnety_002")
    image = torch.randn(1, 3, 64, 64)
    backbone, synced = (our_backbone("regnety_002", weights, norm=norm).eval() for norm in ("BN", "SyncBN"))
    with torch.no_grad():
        expected = backbone(image)["res5"]
        assert relative_error(synced(image)["res5"], expected) < 1e-6
        backbone.network = FrozenBatchNorm2d.convert_frozen_batchnorm(backbone.network)
        assert relative_error(backbone(image)["res5"], expected) > 0.1
