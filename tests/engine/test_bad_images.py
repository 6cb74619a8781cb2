"""Training on data with images that can't be used."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.hooks import CallbackHook
from PIL import Image

from se_detection import UserError, model_zoo
from se_detection.data.mapper import CheckedMapper
from se_detection.engine.checks import load_config
from se_detection.engine.trainer import Trainer
from se_detection.errors import user_message
from se_detection_cli import train_command
from se_detection_cli.main import command_parser

from .conftest import SMALL

SMALLER = [
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20", "DATALOADER.NUM_WORKERS", "1", "SEED", "3", "SOLVER.MAX_ITER", "4"),
]


@pytest.fixture
def data(tiny, tmp_path, monkeypatch) -> Path:
    """Eight images to train on, and four to evaluate, that a test may spoil."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))
    shutil.copytree(tiny, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def names(data) -> list[Path]:
    """The training images."""
    return sorted((data / "train").iterdir())


def arguments(data: Path, *flags: str, resume: bool = False):
    options = [
        *(["--resume"] if resume else []),
        "--config-file",
        model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN"),
    ]
    for split in ("train", "val"):
        options += [f"--{split}-json", str(data / "annotations" / f"{split}.json")]
        options += [f"--{split}-images", str(data / split)]
    return command_parser(train_command).parse_args(
        [*flags, *options, *SMALL, *SMALLER, "OUTPUT_DIR", str(data.parent / "run")]
    )


def make_trainer(data: Path, *flags: str, resume: bool = False) -> Trainer:
    args = arguments(data, *flags, resume=resume)
    cfg = load_config(args)
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = Trainer(cfg, bad_images=args.bad_images)
    trainer.resume_or_load(resume)
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


def test_a_bad_image_is_refused(data, names) -> None:
    whole = [path.read_bytes() for path in names]
    for number in range(4):
        spoil(names)
        for other, content in enumerate(whole):
            if other != number:
                names[other].write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_config(arguments(data))
        assert names[number].name in str(caught.value)
        assert str(caught.value).endswith("or skip bad images with --skip-bad-images")
        names[number].write_bytes(whole[number])
    assert load_config(arguments(data))
    assert not (data.parent / "run").exists()


def test_bad_images_are_skipped_counted_and_listed(data, names, caplog) -> None:
    spoil(names)
    trainer = make_trainer(data, "--skip-bad-images")
    seen = Counter()
    trainer.register_hooks([CallbackHook(after_step=lambda it: seen.update(it.batches.files))])
    with caplog.at_level("WARNING", "se_detection"):
        trainer.train()
    # Four batches of four, all of them of the four whole images.
    assert set(seen) == set(map(str, names[4:]))
    assert sum(seen.values()) == 16
    found = listed(data.parent / "run")
    assert found["count"] == 4
    assert [image["file_name"] for image in found["images"]] == list(map(str, names[:4]))
    reasons = [image["reason"] for image in found["images"]]
    for reason, words in zip(reasons, ("does not exist", "truncated", "cannot identify", "has 50 and 60"), strict=True):
        assert words in reason
    assert {image["iteration"] for image in found["images"]} == {None}
    (line,) = [record.getMessage() for record in caplog.records if "are skipped" in record.getMessage()]
    assert line.startswith("4 images can't be used and are skipped; ")
    assert json.loads((data.parent / "run" / "inference" / "results.json").read_text())["images"] == 4


def test_images_that_turn_bad_in_training_are_skipped_from_then_on(data, names, caplog) -> None:
    names[0].unlink()

    def lose(trainer) -> None:
        if trainer.iter == 1:
            for path in names[1:7]:
                path.write_bytes(b"")

    trainer = make_trainer(data, "--skip-bad-images")
    trainer.register_hooks([CallbackHook(before_step=lose)])
    with caplog.at_level("WARNING", "se_detection"):
        trainer.train()
    found = listed(data.parent / "run")
    lines = [record.getMessage() for record in caplog.records if re.match(r"Iteration \d", record.getMessage())]
    assert found["count"] == len(found["images"]) == 1 + len(lines) > 2
    later = [image for image in found["images"] if image["iteration"] is not None]
    assert {image["file_name"] for image in later} <= set(map(str, names[1:7]))
    # One batch of four was loaded before, and two may wait.
    assert all(image["iteration"] >= 2 for image in later)
    for image, line in zip(later, lines, strict=True):
        assert image["file_name"] in line
    # A resumed run keeps its list.
    trainer = make_trainer(data, "--skip-bad-images", resume=True)
    trainer.train()
    again = listed(data.parent / "run")
    assert again["images"][: found["count"]] == found["images"]
    assert again["count"] == 7


def test_an_image_that_turns_bad_ends_a_training_without_the_flag(data, names) -> None:
    trainer = make_trainer(data)
    for path in names[1:]:
        path.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert user_message(caught.value).endswith("fix or remove it")
    assert not (data.parent / "run" / "bad_images.json").exists()


def test_evaluation_skips_no_image(data, names) -> None:
    with pytest.raises(UserError, match="--skip-bad-images: it is for training only"):
        load_config(arguments(data, "--skip-bad-images", "--eval-only"))
    image = sorted((data / "val").iterdir())[1]
    trainer = make_trainer(data, "--skip-bad-images")
    image.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        trainer.test(trainer.cfg, trainer.model)
    assert str(image) in user_message(caught.value)
    with pytest.raises(UserError, match=f"{image.name}.*correct, replace or remove it$"):
        load_config(arguments(data, "--skip-bad-images"))


def test_skipping_all_images_is_refused(data, names) -> None:
    for path in names:
        path.unlink()
    with pytest.raises(UserError, match="without the 8 of 8 images that can't be used, nothing to train on is left"):
        load_config(arguments(data, "--skip-bad-images"))


def test_a_custom_loader_can_not_skip(data) -> None:
    class Custom(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [[CheckedMapper(cfg, is_train=True)]]

    with pytest.raises(UserError, match="--skip-bad-images: build_train_loader must return a TrainLoader"):
        Custom(load_config(arguments(data)), bad_images=[])
