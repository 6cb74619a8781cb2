"""Trainers that are stopped and resumed in this process, with several detectors and options."""

import gc
import signal

import pytest
import torch
from detectron2.engine.hooks import CallbackHook
from torch import Tensor

from se_detection import model_zoo
from se_detection.engine.checks import load_config
from se_detection.engine.signals import Interrupted
from se_detection.engine.trainer import Trainer
from se_detection.errors import UserError
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from .conftest import SMALL, read_metrics

RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.BACKBONE.NAME", "build_retinanet_se_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256], [512]]", "SOLVER.BASE_LR", "0.001"),
]
PRECISE_BN = ["MODEL.RESNETS.NORM", "BN", "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
KEEP_ALL = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]


@pytest.fixture
def build(tiny_flags, tmp_path):
    """A function that makes a trainer of the tiny data, for four steps."""

    def make(*overrides: str, name: str = "run", resume: bool = False) -> Trainer:
        config = model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")
        options = [*SMALL, "SEED", "3", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "100", *overrides]
        flags = [*(["--resume"] if resume else []), "--config-file", config, *tiny_flags, *options]
        args = command_parser(train_command).parse_args([*flags, "OUTPUT_DIR", str(tmp_path / name)])
        torch.manual_seed(0)
        trainer = Trainer(load_config(args))
        trainer.resume_or_load(resume)
        return trainer

    yield make
    # Trainers with hooks of the tests are in reference cycles, and large.
    gc.collect()


def stop_after(trainer: Trainer, iteration: int) -> None:
    def stop(it) -> None:
        if it.iter == iteration:
            trainer.stop.received = signal.SIGTERM

    trainer.register_hooks([CallbackHook(before_step=stop)])
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    assert caught.value.code == 143


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in trainer.checkpointer.weights.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        RETINANET,
        [*PRECISE_BN, "TEST.EVAL_PERIOD", "3"],
        ["MODEL.RESNETS.NORM", "BN", "SOLVER.EMA_DECAY", "0.9"],
        ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
    ],
    ids=["RetinaNet", "PreciseBN", "EMA", "RepeatFactor"],
)
def test_a_stopped_trainer_resumes_exactly(build, options) -> None:
    whole = build(*options, name="whole")
    whole.train()
    stop_after(build(*options), 1)
    rest = build(*options, resume=True)
    assert rest.start_iter == 2
    rest.train()
    # Two RetinaNets that were not stopped differ by as much as 2e-9.
    torch.testing.assert_close(weights(rest), weights(whole), rtol=0, atol=1e-7)
    normalizers = [getattr(trainer.checkpointer.model, "loss_normalizer", None) for trainer in (rest, whole)]
    assert normalizers[0] == normalizers[1]


