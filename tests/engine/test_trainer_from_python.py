"""A training from Python has the checks and the record of one from the command line."""

import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine.hooks import CallbackHook
from detectron2.evaluation import DatasetEvaluator

from se_detection import model_zoo
from se_detection.comparison.compare_runs import compare_runs
from se_detection.engine import Trainer
from se_detection.inference.predictor import SEPredictor
from se_detection.runs.evaluated_run import read_run
from se_detection.runs.lock import RunLock

from ..helpers import raises
from .conftest import CONFIG, TINY, files

SHAPES = ["circle", "square", "triangle", "cross"]
RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 4),
    *("MODEL.RETINANET.IN_FEATURES", ["res3"], "MODEL.RETINANET.NUM_CONVS", 1),
]


@pytest.fixture(scope="module")
def base(tiny) -> CfgNode:
    """The config of a small detector for data that is registered as in detectron2's tutorial."""
    for split in ("train", "val"):
        register_coco_instances(f"shapes_{split}", {}, str(tiny / "annotations" / f"{split}.json"), str(tiny / split))
    cfg = model_zoo.get_config(CONFIG)
    assert isinstance(cfg, CfgNode)
    cfg.merge_from_list(
        [*TINY, "SOLVER.MAX_ITER", 2, "DATASETS.TRAIN", ("shapes_train",), "DATASETS.TEST", ("shapes_val",)]
    )
    return cfg


@pytest.fixture
def cfg(base, tmp_path) -> CfgNode:
    cfg = base.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    return cfg


@pytest.fixture(scope="module")
def trained(base, module_path, build) -> Path:
    """A run of two iterations."""
    cfg = base.clone()
    cfg.OUTPUT_DIR = str(module_path / "run")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert not (module_path / "run").exists()

    def lock_is_taken(_) -> None:
        with raises("output.in_use", f"process {os.getpid()}"):
            RunLock(module_path / "run").acquire()

    trainer.register_hooks([CallbackHook(before_train=lock_is_taken, after_train=lock_is_taken)])
    trainer.train()
    return module_path / "run"


@pytest.mark.slow
def test_the_run_has_a_record_and_a_config(trained, tiny) -> None:
    record = json.loads((trained / "run.json").read_text())
    assert record["classes"] == SHAPES
    assert record["data"]["shapes_val"] == {
        "json": str(tiny / "annotations" / "val.json"),
        "images": str(tiny / "val"),
    }
    assert record["versions"]["torch"] == version("torch")
    assert record["processes"] == 1
    weights = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    buffers = ("pixel_mean", "pixel_std", "running_mean", "running_var", "num_batches_tracked")
    assert record["parameters"] == sum(tensor.numel() for key, tensor in weights.items() if not key.endswith(buffers))
    saved = CfgNode.load_yaml_with_base(str(trained / "config.yaml"))
    assert saved["MODEL"]["DEVICE"] == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.slow
def test_the_run_is_predicted_with_and_compared(trained, tiny, tmp_path) -> None:
    predictor = SEPredictor.from_run(trained)
    assert list(predictor.categories.values()) == SHAPES
    assert len(predictor(next((tiny / "val").glob("*.png"))))
    assert read_run(trained).unfinished == ""
    shutil.copytree(trained, tmp_path / "again")
    assert compare_runs(trained, tmp_path / "again", 100).to_dict()["difference"]["AP"]["value"] == 0


def test_without_a_gpu_it_trains_on_the_cpu(cfg) -> None:
    assert cfg.MODEL.DEVICE == "cuda"
    trainer = Trainer(cfg)
    assert next(trainer.model.parameters()).device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert cfg.MODEL.DEVICE == "cuda"


@pytest.mark.parametrize(
    ("overrides", "code", "named"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", 5], "config.contradicts_data", "which has 4 classes"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "config.contradicts_data", "RETINANET.NUM_CLASSES: 80"),
        (["MODEL.KEYPOINT_ON", True], "data.no_keypoint_names", "shapes_train"),
        (["MODEL.RPN.IN_FEATURES", ["p9"]], "config.not_buildable", "p9"),
        ([*RETINANET, "TEST.AUG.ENABLED", True], "config.no_augmentation", "RetinaNet"),
        (["SOLVER.LR_SCHEDULER_NAME", "Foo"], "config.not_buildable", "Foo"),
        (["SOLVER.EMA_DECAY", 0.9, "TEST.PRECISE_BN.ENABLED", True], "config.contradiction", "PRECISE_BN"),
        (["SOLVER.REFERENCE_WORLD_SIZE", 3], "config.batch_size", "REFERENCE_WORLD_SIZE"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(cfg, overrides, code, named) -> None:
    cfg.merge_from_list(overrides)
    with raises(code, named):
        Trainer(cfg)
    assert not Path(cfg.OUTPUT_DIR).exists()


@pytest.mark.parametrize("number", [1, 4])
def test_the_number_of_classes_must_be_that_of_the_data(cfg, tiny, tmp_path, number) -> None:
    """With 1, class 1 would be the background; with 4, the evaluation would fail after the training."""
    content = json.loads((tiny / "annotations" / "train.json").read_text())
    content["categories"] = content["categories"][:2]
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] <= 2]
    (tmp_path / "two.json").write_text(json.dumps(content))
    register_coco_instances(f"two_{number}", {}, str(tmp_path / "two.json"), str(tiny / "train"))
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (f"two_{number}",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = number
    with raises("config.contradicts_data", f"NUM_CLASSES: {number}", "which has 2 classes"):
        Trainer(cfg)
    assert not Path(cfg.OUTPUT_DIR).exists()


@pytest.mark.slow
def test_a_test_set_without_evaluator_needs_build_evaluator(cfg) -> None:
    DatasetCatalog.register("custom", lambda: DatasetCatalog.get("shapes_val"))
    MetadataCatalog.get("custom").thing_classes = SHAPES
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("custom",)
    with raises("data.no_evaluator", "custom"):
        Trainer(cfg)

    class Custom(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return DatasetEvaluator()

    assert Custom(cfg)
    cfg.DATASETS.TEST = ()
    assert Trainer(cfg)


@pytest.mark.slow
def test_another_run_is_not_replaced(cfg, trained) -> None:
    cfg.OUTPUT_DIR = str(trained)
    before = files(trained)
    trainer = Trainer(cfg)
    with raises("output.exists", trained):
        trainer.resume_or_load(resume=False)
    with raises("output.exists", trained):
        trainer.train()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    with raises("run.other_config", "build_se_resnet_backbone", "build_resnet_backbone"):
        Trainer(cfg).resume_or_load()
    assert files(trained) == before


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_started_in_the_meantime_is_not_replaced(cfg, resume) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    run = Path(cfg.OUTPUT_DIR)
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "model_final.pth").write_text("another run's")
    with raises("output.exists", run):
        trainer.train()
    assert sorted(path.name for path in run.iterdir()) == [".run.lock", "model_final.pth", "run.json"]
