import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from se_detection import UserError
from se_detection.data.coco_sets import register_coco_json
from se_detection.data.image_files import BadImage
from se_detection.data.train_loader import ORDER, SKIPPED, Phase, TrainLoader, seed_cpu, seed_everything

from ..helpers import raises

IMAGES = [
    {"file_name": f"{index}.jpg", "width": 4 if index % 3 else 2, "height": 3, "index": index} for index in range(23)
]


def noisy(item):
    """An image with random content, as after augmentation."""
    return {**item, "noise": (torch.rand(()).item(), float(np.random.rand()), random.random())}


def make_loader(batch_size, *, grouping=True, workers=0, seed=5, start=0, phases=()) -> TrainLoader:
    loader = TrainLoader(
        IMAGES,
        mapper=noisy,
        make_sampler=lambda dataset: TrainingSampler(len(dataset), seed=7),
        total_batch_size=batch_size,
        aspect_ratio_grouping=grouping,
        num_workers=workers,
    )
    loader.start_at(start, seed=seed, phases=phases)
    return loader


def take(loader: TrainLoader, count: int) -> list[list[dict]]:
    return list(itertools.islice(loader, count))


def indices(batches) -> list[list[int]]:
    return [[item["index"] for item in batch] for batch in batches]


@pytest.mark.parametrize("grouping", [True, False])
def test_batches_match_detectron2(grouping) -> None:
    theirs = build_detection_train_loader(
        IMAGES,
        mapper=lambda item: item,
        sampler=TrainingSampler(len(IMAGES), seed=7),
        total_batch_size=4,
        aspect_ratio_grouping=grouping,
    )
    expected = indices(itertools.islice(theirs, 30))
    assert indices(take(make_loader(4, grouping=grouping), 30)) == expected


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"])
def test_samplers_from_a_config_match_detectron2(name, data_set) -> None:
    for index, annotation in enumerate(data_set.content["annotations"]):
        # Rare and frequent classes, which RepeatFactorTrainingSampler treats differently.
        annotation["category_id"] = 1 + (index < 30) + (index < 9)
    data_set.write()
    register_coco_json(name, data_set.json_file, data_set.images)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.NUM_WORKERS = name, 0
    cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.9, 0.5
    cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 4, 11
    ours = TrainLoader.from_cfg(cfg, mapper=lambda item: item)
    ours.start_at(0, seed=11, phases=())
    found = [[item["image_id"] for item in batch] for batch in take(ours, 40)]
    # detectron2's order depends only on this generator.
    np.random.seed(np.random.SeedSequence((11, ORDER)).generate_state(4))
    theirs = build_detection_train_loader(cfg, mapper=lambda item: item)
    assert found == [[item["image_id"] for item in batch] for batch in itertools.islice(theirs, 40)]
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(name)


def test_indivisible_batch_sizes_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with raises("config.batch_size", "SOLVER.IMS_PER_BATCH", 4, 3):
        make_loader(4)


@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_batches_depend_only_on_seed_and_iteration(workers) -> None:
    expected = take(make_loader(4), 20)
    assert len({item["noise"] for batch in expected for item in batch}) == 80
    for start in (0, 1, 7, 13):
        torch.manual_seed(start)
        loader = make_loader(4, workers=workers, start=start, phases=[Phase(0, 1, 4)])
        assert take(loader, 20 - start) == expected[start:]
    assert take(make_loader(4, seed=6), 20) != expected


def test_changing_the_number_of_processes_skips_no_image(monkeypatch) -> None:
    """1 process, then 4, 2 and 1: all images come equally often, except for those that wait for their group."""
    phases, seen = [], []
    for start, processes, steps in ((0, 1, 9), (9, 4, 5), (14, 2, 3), (17, 1, 6)):
        monkeypatch.setattr(comm, "get_world_size", lambda processes=processes: processes)
        shares = []
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            loader = make_loader(4, start=start, phases=phases)
            assert loader.batch_size == 4 // processes
            picks = list(itertools.islice(loader.picks(), steps))
            assert all(len({IMAGES[index]["width"] for _, index in batch}) == 1 for batch in picks)
            shares.append(picks)
        phases = loader.phases
        seen += [pick for share in shares for batch in share for pick in batch]
    assert phases == [Phase(0, 1, 4), Phase(9, 4, 1), Phase(14, 2, 2), Phase(17, 1, 4)]
    assert len(set(seen)) == len(seen) == 23 * 4
    positions = [position for position, _ in seen]
    skipped = set(range(max(positions))) - set(positions)
    assert len(skipped) < 2 * 4, "only images that wait for their group may be missing"
    times = Counter(index for _, index in seen)
    assert max(times.values()) - min(times.values()) <= 2