def test_the_average_is_over_the_weights_after_each_step(build) -> None:
    decay, name = 0.5, "roi_heads.box_predictor.cls_score.weight"
    trainer = build("SOLVER.EMA_DECAY", str(decay))
    model = trainer.checkpointer.model
    seen = [model.state_dict()[name].clone()]
    trainer.register_hooks([CallbackHook(after_step=lambda _: seen.append(model.state_dict()[name].clone()))])
    trainer.train()
    # timm's warm-up: the decay after n steps is at most 1 - n^(-2/3), so 0 after the first.
    expected = seen[1]
    for step in range(2, 5):
        now = min(decay, 1 - step ** (-2 / 3))
        expected = now * expected + (1 - now) * seen[step]
    saved = torch.load(f"{trainer.cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)
    torch.testing.assert_close(saved["model"][name], expected)
    assert torch.equal(saved["trainer"]["hooks"]["MovingAverage"]["trained"][name], seen[4])


def test_the_memory_format_does_not_change_the_training(build) -> None:
    # One step: rounding differs, and later sampled boxes depend on it.
    step = ("SOLVER.MAX_ITER", "1")
    plain, ordered = build(*step, name="plain"), build(*step, "SOLVER.CHANNELS_LAST", "True", name="ordered")
    convolution = ordered.checkpointer.model.backbone.bottom_up.res2[0].conv1.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    for trainer in (plain, ordered):
        trainer.train()
    torch.testing.assert_close(weights(ordered), weights(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("bf16", "precision"), [("False", torch.float16), ("True", torch.bfloat16)])
def test_mixed_precision_is_as_configured(build, bf16, precision, monkeypatch) -> None:
    """Checks only the choice: detectron2's mixed precision needs a GPU."""
    monkeypatch.setattr(Trainer, "check_config", staticmethod(lambda cfg: None))
    cfg = build("SOLVER.AMP.BF16", bf16).cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = True
    assert Trainer(cfg)._trainer.precision is precision


def test_evaluation_after_every_step_is_logged_once(build, tmp_path) -> None:
    build("TEST.EVAL_PERIOD", "1", *KEEP_ALL).train()
    logged = read_metrics(tmp_path / "run")
    assert [line["iteration"] for line in logged if "bbox/AP" in line] == [0, 1, 2, 4]
    assert len({line["iteration"] for line in logged}) == len(logged)


def test_weights_that_are_not_finite_are_not_saved(build, tmp_path) -> None:
    trainer = build("SOLVER.CHECKPOINT_PERIOD", "1")

    def spoil(it) -> None:
        if it.iter == 2:
            next(trainer.checkpointer.model.parameters()).data.view(-1)[0] = float("nan")

    # After the step, and before the hook that saves.
    trainer._hooks.insert(0, CallbackHook(after_step=lambda _: spoil(trainer)))
    with pytest.raises(UserError, match=r"^iteration 2: the weights are not finite, and were not saved"):
        trainer.train()
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "run" / "model_0000002.pth").exists()


def test_going_back_to_an_earlier_checkpoint_keeps_the_later_ones(build, tmp_path) -> None:
    options = ["SOLVER.CHECKPOINT_PERIOD", "1"]
    build(*options).train()
    folder = tmp_path / "run"
    (folder / "last_checkpoint").write_text("model_0000000.pth")
    stop_after(build(*options, "SOLVER.CHECKPOINTS_TO_KEEP", "1", resume=True), 1)
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    left = sorted(path.name for path in folder.glob("model_*.pth"))
    assert left == ["model_0000001.pth", "model_0000002.pth", "model_final.pth"]
    for name in left:
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"last_checkpoint names model_0000001\.pth, but no checkpoint exists"):
        build(resume=True)


def test_an_unknown_best_metric_is_reported_with_the_known_ones(build, caplog) -> None:
    build("SOLVER.BEST_METRIC", "bbox/mAP", "TEST.EVAL_PERIOD", "2", *KEEP_ALL).train()
    logged = [record.getMessage() for record in caplog.records if "BEST_METRIC" in record.getMessage()]
    assert logged == [
        "SOLVER.BEST_METRIC: bbox/mAP was not evaluated, so there is no model_best.pth; choose from bbox/AP"
    ]


def test_a_custom_loader_is_reported(build, caplog) -> None:
    stop_after(build(), 1)
    trainer = build(name="other")
    trainer.loader = [[]]
    trainer.load_state_dict(torch.load(build(resume=True).cfg.OUTPUT_DIR + "/model_0000001.pth")["trainer"])
    assert "The order of images starts again: build_train_loader does not return a TrainLoader" in caplog.text


def test_mixed_precision_skips_a_step_with_an_infinite_loss(build) -> None:
    """Its scaler checks only the gradients, which may be finite when a loss is not."""
    trainer = build()
    trainer.cfg = trainer.cfg.clone()
    trainer.cfg.defrost()
    trainer.cfg.SOLVER.AMP.ENABLED = True
    before = weights(trainer)
    for may_step in (False, True):
        for parameter in trainer.checkpointer.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(torch.zeros(()))
        if not may_step:
            trainer._drop_gradients()
        scaler.step(trainer.optimizer)
        assert may_step != all(torch.equal(tensor, before[key]) for key, tensor in weights(trainer).items())
