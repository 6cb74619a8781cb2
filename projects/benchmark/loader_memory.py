"""The memory that the training loader's workers use for a large data set."""

import copy
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetFromList
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from tabulate import tabulate
from tqdm import tqdm

from se_detection.data.train_loader import TrainLoader

from .loop import random_boxes

MEGABYTE = 1024 * 1024
BATCH = 500
OURS, OBJECTS = "ours", "Python objects"


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """The growth of the workers' private memory while they load the data set once.

    Args:
        storage: `ours`, or `Python objects`: the same loader over a plain list, whose objects each worker copies.
        workers: number of workers.
        data_set: size of the data set as detectron2 packs it, in megabytes.
        grown: growth of all workers together, in megabytes.
    """

    storage: str
    workers: int
    data_set: float
    grown: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON; the storage is in `arm`."""
        return {"arm": self.storage, "workers": self.workers, "data_set": self.data_set, "grown": self.grown}


def loader_memory(images: int, workers: Sequence[int]) -> list[MemoryRow]:
    """Loads a random data set once with each number of workers, and measures the workers' memory.

    No image is read; only the annotations of :func:`random_boxes` matter. The memory is Linux's private memory of a
    process; pages shared with the training process are not included.
    """
    entries = _random_entries(images)
    packed = sum(len(pickle.dumps(image, protocol=-1)) for image in entries) / MEGABYTE
    rows = []
    for storage in (OURS, OBJECTS):
        for number in workers:
            loader = TrainLoader(
                entries,
                mapper=_private_memory,
                make_sampler=_in_order,
                total_batch_size=BATCH,
                aspect_ratio_grouping=False,
                num_workers=number,
            )
            if storage == OBJECTS:
                loader.dataset = DatasetFromList(entries, copy=False, serialize=False)
            first: dict[str, float] = {}
            last: dict[str, float] = {}
            stream = iter(loader)
            for _ in tqdm(range(0, images, BATCH), f"{storage}, {number} workers", disable=None):
                for process, memory in next(stream)[0].items():
                    first.setdefault(process, memory)
                    last[process] = memory
            grown = sum(last[process] - first[process] for process in last)
            rows.append(MemoryRow(storage=storage, workers=number, data_set=packed, grown=grown))
    return rows


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """A text table: a row for each storage and number of workers."""
    cells = [[row.storage, row.workers, f"{row.data_set:.0f}", f"{row.grown:.0f}"] for row in rows]
    return tabulate(cells, ["data set as", "workers", "packed, MB", "growth of workers, MB"], disable_numparse=True)


def _random_entries(images: int) -> list[dict[str, Any]]:
    content, _ = random_boxes(images, detections=0)
    objects: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        fields = {"iscrowd": 0, "bbox": entry["bbox"], "category_id": entry["category_id"] - 1}
        objects.setdefault(entry["image_id"], []).append({**fields, "bbox_mode": BoxMode.XYWH_ABS})
    return [{**image, "image_id": image["id"], "annotations": objects[image["id"]]} for image in content["images"]]


def _in_order(entries: Any) -> TrainingSampler:
    return TrainingSampler(len(entries), shuffle=False)


def _private_memory(image: dict[str, Any]) -> dict[str, float]:
    """A mapper; for the first image of a batch it returns this process's private memory in MB, by process id."""
    copy.deepcopy(image)  # as in detectron2's mapper
    if image["image_id"] % BATCH != 1:
        return {}
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return {str(os.getpid()): kilobytes / 1024}
