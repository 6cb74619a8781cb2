"""Top-1 and top-5 of a classifier."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..files import write_whole


class TopKEvaluator(DatasetEvaluator):
    """The part of images, in percent, whose class is the likeliest (`top1`) or among the five likeliest (`top5`).

    Args:
        folder: where the main process writes `results.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reset(self) -> None:
        """See detectron2's."""
        self.counts = {"images": 0, "top1": 0, "top5": 0}

    def process(self, inputs: list[dict[str, Any]], outputs: Tensor) -> None:
        """Counts a batch; `outputs` are logits (N, classes)."""
        labels = torch.tensor([item["label"] for item in inputs], device=outputs.device)
        hits = outputs.topk(min(5, outputs.shape[1])).indices == labels[:, None]
        self.counts["images"] += len(inputs)
        self.counts["top1"] += int(hits[:, 0].sum())
        self.counts["top5"] += int(hits.sum())

    def evaluate(self) -> dict[str, Any]:
        """Over all processes; empty on others than the main one."""
        gathered = comm.gather(self.counts)
        if not comm.is_main_process():
            return {}
        total = {key: sum(counts[key] for counts in gathered) for key in self.counts}
        results = {key: 100 * total[key] / total["images"] for key in ("top1", "top5")}
        self.folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"images": total["images"], **results}, indent=2) + "\n"
        write_whole(self.folder / "results.json", lambda file: file.write(content.encode()))
        return OrderedDict(classification=results)
