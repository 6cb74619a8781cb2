"""The settings of `se-det quickstart`, and the commands that it runs."""

import json
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from se_detection.config.read_config import read_config
from se_detection.engine import quickstart
from se_detection.engine.quickstart import ON_CPU, ON_GPU, DataSize, Quickstart, choose_settings, measure_data
from se_detection.engine.user_data import CONVERTED, read_data_folders
from se_detection.model_zoo import find_config_file
from se_detection_cli.main import main, main_parser

from ..data.exports import write_yolo
from ..helpers import REPOSITORY, raises

# As in Shenggan's BCCD.
CELLS = DataSize(images=205, boxes=2804, classes=3, evaluated=87, short_side=480, small=0.1)


def write_coco(path: Path, sides: list[tuple[int, int]], boxes: list[tuple[int, float, float, int]]) -> None:
    """Images by width and height, and boxes by image, width, height and whether they are crowds."""
    images = [{"id": i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (w, h) in enumerate(sides)]
    annotations = [
        {"id": i, "image_id": image, "category_id": 7, "bbox": [0, 0, w, h], "area": w * h, "iscrowd": crowd}
        for i, (image, w, h, crowd) in enumerate(boxes, 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "cell"}]}
    path.write_text(json.dumps(content))


@pytest.fixture
def words(tmp_path) -> list[str]:
    write_coco(
        tmp_path / "train.json", [(200, 100), (60, 300), (50, 50)], [(0, 20, 5, 0), (0, 50, 50, 0), (1, 6, 6, 0)]
    )
    write_coco(tmp_path / "val.json", [(200, 100)], [(0, 20, 5, 0)])
    (tmp_path / "photos").mkdir()
    flags = [f"--{split}-{what}={tmp_path / file}" for split in ("train", "val") for what, file in of(split)]
    return ["quickstart", *flags, f"--output={tmp_path / 'out'}"]


def of(split: str) -> list[tuple[str, str]]:
    return [("json", f"{split}.json"), ("images", "photos")]


def parse(words: list[str]) -> Namespace:
    return main_parser().parse_args(words)


def test_what_is_measured(words, tmp_path) -> None:
    # The third image has no objects, and training skips it; the sides of objects are 10, 50 and 6 pixels.
    expected = DataSize(images=2, boxes=3, classes=1, evaluated=1, short_side=80, small=pytest.approx(0.1, abs=0.05))
    assert measure_data(parse(words)) == expected
    write_coco(tmp_path / "train.json", [(200, 100), (60, 300)], [(0, 90, 90, 1), (1, 6, 6, 0)])
    assert measure_data(parse(words)) == DataSize(1, 1, 1, 1, 60, 0.1)
    with raises("data.no_sets", "--val-json"):
        measure_data(parse([word for word in words if "val" not in word]))


@pytest.mark.parametrize("memory", [None, 8.0])
def test_steps_grow_with_the_root_of_the_number_of_images(memory) -> None:
    few, many = (choose_settings(replace(CELLS, images=n), memory).overrides for n in (400, 1600))
    assert many["SOLVER.MAX_ITER"] == pytest.approx(2 * few["SOLVER.MAX_ITER"], rel=0.01)
    assert choose_settings(replace(CELLS, images=3), memory).overrides["SOLVER.IMS_PER_BATCH"] == 3


@pytest.mark.parametrize(
    ("short_side", "small", "expected"),
    [(480, 0.1, 320), (213, 0.05, 224), (448, 0.045, 384), (448, 0.01, 448), (2000, 0.001, 640), (60, 0.2, 160)],
)
def test_the_size_of_images_on_a_cpu(short_side, small, expected) -> None:
    """A tenth of the objects may be smaller than 16 pixels, the smallest anchor; images are hardly enlarged."""
    chosen = choose_settings(replace(CELLS, short_side=short_side, small=small), None).overrides
    assert chosen["INPUT.MIN_SIZE_TEST"] == expected
    assert chosen["INPUT.MIN_SIZE_TRAIN"] == f"({expected},)"


