import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm

from se_detection import UserError
from se_detection.data.train_loader import ORDER, Phase, TrainLoader, seed_cpu, seed_everything

PICTURES = [
    {"file_name": f"{index}.jpg", "width": 4 if index % 3 else 2, "height": 3, "index": index} for index in range(23)
]


def noisy(item):
    """A picture whose content is chance, as augmentation's is."""
    return {**item, "noise": (torch.rand(()).item(), float(np.random.rand()), random.random())}


def loader(batch_size, *, grouping=True, workers=0, seed=5, start=0, phases=(), processes=1, rank=0) -> TrainLoader:
    made = TrainLoader(
        PICTURES,
        mapper=noisy,
        make_sampler=lambda dataset: TrainingSampler(len(dataset), seed=7),
        total_batch_size=batch_size,
        aspect_ratio_grouping=grouping,
        num_workers=workers,
    )
    made.start_at(start, seed=seed, phases=phases)
    return made


def take(made: TrainLoader, count: int) -> list[list[dict]]:
    return list(itertools.islice(made, count))


def indices(batches) -> list[list[int]]:
    return [[item["index"] for item in batch] for batch in batches]


@pytest.mark.parametrize("grouping", [True, False])
def test_batches_are_detectron2s(grouping) -> None:
    theirs = build_detection_train_loader(
        PICTURES,
        mapper=lambda item: item,
        sampler=TrainingSampler(len(PICTURES), seed=7),
        total_batch_size=4,
        aspect_ratio_grouping=grouping,
    )
    expected = indices(itertools.islice(theirs, 30))
    assert indices(take(loader(4, grouping=grouping), 30)) == expected


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"])
def test_detectron2s_samplers_are_built_from_a_config(name) -> None:
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("se_toy_train",)
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.NUM_WORKERS = name, 0
    cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.9, 0.5
    cfg.SOLVER.IMS_PER_BATCH, cfg.SEED = 4, 11
    ours = TrainLoader.from_cfg(cfg, mapper=lambda item: item)
    ours.start_at(0, seed=11, phases=())
    found = [[item["image_id"] for item in batch] for batch in take(ours, 40)]
    # What detectron2 draws from this generator is all that its order depends on.
    np.random.seed(np.random.SeedSequence((11, ORDER)).generate_state(4))
    theirs = build_detection_train_loader(cfg, mapper=lambda item: item)
    assert found == [[item["image_id"] for item in batch] for batch in itertools.islice(theirs, 40)]


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match="4 can't be shared equally by 3 processes"):
        loader(4)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_start_any_workers_and_any_state_of_the_generators_give_the_same(workers) -> None:
    expected = take(loader(4), 20)
    assert len({item["noise"] for batch in expected for item in batch}) == 80
    for start in (0, 1, 7, 13):
        torch.manual_seed(start)
        assert take(loader(4, workers=workers, start=start, phases=[Phase(0, 1, 4)]), 20 - start) == expected[start:]
    assert take(loader(4, seed=6), 20) != expected


def test_more_or_fewer_processes_leave_no_picture_out(monkeypatch) -> None:
    """1 process, then 4, 2 and 1: each picture comes as often as any other, but for those that wait."""
    phases, seen = [], []
    for start, processes, steps in ((0, 1, 9), (9, 4, 5), (14, 2, 3), (17, 1, 6)):
        monkeypatch.setattr(comm, "get_world_size", lambda processes=processes: processes)
        shares = []
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            made = loader(4, start=start, phases=phases)
            assert made.batch_size == 4 // processes
            picks = list(itertools.islice(made.picks(), steps))
            assert all(len({PICTURES[index]["width"] for _, index in batch}) == 1 for batch in picks)
            shares.append(picks)
        phases = made.phases
        seen += [pick for share in shares for batch in share for pick in batch]
    assert phases == [Phase(0, 1, 4), Phase(9, 4, 1), Phase(14, 2, 2), Phase(17, 1, 4)]
    assert len(set(seen)) == len(seen) == 23 * 4
    positions = [position for position, _ in seen]
    skipped = set(range(max(positions))) - set(positions)
    assert len(skipped) < 2 * 4, "only what waits for its group may be missing"
    times = Counter(index for _, index in seen)
    assert max(times.values()) - min(times.values()) <= 2


def test_a_step_is_seeded_by_each_of_its_numbers() -> None:
    def draw(*key):
        seed_everything(*key)
        return torch.rand(()).item(), float(np.random.rand()), random.random()

    keys = [(0, 2, 0, 0), (0, 2, 0, 1), (0, 2, 1, 0), (1, 2, 0, 0), (0, 1, 0, 0)]
    drawn = [draw(*key) for key in keys]
    assert [draw(*key) for key in keys] == drawn
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == len(keys)


def test_pictures_are_seeded_as_steps_are_but_for_other_devices(monkeypatch) -> None:
    def draw() -> tuple:
        return torch.rand(5).tolist(), torch.initial_seed(), np.random.rand(5).tolist(), random.random()

    seed_everything(3, 1, 4)
    expected = draw()
    asked = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    seed_cpu(3, 1, 4)
    assert draw() == expected
    assert asked == []
    seed_everything(3, 1, 4)
    assert asked == [expected[1]]


def test_a_picture_that_the_mapper_drops_is_replaced_by_the_next() -> None:
    made = loader(4)
    made.mapper = lambda item: None if item["index"] == 5 else item
    expected = [[6 if index == 5 else index for index in batch] for batch in indices(take(loader(4), 12))]
    assert indices(take(made, 12)) == expected
