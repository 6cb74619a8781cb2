"""The memory that the training loader's workers use for a large data set."""

import copy
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetFromList
from detectron2.structures import BoxMode
from tqdm import tqdm

from se_detection.data.train_loader import TrainLoader
from se_detection.errors import counted

from .loop import OURS, in_order, random_boxes

MEGABYTE = 1024 * 1024
BATCH = 500
OBJECTS = "Python objects"


def loader_memory(images: int, workers: Sequence[int]) -> list[dict[str, Any]]:
    """Loads a random data set once with each number of workers, and measures the workers' memory.

    No image is read; only the annotations of :func:`random_boxes` matter. The memory is Linux's private memory of a
    process; pages shared with the training process are not included.

    Returns:
        Rows with the storage in `arm` (`ours`, or `Python objects`: the same loader over a plain list, whose objects
        each worker copies), the number of `workers`, and in megabytes `data_set`, the size of the packed set, and
        `grown`, the growth of all workers together while they load it once.
    """
    entries = _random_entries(images)
    packed = sum(len(pickle.dumps(image, protocol=-1)) for image in entries) / MEGABYTE
    rows = []
    for storage in (OURS, OBJECTS):
        for number in workers:
            loader = TrainLoader(
                entries,
                mapper=_private_memory,
                make_sampler=in_order,
                total_batch_size=BATCH,
                aspect_ratio_grouping=False,
                num_workers=number,
            )
            if storage == OBJECTS:
                loader.dataset = DatasetFromList(entries, copy=False, serialize=False)
            first: dict[str, float] = {}
            last: dict[str, float] = {}
            stream = iter(loader)
            for _ in tqdm(range(0, images, BATCH), f"{storage}, {counted(number, 'worker')}", disable=None):
                measured = next(stream)[0]
                first = {**measured, **first}
                last |= measured
            grown = sum(last[process] - first[process] for process in last)
            rows.append({"arm": storage, "workers": number, "data_set": packed, "grown": grown})
    return rows


def _random_entries(images: int) -> list[dict[str, Any]]:
    content, _ = random_boxes(images, detections=0)
    entries = {image["id"]: {**image, "image_id": image["id"], "annotations": []} for image in content["images"]}
    for entry in content["annotations"]:
        fields = {"iscrowd": 0, "bbox": entry["bbox"], "category_id": entry["category_id"] - 1}
        entries[entry["image_id"]]["annotations"].append({**fields, "bbox_mode": BoxMode.XYWH_ABS})
    return list(entries.values())


def _private_memory(image: dict[str, Any]) -> dict[str, float]:
    """A mapper; for the first image of a batch it returns this process's private memory in MB, by process id."""
    copy.deepcopy(image)  # as in detectron2's mapper
    if image["image_id"] % BATCH != 1:
        return {}
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    kilobytes = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
    return {str(os.getpid()): kilobytes / 1024}
