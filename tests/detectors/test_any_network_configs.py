"""The configs of networks of timm: they build, name weights that timm has, and differ from their pair only in SE."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from torch import nn

from se_detection import SqueezeExcitation, model_zoo
from se_detection.config.meta_device import Uninitialized
from se_detection.runs.recipe import is_of_backbone

from .test_configs import differing_keys

FOLDER = "Any-Network/"
NAMES = [name for name in model_zoo.names() if name.startswith(FOLDER) and name.endswith("_1x")]
# Mask R-CNN from scratch, and the same in detectron2's own zoo.
JITTERED = {"regnetx_040": "regnetx_4gf_dds", "regnety_040": "regnety_4gf_dds"}
# How many blocks the networks have: the places of SE, from their papers.
INSERTED = {
    "efficientnet_lite0": 16,
    "mobilenetv1_100": 13,
    "mobilenetv2_100": 17,
    "vgg16_bn": 13,
    "densenet121": 6 + 12 + 24 + 16,
    "wide_resnet50_2": 16,
    "resnetv2_50": 16,
    "inception_resnet_v2": 10 + 20 + 10,
    "shufflenet_v2_x1_0": 4 + 8 + 4,
    "bninception": 2 + 5 + 3,
}
# Networks next to plain ones.
NEIGHBORS = {
    "seresnet33ts": "resnet33ts",
    "eca_resnet33ts": "resnet33ts",
    "gcresnet33ts": "resnet33ts",
    "regnety_016": "regnetx_016",
    "efficientnet_b0": "efficientnet_lite0",
    "mobilenetv3_large_100": "mobilenetv2_100",
}
WITHOUT = sorted({*NEIGHBORS, *NEIGHBORS.values()} - INSERTED.keys())
FAST = ("vgg16_bn", "shufflenet_v2_x1_0", "resnet33ts")


def name_of(network: str) -> str:
    return f"{FOLDER}faster_rcnn_{network}_FPN_1x"


def config(network: str) -> CfgNode:
    return model_zoo.get_config(name_of(network))


def test_each_config_is_in_a_pair() -> None:
    networks = {*INSERTED, *(f"SE_{name}" for name in INSERTED), *NEIGHBORS, *NEIGHBORS.values()}
    jittered = [f"{FOLDER}mask_rcnn_{network}_FPN_100ep_LSJ" for network in JITTERED]
    found = [name for name in model_zoo.names() if name.startswith(FOLDER)]
    assert sorted([*map(name_of, networks), *jittered]) == found


@pytest.mark.slow
@pytest.mark.parametrize("network", JITTERED)
def test_detectors_with_large_scale_jitter_are_detectron2s(network) -> None:
    """The shapes of all parameters, the kinds of norms, and the recipe of detectron2's lazy config."""
    cfg = model_zoo.get_config(f"{FOLDER}mask_rcnn_{network}_FPN_100ep_LSJ")
    lazy = detectron2_zoo.get_config(f"new_baselines/mask_rcnn_{JITTERED[network]}_FPN_100ep_LSJ.py")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), Uninitialized():
        ours, theirs = build_model(cfg), instantiate(lazy.model)
    assert shapes(ours) == shapes(theirs)
    for part in ("roi_heads", "proposal_generator"):
        one, other = (getattr(model, part).state_dict() for model in (ours, theirs))
        assert {key: tensor.shape for key, tensor in one.items()} == {
            key: tensor.shape for key, tensor in other.items()
        }
    solver, schedule = cfg.SOLVER, lazy.lr_multiplier
    assert solver.OPTIMIZER == "SGD"
    assert (solver.BASE_LR, solver.WEIGHT_DECAY) == (lazy.optimizer.lr, lazy.optimizer.weight_decay)
    assert list(solver.STEPS) == schedule.scheduler.milestones
    assert solver.MAX_ITER == lazy.train.max_iter
    assert solver.WARMUP_ITERS == pytest.approx(schedule.warmup_length * lazy.train.max_iter)
    assert solver.WARMUP_FACTOR == schedule.warmup_factor
    assert solver.IMS_PER_BATCH == lazy.dataloader.train.total_batch_size
    assert (cfg.MODEL.WEIGHTS, solver.AMP.ENABLED) == (lazy.train.init_checkpoint, lazy.train.amp.enabled)
    resize, crop, _ = lazy.dataloader.train.mapper.augmentations
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    assert (jitter.MIN_SCALE, jitter.MAX_SCALE) == (resize.min_scale, resize.max_scale)
    assert tuple(jitter.SIZE) == tuple(crop.crop_size) == (resize.target_height, resize.target_width)


