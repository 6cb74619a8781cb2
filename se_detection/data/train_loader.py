"""Training batches that depend only on a seed and the iteration.

A resumed run, also with another number of processes or data loading workers, gets the same images with the same
augmentation as a run without interruption.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import UserError, counted
from .image_files import BadImage, ImageKey, image_key, reason
from .workers import SignalSafeLoader

MappedImage = dict[str, Any]
Mapper = Callable[[MappedImage], MappedImage | None]

# The purpose of a seed: random streams of different purposes are independent.
ORDER, AUGMENTATION, STEP, REPLACEMENT = range(4)
# The key of an image dict that lists the bad images it replaces, as `BadImage`.
SKIPPED = "skipped"


class Phase(NamedTuple):
    """The number of processes and the batch size of each process, from an iteration on."""

    iteration: int
    processes: int
    batch_size: int


def seed_everything(*key: int) -> None:
    """Seeds torch on all devices, numpy and random from a key of integers."""
    seed_cpu(*key)
    torch.manual_seed(torch.initial_seed())


def seed_cpu(*key: int) -> None:
    """As :func:`seed_everything`, but without torch's other devices, which take longest to seed."""
    sequence = np.random.SeedSequence(key)
    torch.default_generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    np.random.seed(sequence.generate_state(4))
    random.seed(int(sequence.generate_state(1)[0]))


class TrainLoader:
    """Endless batches for one process, as from `build_detection_train_loader`, starting at any iteration.

    All processes share one stream of images from detectron2's sampler. With aspect ratio grouping, a batch has only
    images that are wider than high, or only others; images wait until their group is large enough for a batch, also
    across phases of a run.

    Args:
        mapper: called with a copy of a dataset dict. If it returns None, another image takes the place, from the same
            aspect ratio group if possible, chosen by the seed and the position in the stream.
        make_sampler: builds detectron2's sampler for the data set; it may use numpy's generator, which has been seeded.
        dataset, total_batch_size, aspect_ratio_grouping, num_workers: as in detectron2.

    Raises:
        UserError: the number of processes does not divide the batch size.
    """

    def __init__(
        self,
        dataset: Sequence[MappedImage],
        *,
        mapper: Mapper,
        make_sampler: Callable[[DatasetFromList], Sampler[int]],
        total_batch_size: int,
        aspect_ratio_grouping: bool,
        num_workers: int,
    ) -> None:
        self.batch_size, rest = divmod(total_batch_size, comm.get_world_size())
        if rest:
            processes = counted(comm.get_world_size(), "process", "processes")
            problem = f"{total_batch_size} can't be shared equally by {processes}"
            raise UserError("config.batch_size", f"SOLVER.IMS_PER_BATCH: {problem}; use a multiple")
        self.groups = [int(item["width"] > item["height"]) if aspect_ratio_grouping else 0 for item in dataset]
        self.fingerprint = _fingerprint(dataset)
        # Serialized, in memory that the data loading workers share.
        self.dataset = DatasetFromList(dataset, copy=False)
        self.mapper = mapper
        self.make_sampler = make_sampler
        self.num_workers = num_workers
        self.bad_images: set[ImageKey] | None = None
        self.start_at(0, seed=0, phases=())

    @classmethod
    def from_cfg(cls, cfg: CfgNode, mapper: Mapper) -> "TrainLoader":
        """Reads `DATASETS`, `DATALOADER` and `SOLVER.IMS_PER_BATCH` as detectron2 does.

        Raises:
            UserError: annotations lack the masks or keypoints that the detector is trained on.
        """
        parts = build_detection_train_loader.from_config(cfg, mapper=mapper)
        del parts["sampler"]
        for key, wanted in (("MASK_ON", "segmentation"), ("KEYPOINT_ON", "keypoints")):
            if cfg.MODEL[key]:
                _check_annotations(parts["dataset"], wanted, f"MODEL.{key}")

        def make_sampler(dataset: DatasetFromList) -> Sampler[int]:
            return build_detection_train_loader.from_config(cfg, mapper=mapper, dataset=dataset)["sampler"]

        return cls(make_sampler=make_sampler, **parts)

    def skip(self, images: Iterable[BadImage]) -> None:
        """Replaces these images by others, and from now on also those that the mapper raises a :class:`UserError` for.

        All other images keep their places. A replacement lists in `skipped` the bad images found while choosing it.
        """
        self.bad_images = {image.key for image in images}

    def start_at(self, iteration: int, *, seed: int, phases: Sequence[Phase]) -> None:
        """Starts the batches at an iteration of a run whose earlier iterations had these phases."""
        self.seed = seed
        self.phases = [phase for phase in phases if phase.iteration < iteration]
        now = Phase(iteration, comm.get_world_size(), self.batch_size)
        if not self.phases or self.phases[-1][1:] != now[1:]:
            self.phases.append(now)
        self.iteration = iteration

    def __iter__(self) -> Iterator[list[MappedImage]]:
        images = _Mapped(self.dataset, self.groups, self.mapper, self.seed, self.bad_images)
        loader = DataLoader(images, batch_sampler=self.picks(), num_workers=self.num_workers, collate_fn=list)
        return iter(SignalSafeLoader(loader))

    def picks(self) -> Iterator[list[tuple[int, int]]]:
        """This process's batches from the start iteration on, as (position in the stream, index in the data set)."""
        np.random.seed(np.random.SeedSequence((self.seed, ORDER)).generate_state(4))
        sampler = self.make_sampler(self.dataset)
        # Each process needs the whole stream; iterating over a detectron2 sampler gives only one process's share.
        stream = enumerate(sampler._infinite_indices())  # type: ignore[attr-defined]
        waiting: dict[int, list[tuple[int, int]]] = defaultdict(list)

        def take(size: int) -> list[tuple[int, int]]:
            # More than one batch may be waiting after a phase with larger batches.
            full = next((group for group in waiting.values() if len(group) >= size), None)
            while full is None:
                position, index = next(stream)
                group = waiting[self.groups[index]]
                group.append((position, index))
                full = group if len(group) >= size else None
            taken = full[:size]
            del full[:size]
            return taken

        ends = [phase.iteration for phase in self.phases[1:]] + [self.iteration]
        for phase, end in zip(self.phases, ends, strict=True):
            for _ in range((end - phase.iteration) * phase.processes):
                take(phase.batch_size)
        while True:
            batches = [take(self.batch_size) for _ in range(comm.get_world_size())]
            yield batches[comm.get_rank()]


