"""What the training loader's processes hold of a large data set."""

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

from .loop import made_up_boxes

MEGABYTE = 1024 * 1024
BATCH = 500
OURS, OBJECTS = "ours", "Python objects"


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """What the loading processes added to their own memory while they went through the data set once.

    Args:
        arm: `ours`, or the same loader over a plain list, whose objects each process comes to copy.
        workers: how many processes.
        data_set: megabytes of the data set in the process that trains, as detectron2 packs it.
        grown: megabytes that the processes took for themselves, all of them together.
    """

    arm: str
    workers: int
    data_set: float
    grown: float


def loader_memory(images: int, workers: Sequence[int]) -> list[MemoryRow]:
    """Loads every image of a made-up data set once, with one number of processes after another.

    The entries are not read: what is measured is their annotations, which are made as for the evaluation's benchmark.
    Memory is what Linux counts as private of a process; pages that are shared with the training process are not in it.
    """
    entries = _made_up_entries(images)
    packed = sum(len(pickle.dumps(image, protocol=-1)) for image in entries) / MEGABYTE
    rows = []
    for arm in (OURS, OBJECTS):
        for number in workers:
            loader = TrainLoader(
                entries,
                mapper=_private_memory,
                make_sampler=_in_order,
                total_batch_size=BATCH,
                aspect_ratio_grouping=False,
                num_workers=number,
            )
            if arm == OBJECTS:
                loader.dataset = DatasetFromList(entries, copy=False, serialize=False)
            first: dict[str, float] = {}
            last: dict[str, float] = {}
            stream = iter(loader)
            for _ in tqdm(range(0, images, BATCH), f"{arm}, {number} processes", disable=None):
                for process, memory in next(stream)[0].items():
                    first.setdefault(process, memory)
                    last[process] = memory
            grown = sum(last[process] - first[process] for process in last)
            rows.append(MemoryRow(arm=arm, workers=number, data_set=packed, grown=grown))
    return rows


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """A row for each arm and number of processes."""
    cells = [[row.arm, row.workers, f"{row.data_set:.0f}", f"{row.grown:.0f}"] for row in rows]
    return tabulate(cells, ["data set as", "processes", "packed, MB", "processes grew by, MB"], disable_numparse=True)


def _made_up_entries(images: int) -> list[dict[str, Any]]:
    content, _ = made_up_boxes(images, detections=0)
    objects: dict[int, list[dict[str, Any]]] = {}
    for entry in content["annotations"]:
        fields = {"iscrowd": 0, "bbox": entry["bbox"], "category_id": entry["category_id"] - 1}
        objects.setdefault(entry["image_id"], []).append({**fields, "bbox_mode": BoxMode.XYWH_ABS})
    return [{**image, "image_id": image["id"], "annotations": objects[image["id"]]} for image in content["images"]]


def _in_order(entries: Any) -> TrainingSampler:
    return TrainingSampler(len(entries), shuffle=False)


def _private_memory(image: dict[str, Any]) -> dict[str, float]:
    """In place of a mapper: of the first image of a batch, megabytes of this process's own, by its number."""
    copy.deepcopy(image)  # as detectron2's mapper does
    if image["image_id"] % BATCH != 1:
        return {}
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return {str(os.getpid()): kilobytes / 1024}