def test_a_gpu_gets_the_tables_of_the_page() -> None:
    """docs/YOUR_DATA.md: batch and rate by memory; passes and steps by images."""
    page = (REPOSITORY / "docs/YOUR_DATA.md").read_text()
    rows = re.findall(r"^\| (?:`SOLVER.IMS|`SOLVER.BASE|GPU memory).*", page, re.MULTILINE)
    columns = list(zip(*(re.findall(r"\d[\d.]*", row) for row in rows), strict=True))
    assert len(columns) == 5
    for batch, rate, memory in columns:
        chosen = choose_settings(replace(CELLS, images=10_000), float(memory)).overrides
        assert (chosen["SOLVER.IMS_PER_BATCH"], chosen["SOLVER.BASE_LR"]) == (int(batch), float(rate))
    rows = re.findall(r"^\| ([\d,]+) \| (\d+) \| ([\d,]+) \| `", page, re.MULTILINE)
    assert len(rows) == 4
    for images, passes, steps in rows:
        number = int(images.replace(",", ""))
        chosen = choose_settings(replace(CELLS, images=number), 6.0).overrides
        assert int(steps.replace(",", "")) == pytest.approx(chosen["SOLVER.MAX_ITER"], rel=0.03)
        assert int(passes) == pytest.approx(chosen["SOLVER.MAX_ITER"] * 4 / number, rel=0.03)


@pytest.mark.parametrize(("memory", "configs"), [(None, ON_CPU), (24.0, ON_GPU)])
def test_the_commands_are_those_of_the_tools(words, memory, configs) -> None:
    args = parse([*words, "SOLVER.MAX_ITER", "7"])
    built = Quickstart(args, choose_settings(CELLS, memory))
    found = []
    for run, command in built.trainings():
        training = parse(command)
        assert (training.train_json, training.val_images) == (args.train_json, args.val_images)
        cfg = read_config(find_config_file(training.config_file), training.opts)
        assert (cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (str(run), 7, 1)
        found.append(training.config_file)
    assert tuple(found) == configs
    compared = parse(built.comparison())
    assert [*compared.baseline, *compared.candidate] == [run for run, _ in built.trainings()]
    with raises("config.unknown_key", "SOLVER.STEPZ"):
        Quickstart(parse([*words, "SOLVER.STEPZ", "7"]), built.settings)


def test_a_dry_run_writes_nothing(words, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["se-det", *words, "--dry-run"])
    main()
    out = capsys.readouterr().out
    assert out.count("se-det train") == 2
    assert [line.partition(":")[0] for line in out.splitlines()[:5]] == ["data", "device", "size", "batch", "steps"]
    assert not (tmp_path / "out").exists()


def test_a_folder_is_given_on_to_the_trainings(tmp_path, monkeypatch, capsys) -> None:
    for part in ("train", "valid"):
        write_yolo(tmp_path / "data" / part / "images", tmp_path / "data" / part / "labels")
    (tmp_path / "data/data.yaml").write_text("train: train/images\nval: valid/images\nnames: [car, bicycle]\n")
    words = ["quickstart", "--train-data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["se-det", *words, "--dry-run"])
    main()
    out = capsys.readouterr().out
    assert out.startswith("data: 2 images with 3 objects of 2 classes to train on, 3 to evaluate on")
    data = f"--train-data {tmp_path / 'data'} --val-data {tmp_path / 'data'}"
    assert [data in line for line in out.splitlines() if "se-det train" in line] == [True, True]
    assert not (tmp_path / "out").exists()
    # A training reads the folder into the same file as quickstart, which looks at the file's digest.
    args = parse(["train", "--config-file", "x", *words[1:3]])
    cache = tmp_path / "out" / CONVERTED
    read_data_folders(args, cache)
    assert sorted(map(str, cache.iterdir())) == sorted([*args.train_json, *args.val_json])


def test_it_continues_where_it_was_stopped(words, tmp_path, monkeypatch) -> None:
    args = parse(words)
    started = Quickstart(args, choose_settings(CELLS, None))
    codes, called, done = [0, 130], [], set()

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        called.append(command[3])
        code = codes.pop(0)
        done.update([Path(command[-1])] if code == 0 else [])
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(quickstart, "_is_finished", lambda path: path in done)
    with pytest.raises(SystemExit) as stopped:
        started.run()
    assert (stopped.value.code, called) == (130, ["train", "train"])
    codes += [0, 0]
    started.run()
    assert called[2:] == ["train", "compare"]
    compared = {name: {"AP": 12.3, "AP50": 45.6} for name in ("baseline", "candidate")}
    (tmp_path / "out/comparison.json").write_text(json.dumps({**compared, "verdict": "no difference"}))
    assert "AP 12.3, AP@0.5 45.6" in started.summary()
    # Other settings, or other data, are another quickstart.
    with raises("output.exists", tmp_path / "out", "--output"):
        Quickstart(args, choose_settings(CELLS, 24.0)).run()
    write_coco(tmp_path / "train.json", [(200, 100)], [(0, 20, 5, 0)])
    with raises("output.exists", tmp_path / "out", "--output"):
        started.run()


def test_another_run_is_not_touched(words, tmp_path) -> None:
    (tmp_path / "out/se").mkdir(parents=True)
    with raises("output.exists", tmp_path / "out/se"):
        Quickstart(parse(words), choose_settings(CELLS, None)).run()
