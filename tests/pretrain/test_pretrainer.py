import json
import multiprocessing
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from timm.utils import accuracy

from se_detection import UserError, model_zoo
from se_detection.checkpoint.assumptions import WeightsAssumptions
from se_detection.checkpoint.checkpointer import StrictCheckpointer
from se_detection.engine.signals import Interrupted
from se_detection.pretrain.pretrain_config import load_pretrain_config
from se_detection.pretrain.pretrainer import Pretrainer, TopKEvaluator
from se_detection_cli import pretrain_command
from se_detection_cli.main import command_parser

from ..helpers import raises
from .conftest import SMALL

pytestmark = pytest.mark.usefixtures("shallow")
# Less to compute and to write than depth 18, of which detectron2 has no narrow form.
NARROW = (
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.SE.REDUCTION", "4"),
)


@pytest.fixture(scope="module")
def trained(images, module_path, shallow) -> Path:
    """The run folder of `se-det pretrain` after six epochs, with two evaluations.

    With smaller batches or a higher rate, the statistics of batch norm would not yet fit those of testing.
    """
    folder = module_path / "run"
    epochs = ["PRETRAIN.EPOCHS", "6", "PRETRAIN.EVAL_EPOCHS", "3", "SOLVER.IMS_PER_BATCH", "12"]
    words = ["--config-file", "Toy/faster_rcnn_SE_R_18_FPN", "--data", str(images), *SMALL]
    args = command_parser(pretrain_command).parse_args([*words, *epochs, "OUTPUT_DIR", str(folder)])
    torch.manual_seed(0)
    pretrain_command.run(args)
    return folder


@pytest.mark.slow
def test_training_learns_the_colours(trained) -> None:
    results = json.loads((trained / "inference" / "results.json").read_text())
    assert results["images"] == 12
    assert results["top1"] > 90
    assert results["checkpoint"]["file"] == "model_final.pth"
    evaluated = [line for line in map(json.loads, (trained / "metrics.json").open()) if "classification/top1" in line]
    assert len(evaluated) == 2
    assert evaluated[-1]["classification/top1"] == pytest.approx(results["top1"])


@pytest.mark.parametrize("classes", [3, 20])
def test_top1_and_top5_equal_timms_accuracy(tmp_path, classes) -> None:
    logits, labels = torch.randn(70, classes), torch.randint(classes, (70,))
    evaluator = TopKEvaluator(tmp_path / "inference")
    evaluator.reset()
    for start in range(0, 70, 32):
        batch = [{"label": int(label)} for label in labels[start : start + 32]]
        evaluator.process(batch, logits[start : start + 32])
    results = evaluator.evaluate()["classification"]
    theirs = [float(value) for value in accuracy(logits, labels, topk=(1, min(5, classes)))]
    assert [results["top1"], results["top5"]] == pytest.approx(theirs)
    assert json.loads((tmp_path / "inference" / "results.json").read_text()) == {"images": 70, **results}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, StrictCheckpointer])
