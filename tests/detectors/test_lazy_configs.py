"""Each lazy config has the network and the recipe of the yaml config with the same name."""

import copy
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads, ROIHeads
from detectron2.solver import LRMultiplier, build_lr_scheduler
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from se_detection import SEConfig, UserError, create_backbone
from se_detection.config.meta_device import Uninitialized
from se_detection.engine.optimizer import build_optimizer
from se_detection.modeling.padding import ignore_padding
from se_detection.modeling.roi_heads import SERes5ROIHeads

from ..helpers import randomize_norms

CONFIGS = Path(__file__).parents[2] / "configs"
BASE_NAMES = [
    *("COCO-Detection/faster_rcnn_R_50_FPN", "COCO-Detection/faster_rcnn_SE_R_50_FPN"),
    *("COCO-Detection/faster_rcnn_R_101_FPN", "COCO-Detection/faster_rcnn_SE_R_101_FPN"),
    *("COCO-Detection/retinanet_R_50_FPN", "COCO-Detection/retinanet_SE_R_50_FPN"),
    *("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN", "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_FPN"),
    *("COCO-InstanceSegmentation/mask_rcnn_R_50_C4", "COCO-InstanceSegmentation/mask_rcnn_SE_R_50_C4"),
    *("Misc/cascade_mask_rcnn_R_50_FPN", "Misc/cascade_mask_rcnn_SE_R_50_FPN"),
    *("COCO-Keypoints/keypoint_rcnn_R_50_FPN", "COCO-Keypoints/keypoint_rcnn_SE_R_50_FPN"),
    *("COCO-PanopticSegmentation/panoptic_fpn_R_50", "COCO-PanopticSegmentation/panoptic_fpn_SE_R_50"),
]
ADAMW = [f"{name}_1x_adamw" for name in BASE_NAMES[:2]]
NAMES = [f"{name}_1x" for name in BASE_NAMES] + [f"{name}_3x" for name in BASE_NAMES if "faster_rcnn" in name] + ADAMW
# Networks and recipes of the others take a second each.
FAST = (NAMES[1], ADAMW[1])
EACH = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in FAST)]
# detectron2 can't build FCOS from a yaml.
LAZY_ONLY = ["COCO-Detection/fcos_R_50_FPN_1x", "COCO-Detection/fcos_SE_R_50_FPN_1x"]


@cache
def loaded(name: str) -> tuple[CfgNode | None, DictConfig]:
    """The yaml and the lazy config of this name."""
    cfg = None
    if name not in LAZY_ONLY:
        cfg = get_cfg()
        cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"), allow_unsafe=False)
    return cfg, LazyConfig.load(str(CONFIGS / "lazy" / f"{name}.py"))


def yaml_config(name: str) -> CfgNode:
    return loaded(name)[0].clone()


def lazy_config(name: str) -> DictConfig:
    return copy.deepcopy(loaded(name)[1])


@cache
def networks(name: str) -> tuple[nn.Module, nn.Module]:
    """The networks of the yaml and the lazy config, on the meta device."""
    cfg = yaml_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), Uninitialized():
        return build_model(cfg), instantiate(lazy_config(name).model)