@dataclass
class _Mapped(Dataset[MappedImage]):
    """Mapped images by (position, index); the position in the stream seeds the augmentation."""

    dataset: DatasetFromList
    groups: Sequence[int]
    mapper: Mapper
    seed: int
    bad_images: set[ImageKey] | None

    def __getitem__(self, pick: tuple[int, int]) -> MappedImage:
        position, index = pick
        skipped: list[BadImage] = []
        for candidate in chain([index], self._others(position, index)):
            item = self.dataset[candidate]
            key = image_key(item)
            if self.bad_images is not None and key in self.bad_images:
                continue
            seed_cpu(self.seed, AUGMENTATION, position)
            try:
                image = self.mapper(item)
            except UserError as error:
                if self.bad_images is None:
                    raise
                skipped.append(BadImage(*key, reason(error.__cause__ or error)))
            else:
                if image is not None:
                    return {**image, SKIPPED: skipped} if skipped else image
        last = f": {skipped[-1].file_name}: {skipped[-1].reason}" if skipped else ""
        raise UserError("data.no_images", f"no image of the training data can be used{last}; check the image folder")

    def _others(self, position: int, index: int) -> Iterator[int]:
        """All other images in random order, those of the same group first."""
        generator = np.random.RandomState(np.random.SeedSequence((self.seed, REPLACEMENT, position)).generate_state(4))
        order = generator.permutation(len(self.groups))
        differs = np.asarray(self.groups)[order] != self.groups[index]
        yield from (int(other) for other in order[np.argsort(differs, kind="stable")] if other != index)


def _check_annotations(dataset: Iterable[MappedImage], wanted: str, key: str) -> None:
    for item in dataset:
        objects = [entry for entry in item.get("annotations", ()) if not entry.get("iscrowd")]
        if lacking := sum(not entry.get(wanted) for entry in objects):
            where = f"{key}: objects without {wanted!r} in {item['file_name']}: {lacking} of {len(objects)}"
            message = f"{where}; add them, use other data, or set {key} to False"
            raise UserError("data.no_masks" if key == "MODEL.MASK_ON" else "data.no_keypoints", message)


def _fingerprint(dataset: Iterable[MappedImage]) -> str:
    """A hash of the images' names, sizes, labels and numbers of annotations; the same on any machine."""
    digest = hashlib.sha256()
    for item in dataset:
        name = Path(item["file_name"]).name
        parts = [name, item.get("width"), item.get("height"), len(item.get("annotations", ()))]
        parts += [item["label"]] if "label" in item else []
        digest.update((" ".join(map(str, parts)) + "\n").encode())
    return digest.hexdigest()
