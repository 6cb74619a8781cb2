import json

import pytest
import torch
from timm.utils import accuracy

from se_detection.pretrain.top_k import TopKEvaluator


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
