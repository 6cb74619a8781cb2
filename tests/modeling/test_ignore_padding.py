import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.structures import ImageList

from se_detection import SEConfig, model_zoo
from se_detection.modeling.fuse.fuse_detector import fuse_for_inference
from se_detection.modeling.padding import ignore_padding

from ..helpers import raises, randomize_norms, relative_error

# Some maps of the largest image have an odd size.
SIZES = [(53, 39), (80, 64), (32, 49)]


def images() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Images, and their batch with detectron2's padding."""
    alone = [torch.randn(1, 3, *size) for size in SIZES]
    return alone, torch.cat([F.pad(x, (0, 64 - x.shape[3], 0, 80 - x.shape[2])) for x in alone])


def check_same_as_alone(ignoring, reference, tolerance: float = 2e-6) -> None:
    """`reference` computes each image alone, without padding."""
    alone, batch = images()
    with torch.no_grad():
        ours = ignoring(batch)
        for row, image in enumerate(alone):
            for name, theirs in reference(image).items():
                height, width = theirs.shape[2:]
                inside = ours[name][row : row + 1, :, :height, :width]
                assert relative_error(inside, theirs) < tolerance, (name, row)
                outside = ours[name][row].clone()
                outside[:, :height, :width] = 0
                assert not outside.any(), (name, row)


@pytest.mark.slow
def test_detectron2s_backbone_equals_itself_on_single_images() -> None:
    reference = randomize_norms(build_resnet_backbone(get_cfg(), ShapeSpec(channels=3))).eval()
    ignoring = copy.deepcopy(reference)
    ignore_padding(ignoring)
    check_same_as_alone(ignoring, reference)
    with pytest.raises(AssertionError):
        check_same_as_alone(reference, reference)


SLOW = [
    {"depth": 18, "se": SEConfig(stages=())},
    {"depth": 18, "se": SEConfig(reduction=4, position="pre", stages=("res3", "res5"))},
    {"num_groups": 2},
    {"depth": 154, "stem": "deep"},
    *({"se": SEConfig(reduction=4, position=position)} for position in ("pre", "post", "identity")),
    *({"se": SEConfig(reduction=4, squeeze=squeeze)} for squeeze in ("max", "avgmax", "none")),
]


@pytest.mark.parametrize(
    "options",
    [
        {"stem": "caffe", "stride_in_1x1": True},
        {"se": SEConfig(reduction=4, position="3x3")},
        *(pytest.param(options, marks=pytest.mark.slow) for options in SLOW),
    ],
)
def test_backbones_equal_themselves_on_single_images(narrow, options) -> None:
    reference = narrow(**options).eval()
    ignoring = copy.deepcopy(reference)
    ignore_padding(ignoring)
    assert ignoring.state_dict().keys() == reference.state_dict().keys()
    check_same_as_alone(ignoring, reference)


IGNORE = ("MODEL.SE.IGNORE_PADDING", "True")
RETINANETS = (
    *("MODEL.BACKBONE.NAME", "build_retinanet_se_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
)


@pytest.fixture
def fpn(shallow):
    def build(*overrides: str) -> torch.nn.Module:
        cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
        # Gates that start as the identity would not depend on the padding.
        gates = ("MODEL.SE.INIT", "default")
        cfg.merge_from_list(["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.DEVICE", "cpu", *gates, *overrides])
        torch.manual_seed(0)
        return randomize_norms(build_backbone(cfg)).eval()

    return build


@pytest.mark.parametrize("kind", [(), pytest.param(RETINANETS, marks=pytest.mark.slow)], ids=["R-CNN", "RetinaNet"])
def test_fpn_does_not_depend_on_the_batch(fpn, kind) -> None:
    """FPN needs even maps, so the reference is an image whose size needs no padding."""
    stock, ignoring = fpn(*kind), fpn(*kind, *IGNORE)
    image = torch.randn(1, 3, 128, 64)
    others = torch.randn(2, 3, 256, 192)
    batch = torch.cat([F.pad(image, (0, 128, 0, 128)), others])
    with torch.no_grad():
        alone, shared, leaking = stock(image), ignoring(batch), stock(batch)
    for level, theirs in alone.items():
        height, width = theirs.shape[2:]
        assert relative_error(shared[level][:1, :, :height, :width], theirs) < 2e-6
        assert relative_error(leaking[level][:1, :, :height, :width], theirs) > 1e-3
        outside = shared[level][0].clone()
        outside[:, :height, :width] = 0
        assert not outside.any()


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 50])
def test_fused_backbones_ignore_padding(narrow, depth) -> None:
    ignoring = ignore_padding(narrow(depth).eval())
    fused = fuse_for_inference(ignoring)
    _, batch = images()
    with torch.no_grad():
        for level, theirs in ignoring(batch).items():
            assert relative_error(fused(batch)[level], theirs) < 1e-5


@pytest.mark.slow
def test_gradients_are_those_of_single_images(narrow) -> None:
    reference = narrow(50).double()
    ignoring = copy.deepcopy(reference)
    ignore_padding(ignoring)
    alone, batch = images()
    ours = ignoring(batch.double())
    our_loss = their_loss = torch.zeros(())
    for row, image in enumerate(alone):
        for name, values in reference(image.double()).items():
            weight = torch.randn_like(values) / values.numel()
            height, width = values.shape[2:]
            their_loss = their_loss + (values * weight).sum()
            our_loss = our_loss + (ours[name][row, :, :height, :width] * weight[0]).sum()
    our_loss.backward()
    their_loss.backward()
    theirs = dict(reference.named_parameters())
    for name, parameter in ignoring.named_parameters():
        assert relative_error(parameter.grad, theirs[name].grad) < 1e-9, name


def test_a_pixel_mean_of_zero_is_warned_about(fpn, caplog) -> None:
    fpn(*IGNORE)
    assert "black borders" not in caplog.text
    fpn(*IGNORE, "MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]")
    assert "black borders" in caplog.text


def test_other_networks_are_refused(fpn) -> None:
    with raises("model.padding", "IGNORE_PADDING", "GN"):
        fpn(*IGNORE, "MODEL.FPN.NORM", "GN")
    with raises("model.padding", "Linear"):
        ignore_padding(torch.nn.Linear(1, 1))


@pytest.mark.slow
def test_a_trace_works_for_other_batches(narrow) -> None:
    ignoring = FPN(narrow(), ["res4", "res5"], 8, top_block=LastLevelMaxPool()).eval()
    ignore_padding(ignoring)
    images = [torch.randn(3, *size) for size in SIZES]
    small, large = (ImageList.from_tensors(some, 32).tensor for some in (images[::2], images))
    with torch.no_grad():
        traced = torch.jit.trace(ignoring, small, strict=False, check_trace=False)
        for level, theirs in ignoring(large).items():
            torch.testing.assert_close(traced(large)[level], theirs)
