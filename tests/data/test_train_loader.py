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
from se_detection.data.image_files import BadImage
from se_detection.data.train_loader import ORDER, SKIPPED, Phase, TrainLoader, seed_cpu, seed_everything
from se_detection.errors import user_message

IMAGES = [
    {"file_name": f"{index}.jpg", "width": 4 if index % 3 else 2, "height": 3, "index": index} for index in range(23)
]


def noisy(item):
    """An image whose content is chance, as augmentation's is."""
    return {**item, "noise": (torch.rand(()).item(), float(np.random.rand()), random.random())}


def loader(batch_size, *, grouping=True, workers=0, seed=5, start=0, phases=(), processes=1, rank=0) -> TrainLoader:
    made = TrainLoader(
        IMAGES,
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
        IMAGES,
        mapper=lambda item: item,
        sampler=TrainingSampler(len(IMAGES), seed=7),
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


def test_more_or_fewer_processes_leave_no_image_out(monkeypatch) -> None:
    """1 process, then 4, 2 and 1: each image comes as often as any other, but for those that wait."""
    phases, seen = [], []
    for start, processes, steps in ((0, 1, 9), (9, 4, 5), (14, 2, 3), (17, 1, 6)):
        monkeypatch.setattr(comm, "get_world_size", lambda processes=processes: processes)
        shares = []
        for rank in range(processes):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            made = loader(4, start=start, phases=phases)
            assert made.batch_size == 4 // processes
            picks = list(itertools.islice(made.picks(), steps))
            assert all(len({IMAGES[index]["width"] for _, index in batch}) == 1 for batch in picks)
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


def test_images_are_seeded_as_steps_are_but_for_other_devices(monkeypatch) -> None:
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


def tall(index: int) -> bool:
    return index % 3 == 0


def picky(*bad: int):
    """A mapper that refuses some images, and one that drops them."""

    def refuse(item):
        if item["index"] in bad:
            raise UserError(f"image {item['file_name']} can't be used") from OSError("it is\ncut")
        return noisy(item)

    def drop(item):
        return None if item["index"] in bad else noisy(item)

    return refuse, drop


def told(made: TrainLoader, count: int):
    """Batches, and what was left out by each of their images."""
    batches = take(made, count)
    return batches, [[item.pop(SKIPPED, []) for item in batch] for batch in batches]


@pytest.mark.parametrize("grouping", [True, False])
def test_others_take_the_places_of_bad_images_and_all_the_rest_stays(grouping) -> None:
    bad = (4, 5, 6, 20)
    whole = take(loader(4, grouping=grouping), 40)
    refuse, drop = picky(*bad)
    made = loader(4, grouping=grouping)
    made.mapper = drop
    dropped = take(made, 40)
    made.mapper = refuse
    made.skip([])
    refused, skipped = told(made, 40)
    assert refused == dropped
    made.mapper = noisy
    made.skip([BadImage(f"{index}.jpg", 4 if index % 3 else 2, 3, "known") for index in bad])
    assert told(made, 40) == (dropped, [[[]] * 4] * 40)
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
            # Whoever took the place may have been drawn after others that are bad as well.
            assert (f"{old['index']}.jpg", "it is cut") == (images[0].file_name, images[0].reason)
            assert {image.file_name for image in images} <= {f"{index}.jpg" for index in bad}
    # By chance, not the same ones each time.
    assert max(taken.values()) < sum(taken.values()) / 2


def test_an_image_is_bad_in_one_of_the_sizes_it_is_annotated_with() -> None:
    made = loader(4)
    made.skip([BadImage("5.jpg", 4, 7, "annotated with another size elsewhere")])
    assert take(made, 12) == take(loader(4), 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_replaced_alike_by_any_workers_processes_and_start(workers, monkeypatch) -> None:
    def make(**options) -> TrainLoader:
        made = loader(4, **options)
        made.mapper = picky(3, 4, 11)[0]
        made.skip([])
        return made

    expected, _ = told(make(), 20)
    assert told(make(workers=workers, start=7, phases=[Phase(0, 1, 4)]), 13)[0] == expected[7:]
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares.append(told(make(workers=workers), 20)[0])
    ours = [item["index"] for pair in zip(*shares, strict=True) for batch in pair for item in batch]
    # The same images, in batches of two.
    monkeypatch.undo()
    halves = loader(2)
    halves.mapper = picky(3, 4, 11)[0]
    halves.skip([])
    assert ours == [item["index"] for batch in told(halves, 40)[0] for item in batch]


@pytest.mark.parametrize("workers", [0, 1])
def test_without_a_word_a_bad_image_ends_it_and_with_one_the_last_does(workers) -> None:
    made = loader(4, workers=workers)
    made.mapper = picky(3)[0]
    with pytest.raises(UserError) as caught:
        take(made, 20)
    assert user_message(caught.value) == "image 3.jpg can't be used"
    made.mapper = picky(*range(23))[0]
    made.skip([])
    with pytest.raises(UserError) as caught:
        take(made, 1)
    assert "no image of the training data can be used" in user_message(caught.value)
    assert "it is cut" in user_message(caught.value)