def test_each_number_of_the_key_changes_the_seed() -> None:
    def sample(*key):
        seed_everything(*key)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    keys = [(0, 2, 0, 0), (0, 2, 0, 1), (0, 2, 1, 0), (1, 2, 0, 0), (0, 1, 0, 0)]
    samples = [sample(*key) for key in keys]
    assert [sample(*key) for key in keys] == samples
    for values in zip(*samples, strict=True):
        assert len(set(values)) == len(keys)


def test_seed_cpu_matches_seed_everything_on_the_cpu(monkeypatch) -> None:
    def sample() -> tuple:
        return torch.rand(5).tolist(), torch.initial_seed(), np.random.rand(5).tolist(), random.random()

    seed_everything(3, 1, 4)
    expected = sample()
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_cpu(3, 1, 4)
    assert sample() == expected
    assert seeds == []
    seed_everything(3, 1, 4)
    assert seeds == [expected[1]]


def tall(index: int) -> bool:
    return index % 3 == 0


def failing_mappers(*bad: int):
    """A mapper that raises an error for some images, and one that returns None for them."""

    def refuse(item):
        if item["index"] in bad:
            raise UserError("data.bad_image", f"image {item['file_name']} can't be used") from OSError("it is\ncut")
        return noisy(item)

    def drop(item):
        return None if item["index"] in bad else noisy(item)

    return refuse, drop


def take_with_skipped(loader: TrainLoader, count: int):
    """Batches, and the bad images that each of their images replaces."""
    batches = take(loader, count)
    return batches, [[item.pop(SKIPPED, []) for item in batch] for batch in batches]


@pytest.mark.parametrize("grouping", [True, False])
def test_only_bad_images_are_replaced(grouping) -> None:
    bad = (4, 5, 6, 20)
    whole = take(make_loader(4, grouping=grouping), 40)
    refuse, drop = failing_mappers(*bad)
    loader = make_loader(4, grouping=grouping)
    loader.mapper = drop
    dropped = take(loader, 40)
    loader.mapper = refuse
    loader.skip([])
    refused, skipped = take_with_skipped(loader, 40)
    assert refused == dropped
    loader.mapper = noisy
    loader.skip([BadImage(f"{index}.jpg", 4 if index % 3 else 2, 3, "known") for index in bad])
    assert take_with_skipped(loader, 40) == (dropped, [[[]] * 4] * 40)
    taken = Counter()
    for before, after, reasons in zip(whole, refused, skipped, strict=True):
        for old, new, images in zip(before, after, reasons, strict=True):
            if old["index"] not in bad:
                assert old == new
                continue
            taken[new["index"]] += 1
            assert new["index"] not in bad
            assert new["noise"] == old["noise"]
            assert tall(new["index"]) == tall(old["index"]) or not grouping
            # Other bad images may have been tried before the replacement.
            assert (f"{old['index']}.jpg", "it is cut") == (images[0].file_name, images[0].reason)
            assert {image.file_name for image in images} <= {f"{index}.jpg" for index in bad}
    # Replacements are random, not always the same images.
    assert max(taken.values()) < sum(taken.values()) / 2


def test_bad_images_are_identified_by_file_and_size() -> None:
    loader = make_loader(4)
    loader.skip([BadImage("5.jpg", 4, 7, "annotated with another size elsewhere")])
    assert take(loader, 12) == take(make_loader(4), 12)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_replacements_do_not_depend_on_workers_processes_or_start(workers, monkeypatch) -> None:
    def make(**options) -> TrainLoader:
        loader = make_loader(4, **options)
        loader.mapper = failing_mappers(3, 4, 11)[0]
        loader.skip([])
        return loader

    expected, _ = take_with_skipped(make(), 20)
    assert take_with_skipped(make(workers=workers, start=7, phases=[Phase(0, 1, 4)]), 13)[0] == expected[7:]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(take_with_skipped(make(workers=workers), 20)[0])
    ours = [item["index"] for pair in zip(*shares, strict=True) for batch in pair for item in batch]
    # The same images, in batches of two.
    monkeypatch.undo()
    halves = make_loader(2)
    halves.mapper = failing_mappers(3, 4, 11)[0]
    halves.skip([])
    assert ours == [item["index"] for batch in take_with_skipped(halves, 40)[0] for item in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_errors_unless_skipped(workers) -> None:
    loader = make_loader(4, workers=workers)
    loader.mapper = failing_mappers(3)[0]
    with raises("data.bad_image", "image 3.jpg"):
        take(loader, 20)
    loader.mapper = failing_mappers(*range(23))[0]
    loader.skip([])
    with raises("data.no_images", "it is cut"):
        take(loader, 1)
