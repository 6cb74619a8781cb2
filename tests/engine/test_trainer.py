"""Trainers that are stopped and resumed in this process, with several detectors and options."""

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine.hooks import CallbackHook
from torch.utils.data import DataLoader

from se_detection.checkpoint import checkpointer
from se_detection.comparison.compare_runs import compare_runs
from se_detection.data.workers import NoBatchError, SignalSafeLoader
from se_detection.engine import resume, signals
from se_detection.engine.checks import load_config
from se_detection.engine.hooks import BestCheckpoint, Checkpoints, Evaluation
from se_detection.engine.resume import scale_to_original
from se_detection.engine.signals import Interrupted, RankMaximum, StopRequest
from se_detection.engine.train_and_evaluate import evaluate
from se_detection.engine.trainer import Trainer
from se_detection.runs.checkpoints import numbered_checkpoints
from se_detection.runs.metrics import MetricsFile

from ..helpers import raises
from .conftest import files, read_metrics, same, stop_after, train_arguments, weights

RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.IN_FEATURES", "['res3']"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "SOLVER.BASE_LR", "0.001"),
]
PRECISE_BN = ["TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2", "TEST.EVAL_PERIOD", "3"]
RECIPE = [
    *("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BASE_LR", "0.0005", "MODEL.RESNETS.DROP_BLOCK", "0.3"),
    *("INPUT.LARGE_SCALE_JITTER.ENABLED", "True", "INPUT.LARGE_SCALE_JITTER.SIZE", "(64, 96)"),
    *("INPUT.LARGE_SCALE_JITTER.MIN_SCALE", "0.5", "INPUT.RANDOM_ERASING.PROB", "0.5"),
]
AVERAGED = [
    *("SOLVER.EMA_DECAY", "0.9", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
    *("SOLVER.BACKBONE_FREEZE_ITERS", "2", "SOLVER.BACKBONE_MULTIPLIER", "0.1", "TEST.EVAL_PERIOD", "2"),
]


@pytest.fixture(scope="module")
def finished(build) -> Path:
    """A run of four steps that keeps two checkpoints, the best weights and a moving average."""
    options = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_TO_KEEP", 2, "TEST.EVAL_PERIOD", 1]
    trainer = build("finished", *options, "SOLVER.EMA_DECAY", 0.5)
    trainer.train()
    return Path(trainer.cfg.OUTPUT_DIR)


def evaluated_checkpoint(run: Path) -> dict[str, object]:
    """The checkpoint in a run's results."""
    return json.loads((run / "inference" / "results.json").read_text())["checkpoint"]


def of_file(run: Path, name: str) -> dict[str, object]:
    """A checkpoint of a run as the results should describe it."""
    iteration = torch.load(run / name, weights_only=True)["iteration"]
    return {"file": name, "iteration": iteration, "sha256": hashlib.sha256((run / name).read_bytes()).hexdigest()}


@pytest.mark.slow
def test_the_results_name_the_checkpoint(finished) -> None:
    assert evaluated_checkpoint(finished) == of_file(finished, "model_final.pth")
    assert evaluated_checkpoint(finished)["iteration"] == 3


class Watched(Trainer):
    """Keeps the checkpoint of each evaluation."""

    def _evaluate(self):
        results = super()._evaluate()
        self.named = [*getattr(self, "named", []), evaluated_checkpoint(Path(self.cfg.OUTPUT_DIR))]
        return results


@pytest.mark.slow
def test_an_evaluation_alone_names_its_checkpoint(copied, tiny, module_path) -> None:
    def evaluate_only(run: Path, *words: object) -> None:
        args = train_arguments(tiny, run, *words, flags=("--eval-only", *flags))
        evaluate(Trainer, load_config(args), args)

    older = copied / "model_0000002.pth"
    flags = ("--overwrite",)
    evaluate_only(copied, "MODEL.WEIGHTS", older)
    assert evaluated_checkpoint(copied) == of_file(copied, older.name)
    with raises("compare.not_comparable", "model_0000002.pth (iteration 2)", "model_final.pth"):
        compare_runs(copied, module_path / "finished", 100)
    flags = ("--resume",)
    evaluate_only(copied)
    assert evaluated_checkpoint(copied) == of_file(copied, "model_final.pth")


@pytest.fixture
def copied(finished, module_path) -> Path:
    """A copy of the finished run, which a test may change."""
    shutil.copytree(finished, module_path / "copied")
    yield module_path / "copied"
    shutil.rmtree(module_path / "copied")


@pytest.mark.slow
def test_a_run_does_not_resume_past_its_end(build, copied) -> None:
    before = files(copied)
    with raises("train.past_the_end", "SOLVER.MAX_ITER: 2", "the 4 iterations of", "model_final.pth"):
        build("copied", "SOLVER.EMA_DECAY", 0.5, "SOLVER.MAX_ITER", 2, resume=True)
    assert files(copied) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "stops"),
    [
        # While the backbone is frozen, and later.
        (AVERAGED, (0, 2)),
        (RETINANET, (1,)),
        # With AdamW, DropBlock and augmentations.
        ([*PRECISE_BN, *RECIPE], (1,)),
    ],
    ids=["averaged", "RetinaNet", "PreciseBN"],
)
def test_a_stopped_trainer_resumes_exactly(build, options, stops, request) -> None:
    name = request.node.callspec.id
    whole = build(f"{name}_whole", *options)
    whole.train()
    rest = build(name, *options)
    for iteration in stops:
        stop_after(rest, iteration)
        rest = build(name, *options, resume=True)
        assert rest.start_iter == iteration + 1
    rest.train()
    assert same(weights(rest), weights(whole))
    states = [
        torch.load(Path(trainer.cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)["trainer"]
        for trainer in (rest, whole)
    ]
    assert (states[0]["loss_normalizers"] == [None]) == (options != RETINANET)
    for key in ("loss_normalizers", "skipped", "config", "iteration"):
        assert states[0][key] == states[1][key]
    evaluated = [
        {line["iteration"]: line["bbox/AP"] for line in read_metrics(Path(trainer.cfg.OUTPUT_DIR)) if "bbox/AP" in line}
        for trainer in (rest, whole)
    ]
    assert evaluated[0] == evaluated[1]


@pytest.mark.slow
def test_the_average_is_over_the_weights_after_each_step(build) -> None:
    decay, name = 0.5, "roi_heads.box_predictor.cls_score.weight"
    trainer = build("average", "SOLVER.EMA_DECAY", decay)
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


@pytest.mark.slow
def test_the_memory_format_does_not_change_the_training(build) -> None:
    # One step: rounding differs, and later sampled boxes depend on it.
    plain, ordered = (build(f"memory{order}", "SOLVER.CHANNELS_LAST", order) for order in (False, True))
    convolution = ordered.checkpointer.model.backbone.res2[0].conv1.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
    for trainer in (plain, ordered):
        stop_after(trainer, 0)
    torch.testing.assert_close(weights(ordered), weights(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("bf16", "precision"), [(True, torch.bfloat16), pytest.param(False, torch.float16, marks=pytest.mark.slow)]
)
def test_mixed_precision_is_as_configured(build, bf16, precision, monkeypatch) -> None:
    """Checks the choice, and what a bad loss does to the scaler: detectron2's mixed precision needs a GPU."""
    monkeypatch.setattr(Trainer, "check_config", staticmethod(lambda cfg: None))
    cfg = build("amp", "SOLVER.AMP.BF16", bf16).cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = True
    trainer = Trainer(cfg)
    assert trainer._trainer.precision is precision
    # The scaler checks only the gradients, which may be finite when a loss is not.
    before = weights(trainer)
    for may_step in (False, True):
        for parameter in trainer.checkpointer.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(torch.zeros(()))
        if not may_step:
            trainer._trainer._drop_gradients()
        scaler.step(trainer.optimizer)
        assert may_step != same(weights(trainer), before)


def test_evaluation_after_every_step_is_logged_once_and_the_best_is_kept(finished) -> None:
    logged = read_metrics(finished)
    evaluated = {line["iteration"]: line["bbox/AP"] for line in logged if "bbox/AP" in line}
    assert list(evaluated) == [0, 1, 2, 4]
    assert len({line["iteration"] for line in logged}) == len(logged)
    assert list(numbered_checkpoints(finished)) == [1, 2]
    assert (finished / "last_checkpoint").read_text() == "model_final.pth"
    best = torch.load(finished / "model_best.pth", weights_only=True)
    # The first of equal ones.
    assert best["iteration"] == max(evaluated, key=lambda iteration: (evaluated[iteration], -iteration))
    assert best["bbox/AP"] == evaluated[best["iteration"]]
    assert best.keys() == {"model", "assumptions", "iteration", "bbox/AP"}


@pytest.mark.slow
def test_a_finished_run_is_evaluated(copied, build, finished, caplog) -> None:
    shutil.rmtree(copied / "inference")
    record = json.loads((copied / "run.json").read_text())
    build("copied", "SOLVER.EMA_DECAY", 0.5, resume=True).train()
    assert "is finished (4 iterations): it is evaluated" in caplog.text
    for name in ("results.json", "coco_instances_results.json"):
        assert (copied / "inference" / name).read_bytes() == (finished / "inference" / name).read_bytes()
    resumed = json.loads((copied / "run.json").read_text())
    assert [entry["iteration"] for entry in resumed.pop("resumed")] == [4]
    assert resumed == record


@pytest.mark.slow
def test_a_broken_checkpoint_is_set_aside(copied, build, caplog) -> None:
    newest = copied / "model_final.pth"
    broken = newest.read_bytes()[:-5000]
    newest.write_bytes(broken)
    trainer = build("copied", "SOLVER.EMA_DECAY", 0.5, resume=True)
    assert trainer.start_iter == 3
    assert (copied / "model_final.pth.corrupt").read_bytes() == broken
    assert "model_final.pth is truncated or corrupt and was set aside as model_final.pth.corrupt" in caplog.text


@pytest.mark.slow
def test_values_that_a_checkpoint_would_override_are_refused(copied, build, tiny, tmp_path, request) -> None:
    before = files(copied)
    with raises("train.fixed_value", "SOLVER.BASE_LR was 0.01", "0.5 now"):
        build("copied", "SOLVER.EMA_DECAY", 0.5, "SOLVER.BASE_LR", 0.5, resume=True)
    with raises("run.other_config", "depth 18", "34"):
        build("copied", "SOLVER.EMA_DECAY", 0.5, "MODEL.RESNETS.DEPTH", 34, resume=True)
    request.getfixturevalue("fresh_catalogs")
    # Other images need another run.
    shutil.copytree(tiny, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "train.json"
    data = json.loads(path.read_text())
    gone = data["images"].pop()["id"]
    data["annotations"] = [item for item in data["annotations"] if item["image_id"] != gone]
    path.write_text(json.dumps(data))
    with raises("train.changed_data", "train_train"):
        build("copied", "SOLVER.EMA_DECAY", 0.5, resume=True, data=tmp_path / "data")
    assert files(copied) == before


@pytest.mark.slow
def test_a_full_disk_loses_no_checkpoint(copied, build, monkeypatch) -> None:
    def full(path: Path, write: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    (copied / "model_final.pth").unlink()
    (copied / "last_checkpoint").write_text("model_0000002.pth")
    trainer = build("copied", "SOLVER.EMA_DECAY", 0.5, resume=True)
    before = (copied / "model_0000002.pth").read_bytes()
    monkeypatch.setattr(checkpointer, "write_whole", full)
    with raises("train.unsaved_checkpoint", "model_0000002.pth is kept", "free some space"):
        trainer.train()
    assert (copied / "last_checkpoint").read_text() == "model_0000002.pth"
    assert (copied / "model_0000002.pth").read_bytes() == before


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved(build, module_path) -> None:
    trainer = build("infinite", "SOLVER.CHECKPOINT_PERIOD", 1)

    def spoil(it: Trainer) -> None:
        if it.iter == 2:
            next(it.checkpointer.model.parameters()).data.view(-1)[0] = float("nan")

    # After the step, and before the hook that saves.
    trainer.register_hooks([CallbackHook(after_step=spoil)])
    trainer._hooks.insert(0, trainer._hooks.pop())
    with raises("train.non_finite_weights", "iteration 2"):
        trainer.train()
    assert (module_path / "infinite" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (module_path / "infinite" / "model_0000002.pth").exists()


@pytest.mark.slow
def test_resuming_an_earlier_checkpoint_keeps_the_later_ones(copied, build) -> None:
    (copied / "last_checkpoint").write_text("model_0000001.pth")
    options = ["SOLVER.EMA_DECAY", 0.5, "SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINTS_TO_KEEP", 1]
    stop_after(build("copied", *options, resume=True), 2)
    left = sorted(path.name for path in copied.glob("model_[0-9f]*.pth"))
    assert left == ["model_0000002.pth", "model_final.pth"]
    for name in left:
        (copied / name).unlink()
    with pytest.raises(Exception, match=r"last_checkpoint names model_0000002\.pth, but no checkpoint exists"):
        build("copied", *options, resume=True)


def test_a_checkpoint_period_of_zero_saves_at_the_end_alone(monkeypatch) -> None:
    hook = Checkpoints(None, period=0, keep=0, stop=SimpleNamespace(raise_if_any=lambda: None))
    saved = []
    monkeypatch.setattr(hook, "save", lambda: saved.append(hook.trainer.iter))
    for iteration in range(4):
        hook.trainer = SimpleNamespace(iter=iteration, max_iter=4)
        hook.after_step()
    assert saved == [3]


def test_the_best_value_of_another_metric_does_not_count(tmp_path) -> None:
    options = {"checkpointer": None, "metrics": MetricsFile(tmp_path / "metrics.json")}
    before, same, other = (BestCheckpoint(metric=name, **options) for name in ("bbox/AP50", "bbox/AP50", "bbox/AP"))
    before.best = {"value": 80.0, "iteration": 7}
    for hook in (same, other):
        hook.load_state_dict(before.state_dict())
    assert same.best == before.best
    assert other.best == {"value": float("-inf"), "iteration": -1}


@pytest.mark.slow
def test_an_unknown_best_metric_is_reported_with_the_known_ones(build, caplog) -> None:
    trainer = build("metric", "SOLVER.BEST_METRIC", "bbox/mAP", "TEST.EVAL_PERIOD", 2, kind=Watched)
    trainer.train()
    logged = [record.getMessage() for record in caplog.records if "BEST_METRIC" in record.getMessage()]
    assert len(logged) == 1
    assert "bbox/mAP was not evaluated" in logged[0]
    assert logged[0].endswith("choose from bbox/AP")
    # The first evaluation is of weights that were not saved.
    final = of_file(Path(trainer.cfg.OUTPUT_DIR), "model_final.pth")
    assert trainer.named == [{"file": None, "iteration": 1, "sha256": None}, final]


@pytest.mark.slow
def test_a_signal_during_the_evaluation(build, module_path, caplog) -> None:
    """After a step without a periodic checkpoint: it is saved, and evaluated when the run resumes."""
    options = ["TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 3]

    class Signalled(Trainer):
        def _evaluate(self):
            self.stop.received = signal.SIGINT
            return super()._evaluate()

    with pytest.raises(Interrupted) as caught:
        build("evaluated", *options, kind=Signalled).train()
    assert caught.value.code == 128 + signal.SIGINT
    assert "SIGINT: stopped after iteration 1, which was saved" in caplog.text
    assert (module_path / "evaluated" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (module_path / "evaluated" / "inference" / "results.json").exists()
    resumed = build("evaluated", *options, resume=True, kind=Watched)
    resumed.train()
    run = module_path / "evaluated"
    assert resumed.named == [of_file(run, name) for name in ("model_0000001.pth", "model_final.pth")]
    assert [line["iteration"] for line in read_metrics(module_path / "evaluated") if "bbox/AP" in line] == [1, 3]


def test_signals_within_two_seconds_are_one_request(monkeypatch) -> None:
    now, sent = [100.0], []
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signals.signal, "signal", lambda *handler: sent.append(handler))
    monkeypatch.setattr(signals.os, "kill", lambda pid, number: sent.append(number))
    request = StopRequest(RankMaximum())
    request.raise_if_any()
    request._receive(signal.SIGTERM, None)
    now[0] += 1.9
    request._receive(signal.SIGINT, None)
    assert (request.received, sent) == (signal.SIGTERM, [])
    now[0] += 0.2
    request._receive(signal.SIGINT, None)
    assert sent == [(signal.SIGINT, signal.SIG_DFL), signal.SIGINT]


class Stalled:
    """Images as of a disk that stalls: the fifth one, so that two batches of two come."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        self.asked += 1
        if self.asked == 5:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return index


def test_a_request_does_not_wait_for_a_data_loader(monkeypatch) -> None:
    monkeypatch.setattr(signals, "PATIENCE", 0.2)
    stop = StopRequest(RankMaximum())
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)]
    batches = []
    with pytest.raises(Interrupted) as caught, stop.listening():
        batches.extend(SignalSafeLoader(DataLoader(Stalled(), batch_size=2)))
    assert caught.value.code == 128 + signal.SIGTERM
    # It waits for anything else, such as a step.
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.4)
        assert stop.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_one_of_several_processes_does_not_wait_for_its_data_loader(monkeypatch, capsys) -> None:
    """It ends at once: the others, which wait for it, could not agree with it."""
    monkeypatch.setattr(signals, "SHARED_PATIENCE", 0.2)
    monkeypatch.setattr(signals.os, "_exit", sys.exit)
    agreement = RankMaximum()
    agreement.group = object()
    with pytest.raises(SystemExit) as caught, StopRequest(agreement).listening():
        list(SignalSafeLoader(DataLoader(Stalled(), batch_size=2)))
    assert caught.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.startswith("error: SIGTERM: process 0 stops")


@pytest.mark.slow
@pytest.mark.parametrize("error", [Interrupted(143), NoBatchError("data.no_batch", "no batch")])
def test_the_state_before_a_batch_that_does_not_come_is_saved(build, error) -> None:
    trainer = build(type(error).__name__)
    load, after = trainer.loader.mapper, {}

    def fail(item):
        if trainer.iter == 2:
            raise error
        return load(item)

    trainer.loader.mapper = fail
    trainer.register_hooks([CallbackHook(after_step=lambda it: after.update({it.iter: weights(trainer)}))])
    with pytest.raises(type(error)):
        trainer.train()
    folder = Path(trainer.cfg.OUTPUT_DIR)
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    saved = torch.load(folder / "model_0000001.pth", weights_only=True)
    assert same(saved["model"], after[1])
    assert saved["trainer"]["iteration"] == 1


def test_the_state_before_an_evaluation_without_images_is_saved() -> None:
    saved = []

    def evaluate() -> dict:
        raise NoBatchError("data.no_batch", "no batch")

    checkpoints = SimpleNamespace(save=lambda: saved.append(True))
    evaluation = Evaluation(evaluate, period=2, checkpoints=checkpoints, metrics=None)
    evaluation.trainer = SimpleNamespace(iter=1, max_iter=9)
    with raises("data.no_batch"):
        evaluation.after_step()
    assert saved == [True]


@pytest.mark.slow
def test_a_custom_loader_is_reported(finished, build, caplog) -> None:
    trainer = build("custom", "SOLVER.EMA_DECAY", 0.5)
    trainer.loader = [[]]
    trainer.load_state_dict(torch.load(finished / "model_final.pth", weights_only=True)["trainer"])
    assert "The order of images starts again" in caplog.text
    assert (trainer.iter, trainer.seed) == (3, 3)


def test_a_resumed_run_is_scaled_to_the_processes_that_it_began_with(monkeypatch) -> None:
    """As configured for two processes: one has half of the batch and half of the rate, and twice the iterations."""
    cfg = get_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 2, 8, 0.02, 10
    monkeypatch.setattr(resume, "read_record", lambda folder: {"processes": 1})
    scaled = scale_to_original(cfg).SOLVER
    assert (scaled.IMS_PER_BATCH, scaled.BASE_LR, scaled.MAX_ITER) == (4, 0.01, 20)
    assert scaled.REFERENCE_WORLD_SIZE == 0
    assert cfg.SOLVER.REFERENCE_WORLD_SIZE == 2
    monkeypatch.setattr(resume, "comm", SimpleNamespace(get_world_size=lambda: 2, is_main_process=lambda: False))
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0
    assert scale_to_original(cfg) is cfg