def describe(value: Any) -> Any:
    """A module or another object as plain data: its class and all its attributes."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.requires_grad
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: describe(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    if hasattr(value, "__qualname__"):
        return value.__qualname__
    parts = {key: item for key, item in vars(value).items() if not key.startswith("_")}
    kind = type(value)
    if kind is SERes5ROIHeads:
        kind = Res5ROIHeads  # they differ only in the res5 that they build from a yaml
    if kind is FastRCNNOutputLayers:
        parts["loss_weight"] = {"loss_cls": 1.0, **parts["loss_weight"]}  # the default of FastRCNNOutputLayers
    if isinstance(value, nn.Module):
        parts |= {
            **dict(value.named_children()),
            **dict(value.named_parameters(recurse=False)),
            **dict(value.named_buffers(recurse=False)),
        }
    return kind, {key: describe(item) for key, item in parts.items()}


def test_all_lazy_configs_are_tested() -> None:
    files = CONFIGS.glob("lazy/[!c]*/*.py")
    assert {str(path.relative_to(CONFIGS / "lazy").with_suffix("")) for path in files} == {*NAMES, *LAZY_ONLY}


@pytest.mark.slow
def test_lazy_configs_load_from_any_folder(tmp_path, monkeypatch) -> None:
    """As in a wheel, without a checkout around them."""
    shutil.copytree(CONFIGS / "lazy", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    for name in (*NAMES, *LAZY_ONLY):
        cfg = LazyConfig.load(os.path.join("elsewhere", f"{name}.py"))
        # Exactly the names that detectron2's lazyconfig_train_net.py reads.
        assert sorted(cfg) == ["dataloader", "lr_multiplier", "model", "optimizer", "train"], name


def of_1x(name: str) -> str:
    """The config with the same detector and the usual recipe."""
    return name.replace("3x", "1x").removesuffix("_adamw")


@pytest.mark.slow
def test_other_recipes_differ_in_no_layer() -> None:
    for name in NAMES:
        assert loaded(name)[1].model == loaded(of_1x(name))[1].model, name


@pytest.mark.parametrize("name", [name for name in EACH if "3x" not in str(name) and "adamw" not in str(name)])
def test_layers_are_equal(name) -> None:
    """Including classes, strides, thresholds, numbers of proposals, loss weights and frozen parameters."""
    ours, theirs = networks(name)[::-1]
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    assert describe(ours) == describe(theirs)


@pytest.mark.slow
def test_describe_shows_differences() -> None:
    """In a stride, a frozen parameter, and an attribute of a helper object."""
    with torch.device("meta"), Uninitialized():
        backbone, caffe = (create_backbone("resnet50", layout=layout) for layout in ("torchvision", "caffe"))
        frozen = create_backbone("resnet50", freeze_at=1)
        assert describe(backbone) == describe(create_backbone("resnet50"))
    assert describe(backbone) != describe(caffe)
    assert describe(backbone) != describe(frozen)
    heads = networks("COCO-Detection/faster_rcnn_R_50_FPN_1x")[0].roi_heads
    before = describe(heads)
    heads.proposal_matcher.thresholds[1] += 0.1
    after = describe(heads)
    heads.proposal_matcher.thresholds[1] -= 0.1
    assert before != after


def small_networks(name: str) -> tuple[nn.Module, nn.Module]:
    """The networks of both configs: of depth 18, but for C4 of depth 50, whose res5 needs bottlenecks."""
    cfg, lazy = yaml_config(name), lazy_config(name)
    cfg.MODEL.DEVICE = "cpu"
    if "C4" not in name:
        cfg.MODEL.RESNETS.DEPTH = 18
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
        lazy.model.backbone.bottom_up.name = "se_resnet18"
    yaml_model = randomize_norms(build_model(cfg))
    with Uninitialized():
        lazy_model = instantiate(lazy.model)
    lazy_model.load_state_dict(yaml_model.state_dict(), strict=True)
    for module in (*yaml_model.modules(), *lazy_model.modules()):
        # Few proposals and detections, and no score threshold.
        if isinstance(module, FastRCNNOutputLayers):
            module.test_score_thresh, module.test_topk_per_image = 0.0, 6
        elif isinstance(module, RPN):
            module.post_nms_topk = {True: 12, False: 12}
        elif isinstance(module, ROIHeads):
            module.batch_size_per_image = 6
    return yaml_model, lazy_model


def batch() -> list[dict[str, Any]]:
    """Two images of different sizes, with boxes, masks and stuff."""
    images = []
    for height, width in ((64, 96), (80, 64)):
        instances = Instances((height, width))
        instances.gt_boxes = Boxes([[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 62.0]])
        instances.gt_classes = torch.tensor([3, 17])
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, 8:48, 6:38] = masks[1, 12:60, 22:58] = True
        instances.gt_masks = BitMasks(masks)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        stuff = torch.randint(0, 54, (height, width))
        images.append({"image": image, "instances": instances, "sem_seg": stuff, "height": height, "width": width})
    return images


def assert_equal(ours: Any, theirs: Any) -> None:
    """Bitwise equality."""
    if isinstance(theirs, Instances):
        ours, theirs = ours.get_fields(), theirs.get_fields()
    if isinstance(theirs, Boxes):
        ours, theirs = ours.tensor, theirs.tensor
    if isinstance(theirs, Mapping):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_equal(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs


# Of the others, the layers and all their attributes are compared.
@pytest.mark.slow
@pytest.mark.usefixtures("shallow_here")
@pytest.mark.parametrize(
    "name", ["COCO-InstanceSegmentation/mask_rcnn_SE_R_50_C4_1x", "COCO-PanopticSegmentation/panoptic_fpn_SE_R_50_1x"]
)
def test_outputs_are_equal(name) -> None:
    """Detections and losses with the same weights."""
    theirs, ours = small_networks(name)
    images = batch()
    losses = []
    for model in (theirs, ours):
        torch.manual_seed(1)
        with EventStorage():
            losses.append({key: loss.item() for key, loss in model.train()(images).items()})
    assert losses[0] == losses[1]
    assert all(np.isfinite(loss) for loss in losses[0].values())
    with torch.no_grad():
        outputs, expected = ours.eval()(images), theirs.eval()(images)
    assert all(len(image["instances"]) for image in expected)
    assert_equal(outputs, expected)


def hyperparameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's options for each parameter, without `foreach`, in which the two config systems differ."""
    names = {parameter: key for key, parameter in model.named_parameters()}
    return {
        names[parameter]: {key: value for key, value in group.items() if key not in ("params", "foreach")}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", EACH)
def test_optimizers_and_schedules_are_equal(name) -> None:
    """For each parameter, and at several iterations."""
    cfg, lazy = yaml_config(name), lazy_config(name)
    theirs, ours = networks(of_1x(name))
    lazy.optimizer.params.model = ours
    optimizers = build_optimizer(cfg, theirs), instantiate(lazy.optimizer)
    assert type(optimizers[0]) is type(optimizers[1])
    assert hyperparameters(theirs, optimizers[0]) == hyperparameters(ours, optimizers[1])
    schedules = (
        build_lr_scheduler(cfg, optimizers[0]),
        LRMultiplier(optimizers[1], instantiate(lazy.lr_multiplier), lazy.train.max_iter),
    )
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    for step in (0, cfg.SOLVER.WARMUP_ITERS // 2, cfg.SOLVER.WARMUP_ITERS, *cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER - 1):
        for schedule in schedules:
            schedule.last_epoch = step
        assert schedules[1].get_lr() == pytest.approx(schedules[0].get_lr(), rel=1e-9), step
    assert lazy.train.amp.enabled == cfg.SOLVER.AMP.ENABLED
    assert not cfg.SOLVER.CLIP_GRADIENTS.ENABLED  # the tool for lazy configs has no clipping
    assert lazy.train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD


@pytest.mark.parametrize("name", EACH)
def test_data_and_weights_are_equal(name) -> None:
    cfg, lazy = loaded(name)
    train, test = lazy.dataloader.train, lazy.dataloader.test
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert lazy.model.input_format == train.mapper.image_format == test.mapper.image_format == cfg.INPUT.FORMAT
    assert lazy.model.pixel_mean == cfg.MODEL.PIXEL_MEAN
    assert lazy.model.pixel_std == cfg.MODEL.PIXEL_STD
    assert (train.dataset.names,) == cfg.DATASETS.TRAIN
    assert (test.dataset.names,) == cfg.DATASETS.TEST
    evaluators = lazy.dataloader.evaluator
    for evaluator in evaluators if isinstance(evaluators, Sequence) else [evaluators]:
        assert evaluator.dataset_name == test.dataset.names
    assert train.dataset.get("filter_empty", True) == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    points = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    assert train.dataset.get("min_keypoints", 0) == points
    assert train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert train.get("aspect_ratio_grouping", True) == cfg.DATALOADER.ASPECT_RATIO_GROUPING
    assert train.num_workers == test.num_workers == cfg.DATALOADER.NUM_WORKERS
    assert describe(instantiate(train.mapper)) == describe(DatasetMapper(cfg, is_train=True))
    # With a single size, sampling from a range (detectron2's lazy configs) and from a list (its yaml) are the same. The
    # test mapper reads no masks with any use_instance_mask.
    resize, theirs = instantiate(test.mapper.augmentations)[0], build_augmentation(cfg, is_train=False)[0]
    for height, width in ((480, 640), (333, 1000), (800, 800)):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        assert describe(resize.get_transform(image)) == describe(theirs.get_transform(image))
    assert len(test.mapper.augmentations) == len(build_augmentation(cfg, is_train=False)) == 1
    assert isinstance(resize, T.ResizeShortestEdge)


@pytest.mark.slow
def test_a_plain_and_an_se_fcos_differ_in_the_gates_alone() -> None:
    with torch.device("meta"), Uninitialized():
        plain, se = (instantiate(lazy_config(name).model).state_dict() for name in LAZY_ONLY)
    assert plain.keys() == {key for key in se if ".se." not in key} < se.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_here")
def test_lazy_configs_have_all_options_of_model_se() -> None:
    """The block, the stem and the padding: the same features as the yaml's backbone with the same weights."""
    name = "COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"
    cfg, lazy = yaml_config(name), lazy_config(name)
    cfg.MODEL.DEVICE = "cpu"
    options = {"reduction_per_stage": [4, 8, 16, 32], "position": "3x3", "squeeze": "avgmax", "gate": "hardsigmoid"}
    options |= {"stages": ["res3", "res5"], "bias": False}
    cfg.MODEL.SE.update({key.upper(): value for key, value in options.items()}, IGNORE_PADDING=True)
    cfg.MODEL.RESNETS.STEM_TYPE = "caffe"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True
    backbone = build_backbone(cfg)
    lazy.model.backbone.bottom_up.layout = "caffe"
    lazy.model.backbone.bottom_up.se.update(options)
    with Uninitialized():
        ours = ignore_padding(instantiate(lazy.model.backbone))
    ours.load_state_dict(randomize_norms(backbone).state_dict(), strict=True)
    images = torch.zeros(1, 3, 96, 128)
    images[..., :70, :90] = torch.randn(1, 3, 70, 90)
    with torch.no_grad():
        assert_equal(ours(images), backbone(images))
    assert ours.bottom_up.res3[0].position == "3x3"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.backbone.bottom_up.se.gate=softmax", "MODEL.SE.GATE"),
        ("model.backbone.bottom_up.se.reduction=4096", "4096"),
        ("model.backbone.bottom_up.name=resnet50", "se_resnet50"),
    ],
)
def test_a_wrong_override_is_refused_by_name(override, named) -> None:
    lazy = LazyConfig.apply_overrides(lazy_config("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"), [override])
    with pytest.raises(UserError, match=named), torch.device("meta"):
        instantiate(lazy.model)


def test_the_default_se_block_is_the_papers() -> None:
    lazy = lazy_config("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x")
    assert instantiate(lazy.model.backbone.bottom_up.se) == SEConfig()
