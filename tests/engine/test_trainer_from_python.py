"""A training from Python has the checks and the record of one from the command line."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import DatasetEvaluator

from se_detection import UserError, model_zoo
from se_detection.comparison.compare_runs import compare_runs
from se_detection.engine import Trainer
from se_detection.inference.predictor import SEPredictor
from se_detection.runs.evaluated_run import read_run

from .conftest import SMALL

SHAPES = ["circle", "square", "triangle", "cross"]
SMALLER = [
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 100, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "SEED", 3),
]

RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 4),
    *("MODEL.RETINANET.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
]


@pytest.fixture(scope="module")
def base(tiny) -> CfgNode:
    """The config of a small detector for data that is registered as in detectron2's tutorial."""
    for split in ("train", "val"):
        register_coco_instances(f"shapes_{split}", {}, str(tiny / "annotations" / f"{split}.json"), str(tiny / split))
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    assert isinstance(cfg, CfgNode)
    cfg.merge_from_list([*SMALL, *SMALLER, "DATASETS.TRAIN", ("shapes_train",), "DATASETS.TEST", ("shapes_val",)])
    return cfg


@pytest.fixture
def cfg(base, tmp_path) -> CfgNode:
    cfg = base.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    return cfg


@pytest.fixture(scope="module")
def trained(base, module_path) -> Path:
    """A run of two iterations."""
    cfg = base.clone()
    cfg.OUTPUT_DIR = str(module_path / "run")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert not (module_path / "run").exists()
    trainer.train()
    return module_path / "run"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    buffers = {"pixel_mean", "pixel_std"}
    assert record["parameters"] == sum(tensor.numel() for key, tensor in weights.items() if key not in buffers)
    saved = CfgNode.load_yaml_with_base(str(trained / "config.yaml"))
    assert saved["MODEL"]["DEVICE"] == ("cuda" if torch.cuda.is_available() else "cpu")


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
    ("overrides", "message"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", 1], "NUM_CLASSES: 1 contradicts data set 'shapes_train', which has 4 classes"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 5], "NUM_CLASSES: 5 contradicts data set 'shapes_train', which has 4 classes"),
        (["DATASETS.TRAIN", ("shapes_trian",)], "data set 'shapes_trian' is not registered"),
        (["DATASETS.TRAIN", ()], "DATASETS.TRAIN is empty"),
        (["DATASETS.TEST", ("voc_2007_test",)], "data set 'voc_2007_test' has evaluator_type 'pascal_voc'"),
        (["MODEL.BACKBONE.NAME", "build_resnet"], "no backbone is named 'build_resnet'"),
        (["MODEL.RPN.IN_FEATURES", ["p9"]], "can't be built: KeyError: 'p9'"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "NUM_CLASSES: 80 contradicts data set 'shapes_train'"),
        ([*RETINANET, "TEST.AUG.ENABLED", True], "TEST.AUG.ENABLED: detectron2 supports"),
        (["SOLVER.LR_SCHEDULER_NAME", "Foo"], "can't be built: ValueError: Unknown LR scheduler: Foo"),
        (["MODEL.KEYPOINT_ON", True], "MODEL.KEYPOINT_ON: data set 'shapes_train' has no keypoint names"),
        (["INPUT.FORMAT", "XYZ"], "INPUT.FORMAT: 'XYZ' is neither RGB nor BGR"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(cfg, overrides, message) -> None:
    cfg.merge_from_list(overrides)
    with pytest.raises(UserError) as caught:
        Trainer(cfg)
    assert message in str(caught.value)
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_a_test_set_without_evaluator_needs_build_evaluator(cfg) -> None:
    DatasetCatalog.register("custom", lambda: DatasetCatalog.get("shapes_val"))
    MetadataCatalog.get("custom").thing_classes = SHAPES
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("custom",)
    with pytest.raises(UserError, match="data set 'custom' has evaluator_type None"):
        Trainer(cfg)

    class Custom(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return DatasetEvaluator()

    assert Custom(cfg)
    cfg.DATASETS.TEST = ()
    assert Trainer(cfg)


def test_missing_weights_are_refused(cfg) -> None:
    cfg.MODEL.WEIGHTS = "none.pth"
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS: there is no file none\.pth"):
        Trainer(cfg).resume_or_load(resume=False)


def test_another_run_is_not_replaced(cfg, trained) -> None:
    cfg.OUTPUT_DIR = str(trained)
    before = files(trained)
    trainer = Trainer(cfg)
    with pytest.raises(UserError, match=r"holds a run already .* Trainer\(cfg, overwrite=True\)"):
        trainer.resume_or_load(resume=False)
    with pytest.raises(UserError, match="holds a run already"):
        trainer.train()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    with pytest.raises(UserError, match="has backbone build_se_resnet_fpn_backbone, and now it is build_resnet_fpn"):
        Trainer(cfg).resume_or_load()
    assert files(trained) == before


def test_a_run_is_resumed_or_overwritten(cfg, trained, tmp_path, caplog) -> None:
    run = Path(cfg.OUTPUT_DIR)
    shutil.copytree(trained, run)
    cfg.SOLVER.MAX_ITER = 3
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    assert trainer.start_iter == 2
    assert "--resume: SOLVER.MAX_ITER was 2 when the run was last started, and is 3 now" in caplog.text
    trainer.train()
    record = json.loads((run / "run.json").read_text())
    assert [entry["iteration"] for entry in record["resumed"]] == [2]

    cfg.SOLVER.MAX_ITER = 1
    (run / "notes.txt").write_text("mine")
    trainer = Trainer(cfg, overwrite=True)
    trainer.resume_or_load(resume=False)
    assert (run / "model_final.pth").read_bytes() != (trained / "model_final.pth").read_bytes()
    trainer.train()
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 0
    assert "resumed" not in json.loads((run / "run.json").read_text())
    assert (run / "notes.txt").read_text() == "mine"
