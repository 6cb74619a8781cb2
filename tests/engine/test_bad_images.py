"""Training on data with images that can't be used."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from detectron2.engine.hooks import CallbackHook
from PIL import Image

from se_detection import UserError
from se_detection.data.mapper import CheckedMapper
from se_detection.engine.checks import load_config
from se_detection.engine.trainer import Trainer

from ..helpers import raises
from .conftest import train_arguments

pytestmark = pytest.mark.usefixtures("fresh_catalogs", "build")
SKIP = ("--skip-bad-images",)


@pytest.fixture
def data(tiny, tmp_path) -> Path:
    """Eight images to train on, and four to evaluate, that a test may spoil."""
    shutil.copytree(tiny, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def names(data) -> list[Path]:
    """The training images."""
    return sorted((data / "train").iterdir())


def load(data: Path, *flags: str):
    return load_config(train_arguments(data, data.parent / "run", flags=flags))


def make_trainer(data: Path, *flags: str) -> Trainer:
    args = train_arguments(data, data.parent / "run", "DATALOADER.NUM_WORKERS", 1, flags=flags)
    trainer = Trainer(load_config(args), bad_images=args.bad_images)
    trainer.resume_or_load("--resume" in flags)
    return trainer


def spoil(paths: list[Path]) -> None:
    """One is missing, one truncated, one not an image, one of another size."""
    paths[0].unlink()
    os.truncate(paths[1], paths[1].stat().st_size // 2)
    paths[2].write_text("no image")
    with Image.open(paths[3]) as image:
        image.resize((50, 60)).save(paths[3])


def listed(run: Path) -> dict:
    return json.loads((run / "bad_images.json").read_text())


@pytest.mark.parametrize("number", range(4))
def test_a_bad_image_is_refused(data, names, number) -> None:
    whole = [path.read_bytes() for path in names]
    spoil(names)
    for other, content in enumerate(whole):
        if other != number:
            names[other].write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(data)
    assert names[number].name in caught.value.message
    assert "--skip-bad-images" in caught.value.message
    assert not (data.parent / "run").exists()


@pytest.mark.slow
def test_bad_images_are_skipped_counted_and_listed(data, names, caplog) -> None:
    spoil(names)
    trainer = make_trainer(data, *SKIP)
    seen = Counter()
    trainer.register_hooks([CallbackHook(after_step=lambda it: seen.update(it.batches.files))])
    trainer.train()
    # Four batches of two, all of them of the four whole images.
    assert set(seen) == set(map(str, names[4:]))
    assert sum(seen.values()) == 8
    found = listed(data.parent / "run")
    assert found["count"] == 4
    assert [image["file_name"] for image in found["images"]] == list(map(str, names[:4]))
    reasons = [image["reason"] for image in found["images"]]
    for reason, words in zip(reasons, ("does not exist", "truncated", "cannot identify", "has 50 and 60"), strict=True):
        assert words in reason
    assert {image["iteration"] for image in found["images"]} == {None}
    (line,) = [record.getMessage() for record in caplog.records if "will be skipped" in record.getMessage()]
    assert line.startswith("4 images can't be used and will be skipped; ")
    assert json.loads((data.parent / "run" / "inference" / "results.json").read_text())["images"] == 4


@pytest.mark.slow
def test_images_that_turn_bad_in_training_are_skipped_from_then_on(data, names, caplog) -> None:
    names[0].unlink()

    def lose(trainer) -> None:
        if trainer.iter == 1:
            for path in names[1:7]:
                path.write_bytes(b"")

    trainer = make_trainer(data, *SKIP)
    trainer.register_hooks([CallbackHook(before_step=lose)])
    trainer.train()
    found = listed(data.parent / "run")
    lines = [record.getMessage() for record in caplog.records if re.match(r"Iteration \d", record.getMessage())]
    assert found["count"] == len(found["images"]) == 1 + len(lines) > 1
    later = [image for image in found["images"] if image["iteration"] is not None]
    assert {image["file_name"] for image in later} <= set(map(str, names[1:7]))
    # One batch was loaded before, and two may wait.
    assert all(image["iteration"] >= 1 for image in later)
    for image, line in zip(later, lines, strict=True):
        assert image["file_name"] in line
    # A resumed run keeps its list.
    make_trainer(data, *SKIP, "--resume").train()
    again = listed(data.parent / "run")
    assert again["images"][: found["count"]] == found["images"]
    assert again["count"] == 7


@pytest.mark.slow
def test_an_image_that_turns_bad_ends_a_training_without_the_flag(data, names) -> None:
    trainer = make_trainer(data)
    for path in names[1:]:
        path.write_bytes(b"")
    with raises("data.bad_image"):
        trainer.train()
    assert not (data.parent / "run" / "bad_images.json").exists()


@pytest.mark.slow
def test_evaluation_skips_no_image(data, names) -> None:
    with raises("run.contradicting_flags", "--skip-bad-images"):
        load(data, *SKIP, "--eval-only")
    image = sorted((data / "val").iterdir())[1]
    trainer = make_trainer(data, *SKIP)
    image.write_bytes(b"")
    with raises("data.bad_image", image):
        trainer.test(trainer.cfg, trainer.model)
    with pytest.raises(UserError) as caught:
        load(data, *SKIP)
    assert image.name in caught.value.message


def test_skipping_all_images_is_refused(data, names) -> None:
    for path in names:
        path.unlink()
    with pytest.raises(UserError, match="8 of 8 images"):
        load(data, *SKIP)


@pytest.mark.slow
def test_a_custom_loader_can_not_skip(data) -> None:
    class Custom(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [[CheckedMapper(cfg, is_train=True)]]

    with raises("train.custom_loader", "build_train_loader"):
        Custom(load(data), bad_images=[])