def test_a_detector_gets_the_whole_backbone(trained, checkpointer) -> None:
    """With the assumptions of the pre-training only."""
    cfg = model_zoo.get_config("Toy/faster_rcnn_SE_R_18_FPN")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    options = {"assumptions": WeightsAssumptions.from_cfg(cfg)} if checkpointer is StrictCheckpointer else {}
    checkpointer(model, **options).load(str(trained / "backbone.pth"))
    whole = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    expected = {key.removeprefix("backbone."): value for key, value in whole.items() if key.startswith("backbone.")}
    torch.testing.assert_close(dict(model.backbone.bottom_up.state_dict()), expected, rtol=0, atol=0)
    cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(UserError, match=r"INPUT\.FORMAT"):
        StrictCheckpointer(model, assumptions=WeightsAssumptions.from_cfg(cfg)).load(str(trained / "backbone.pth"))


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(build) -> None:
    epochs = (*NARROW, "PRETRAIN.EPOCHS", "1", "PRETRAIN.MIXUP", "0.2", "PRETRAIN.STOCHASTIC_DEPTH", "0.2")
    ema = ("SOLVER.EMA_DECAY", "0.9")
    whole = build(*epochs, *ema, name="whole")
    whole.train()
    stopped = build(*epochs, *ema, name="stopped")
    before_step = stopped._hooks[0].before_step

    def stop() -> None:
        stopped.stop.received = signal.SIGTERM if stopped.iter == 2 else 0
        before_step()

    stopped._hooks[0].before_step = stop
    with pytest.raises(Interrupted):
        stopped.train()
    assert not Path(stopped.cfg.OUTPUT_DIR, "backbone.pth").exists()
    resumed = build(*epochs, *ema, name="stopped", resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    ours, theirs = (
        torch.load(Path(trainer.cfg.OUTPUT_DIR, "backbone.pth"), weights_only=True)["model"]
        for trainer in (resumed, whole)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    # The moving average is evaluated and written, not the trained weights.
    final = torch.load(Path(resumed.cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)
    trained = final["trainer"]["hooks"]["MovingAverage"]["trained"]
    for key, tensor in ours.items():
        assert torch.equal(tensor, final["model"][f"backbone.{key}"])
    assert not torch.equal(ours["res5.1.conv2.weight"], trained["backbone.res5.1.conv2.weight"])


def test_epochs_become_iterations(arguments) -> None:
    overrides = ("PRETRAIN.EPOCHS", "3", "PRETRAIN.STEP_EPOCHS", "[1.0, 2.5]", "PRETRAIN.WARMUP_EPOCHS", "0.5")
    cfg = load_pretrain_config(arguments(*overrides))
    # 36 images, 6 per iteration
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD) == (18, (6, 15), 3, 6)


def test_layers_that_are_frozen_in_a_detector_are_trained(arguments) -> None:
    cfg = load_pretrain_config(arguments(config="COCO-Detection/faster_rcnn_SE_R_50_FPN_1x"))
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.WEIGHTS) == ("BN", 0, "")
    detector_config = model_zoo.get_config("COCO-Detection/faster_rcnn_SE_R_50_FPN_1x")
    assert WeightsAssumptions.from_cfg(cfg) == WeightsAssumptions.from_cfg(detector_config)


@pytest.mark.parametrize(
    ("overrides", "flags", "code", "named"),
    [
        (("SOLVER.MAX_ITER", "5"), (), "config.not_for_pretraining", "PRETRAIN.EPOCHS"),
        (("SOLVER.BACKBONE_FREEZE_ITERS", "3"), (), "config.not_for_pretraining", "BACKBONE_FREEZE_ITERS"),
        (("PRETRAIN.MIXUP", "0.2", "SOLVER.IMS_PER_BATCH", "5"), (), "config.bad_value", "odd"),
        (("PRETRAIN.CUTMIX", "0.2"), ("--num-gpus", "2"), "config.bad_value", "odd for each of 2 processes"),
        (("PRETRAIN.TEST_SIZE", "64"), (), "config.bad_value", "TEST_RESIZE"),
        (("PRETRAIN.TRAIN_SIZE", "100000"), (), "config.bad_value", "TRAIN_SIZE"),
        (("SOLVER.IMS_PER_BATCH", "40"), (), "pretrain.too_few_images", "36 images"),
        (("PRETRAIN.EPOCH", "1"), (), "config.unknown_key", "PRETRAIN.EPOCHS"),
        (("PRETRAIN.AUTO_AUGMENT", "nothing"), (), "config.not_buildable", "PRETRAIN"),
        ((), ("--recipe", "old"), "config.not_found", "choose from modern, paper"),
        ((), ("--recipe", "old.yaml"), "config.not_found", "old.yaml"),
    ],
)
def test_user_errors_are_explained(arguments, overrides, flags, code, named) -> None:
    with raises(code, named):
        load_pretrain_config(arguments(*overrides, flags=flags))


def test_an_existing_backbone_is_not_replaced(arguments, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "backbone.pth").write_text("mine")
    with pytest.raises(UserError, match=r"backbone\.pth"):
        load_pretrain_config(arguments())
    assert (tmp_path / "run" / "backbone.pth").read_text() == "mine"


@pytest.mark.slow
def test_the_modern_recipe_runs(build) -> None:
    trainer = build(*NARROW, "PRETRAIN.EPOCHS", "0.4", flags=("--recipe", "modern"))
    recipe = trainer.cfg.PRETRAIN
    assert (recipe.MIXUP, recipe.CUTMIX, trainer.cfg.SOLVER.LR_SCHEDULER_NAME) == (0.2, 1.0, "WarmupCosineLR")
    convolution = trainer.checkpointer.model.backbone.res2[0].conv1.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    trainer.train()
    assert Path(trainer.cfg.OUTPUT_DIR, "backbone.pth").is_file()


def evaluate_share(rank: int, cfg: CfgNode, url: str) -> None:
    dist.init_process_group("gloo", init_method=url, world_size=2, rank=rank)
    comm.create_local_process_group(2)
    Pretrainer.test(cfg, Pretrainer.build_model(cfg))


def test_two_processes_evaluate_every_image_once(arguments, tmp_path) -> None:
    cfg = load_pretrain_config(arguments())
    fork = multiprocessing.get_context("fork")
    url = f"file://{tmp_path}/group"
    processes = [fork.Process(target=evaluate_share, args=(rank, cfg, url)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert json.loads((tmp_path / "run" / "inference" / "results.json").read_text())["images"] == 12
