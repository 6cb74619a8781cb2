"""The lines during a training."""

from types import SimpleNamespace

import pytest
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import EventStorage

from se_detection.engine import progress
from se_detection.engine.progress import Progress, headlines


def test_lines_come_at_once_and_then_less_and_less_often(monkeypatch, caplog) -> None:
    caplog.set_level("INFO", "se_detection")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    hook = Progress()
    with EventStorage(10) as storage:
        hook.trainer = SimpleNamespace(storage=storage, start_iter=10, iter=10, max_iter=410)
        hook.before_train()
        for step in range(10, 410):
            # The first step takes longer; detectron2's timer skips the first two.
            now[0] += 5.0 if step == 10 else 1.0
            hook.trainer.iter = storage.iter = step
            storage.put_scalars(total_loss=2.0 if step == 10 else 1.0, lr=0.02)
            if step > 11:
                storage.put_scalars(time=1.0)
            hook.after_step()
            storage.step()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "step  11/410  loss 2.000  learning rate 0.02  5.00 s/step  ETA 0:33:15"
    assert lines[1] == "step  21/410  loss 1.000  learning rate 0.02  1.00 s/step  ETA 0:06:29"
    at = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert at[2:7] == [41, 61, 81, 101, 121]
    assert len(at) < 20


def test_an_evaluation_is_a_line(caplog) -> None:
    caplog.set_level("INFO", "se_detection")
    hook = Progress()
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage, start_iter=0, iter=0, max_iter=9)
        hook.before_train()
        hook.next_line = float("inf")
        storage.put_scalars(**{"bbox/AP": 40.0, "bbox/AP50": 61.24, "bbox/AP-car": 1.0}, smoothing_hint=False)
        hook.after_step()
        storage.step()
        hook.trainer.iter = 1
        hook.after_step()
    assert [record.getMessage() for record in caplog.records] == ["step 1: AP 40.0, AP@0.5 61.2"]


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"bbox": {"AP": 40.04, "AP50": 61.0, "APs": 3.0}}, ["AP 40.0, AP@0.5 61.0"]),
        ({"bbox": {"AP": float("nan"), "AP50": float("nan")}}, ["AP undefined, AP@0.5 undefined"]),
        ({"bbox": {"AP": 1.0}, "segm": {"AP": 2.0}}, ["AP 1.0", "segm: AP 2.0"]),
        ({"one": {"bbox": {"AP": 1.0}}, "two": {"bbox": {"AP": 2.0}}}, ["one/bbox: AP 1.0", "two/bbox: AP 2.0"]),
        ({"classification": {"top1": 71.0, "top5": 90.0}}, ["top-1 accuracy 71.0, top-5 accuracy 90.0"]),
        ({"panoptic_seg": {"PQ": 3.0, "SQ": 1.0}}, ["panoptic_seg: PQ 3.0"]),
        ({}, []),
    ],
)
def test_metrics_in_words(results, words) -> None:
    assert headlines(flatten_results_dict(results)) == words