def shapes(model: nn.Module) -> list[torch.Size]:
    return sorted(parameter.shape for parameter in model.parameters())


def test_detectors_with_large_scale_jitter_are_a_pair() -> None:
    plain, gated = (model_zoo.get_config(f"{FOLDER}mask_rcnn_{network}_FPN_100ep_LSJ") for network in JITTERED)
    assert differing_keys(plain, gated) == {"MODEL.TIMM.NAME"}


@pytest.mark.parametrize(
    "network",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in (*INSERTED, *WITHOUT)],
)
def test_a_config_builds(network) -> None:
    """Each block gets a gate that is trained. Building a network with inserted SE starts with the plain one."""
    if network == "bninception":
        pytest.importorskip("pytorchcv", reason="this test needs pytorchcv")
    cfg = config(f"SE_{network}" if network in INSERTED else network)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), Uninitialized():
        backbone = build_model(cfg).backbone.bottom_up
    gates = [module for module in backbone.modules() if isinstance(module, SqueezeExcitation)]
    assert len(gates) == INSERTED.get(network, 0)
    assert all(parameter.requires_grad for gate in gates for parameter in gate.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_and_their_input_are_the_librarys(name) -> None:
    cfg = model_zoo.get_config(name)
    library, _, weights = cfg.MODEL.WEIGHTS.partition("://")
    if library == "timm":
        assert weights in timm.list_pretrained(f"{cfg.MODEL.TIMM.NAME}.*")
        trained = timm.get_pretrained_cfg(weights)
    else:
        assert cfg.MODEL.TIMM.NAME == f"{library}/{weights.partition('.')[0]}"
    if library == "torchvision":
        network, _, tag = weights.partition(".")
        trained = torchvision.models.get_model_weights(network)[tag].transforms()
    if library == "pytorchcv":
        # Its evaluation has no other input than torchvision's usual one.
        trained = torchvision.models.ResNet50_Weights.DEFAULT.transforms()
        store = pytest.importorskip("pytorchcv.models.common.model_store", reason="this test needs pytorchcv")
        assert weights in store.get_model_metainfo_dict()
    assert cfg.INPUT.FORMAT == "RGB"
    assert [value / 255 for value in cfg.MODEL.PIXEL_MEAN] == pytest.approx(trained.mean)
    assert [value / 255 for value in cfg.MODEL.PIXEL_STD] == pytest.approx(trained.std)


@pytest.mark.parametrize("network", INSERTED)
def test_inserted_se_is_the_only_difference(network) -> None:
    plain, gated = config(network), config(f"SE_{network}")
    assert differing_keys(plain, gated) == {"MODEL.TIMM.INSERT_SE", "MODEL.SE.INIT"}
    assert gated.MODEL.TIMM.INSERT_SE
    assert gated.MODEL.SE.INIT == "identity"


@pytest.mark.parametrize("network", NEIGHBORS)
def test_neighbors_differ_in_network_and_weights(network) -> None:
    one, other = config(NEIGHBORS[network]), config(network)
    assert differing_keys(one, other) == {"MODEL.TIMM.NAME", "MODEL.WEIGHTS"}
    # `se-det compare` accepts them as a pair.
    assert all(map(is_of_backbone, differing_keys(one, other)))
    # The same tag: timm's name of the training recipe.
    assert len({cfg.MODEL.WEIGHTS.partition(".")[2] for cfg in (one, other)}) == 1


def test_the_recipe_is_detectron2s() -> None:
    """A ResNet's, without frozen stages (see the base) and with norms in FPN."""
    theirs = detectron2_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    others = {"MODEL.FPN.NORM", "MODEL.RESNETS.DEPTH"}
    for name in NAMES:
        found = {key for key in differing_keys(theirs, model_zoo.get_config(name)) if not is_of_backbone(key)}
        assert found <= others | {"MODEL.TIMM.FREEZE_AT"}, name


def test_each_file_is_short() -> None:
    for name in NAMES:
        assert len(Path(model_zoo.get_config_file(name)).read_text().splitlines()) <= 8, name
