"""Top-1 and top-5 accuracy of a classifier."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..files import write_whole
from ..runs.run_folder import RESULTS


class TopKEvaluator(DatasetEvaluator):
    """Percentage of images whose class has the highest score (`top1`) or one of the five highest (`top5`).

    Args:
        folder: where the main process writes `results.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reset(self) -> None:
        """Starts a new evaluation."""
        self.counts = {"images": 0, "top1": 0, "top5": 0}

    def process(self, inputs: list[dict[str, Any]], outputs: Tensor) -> None:
        """Adds a batch; `outputs` are logits (N, classes)."""
        labels = torch.tensor([item["label"] for item in inputs], device=outputs.device)
        hits = outputs.topk(min(5, outputs.shape[1])).indices == labels[:, None]
        self.counts["images"] += len(inputs)
        self.counts["top1"] += int(hits[:, 0].sum())
        self.counts["top5"] += int(hits.sum())

    def evaluate(self) -> dict[str, Any]:
        """`top1` and `top5` over all processes; empty except in the main process."""
        gathered = comm.gather(self.counts)
        if not comm.is_main_process():
            return {}
        total = {key: sum(counts[key] for counts in gathered) for key in self.counts}
        results = {key: 100 * total[key] / total["images"] for key in ("top1", "top5")}
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"images": total["images"], **results}, indent=2) + "\n"
        write_whole(self.folder / RESULTS, lambda file: file.write(content.encode()))
        return OrderedDict(classification=results)
