"""Damaged annotations, results and run folders give a one-line error, or the same AP as pycocotools."""

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from se_detection import UserError
from se_detection.comparison.compare import compare
from se_detection.comparison.compare_runs import compare_runs
from se_detection.comparison.matching import match_boxes
from se_detection.comparison.page.comparison_page import write_html_report
from se_detection.comparison.page.image_section import disagreement_blocks
from se_detection.comparison.result import ROLES
from se_detection.comparison.side_by_side import draw_side_by_side
from se_detection.data.coco_files import EVALUATED, data_difference, load_annotations, load_results, silenced
from se_detection.runs.evaluated_run import read_run
from se_detection.runs.metrics import read_training_curve

from ..fuzzing import Tally, damaged, examples

BOX = {"category_id": 3, "area": 400.0, "iscrowd": 0}
ANNOTATIONS = {
    "images": [{"id": 5, "file_name": "5.png", "width": 80, "height": 60}, {"id": 6, "file_name": "sub/6.png"}],
    "annotations": [
        {"id": 1, "image_id": 5, "bbox": [2, 5.5, 20, 20], **BOX},
        {"id": 2, "image_id": 5, "bbox": [30, 5.5, 40, 50], **BOX, "category_id": 7, "area": 2000},
        {"id": 3, "image_id": 6, "bbox": [9, 9, 20, 20], **BOX, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "plate"}],
}
RESULTS = [
    {"image_id": 5, "category_id": 3, "bbox": [2.5, 5, 20, 21.5], "score": 0.9},
    {"image_id": 5, "category_id": 7, "bbox": [31, 5, 30, 41.5], "score": 0.8},
    {"image_id": 6, "category_id": 3, "bbox": [2.5, 5, 10, 11.5], "score": 0.7},
]
RECORD = {
    "command": "train_net.py --num-gpus 2",
    "backbone": "build_resnet_fpn_backbone",
    "depth": 50,
    "backbone_input": [480, 640],
    "parameters": 41_700_000,
    "backbone_gflops": 80.5,
    "classes": ["cup", "plate"],
    "data": {"train": {"json": "train.json", "images": "train"}},
    "processes": 2,
    "resumed": [],
    "device": "cpu",
    "versions": {"torch": "2.11"},
}


@pytest.fixture
def tally(request) -> Iterator[Tally]:
    found = Tally(request.param)
    yield found
    print(f"\n{found}")
    # With few examples, all may have the same outcome.
    assert sum(found.counts.values()) < 20 or (found.counts["refused"] and found.counts["read"])


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("tally", ["COCO annotations, evaluation"], indirect=True)
@examples(60)
@given(data=damaged(ANNOTATIONS))
def test_annotations(tally, reference, tmp_path, data) -> None:
    json_file = write(tmp_path / "val.json", data)
    coco = tally.refused(load_annotations, json_file)
    if coco is None:
        return
    content = json.loads(data)
    assert len(coco.anns) == len(content["annotations"])
    assert sum(map(len, coco.imgToAnns.values())) == len(content["annotations"])
    found = [{key: item[key] for key in ("image_id", "category_id", "bbox")} for item in content["annotations"]]
    results = [{**item, "score": 1 - 0.01 * number} for number, item in enumerate(found)]
    assert load_results(results, coco, "results") == results
    ours = compare(results, [], json_file, n_bootstrap=100).baseline["AP"]
    # Other fields may be nested too deeply to be copied; they don't matter here.
    known = {
        "images": [{"id": image["id"]} for image in content["images"]],
        "annotations": [{key: item[key] for key in ("id", *EVALUATED)} for item in content["annotations"]],
        "categories": [{"id": category["id"]} for category in content["categories"]],
    }
    with silenced():
        theirs = 100 * reference(known, results)[0] if results else np.nan
    assert (np.nan if ours is None else ours) == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    data_difference(json_file, write(tmp_path / "other.json", json.dumps(ANNOTATIONS).encode()))


@pytest.mark.parametrize("tally", ["COCO results"], indirect=True)
@examples(60)
@given(data=damaged(RESULTS))
def test_results(tally, reference, tmp_path, data) -> None:
    coco = load_annotations(ANNOTATIONS)
    results = tally.refused(load_results, write(tmp_path / "results.json", data), coco, "results")
    if results is None:
        return
    assert len(results) == len(json.loads(data))
    assert sum(len(matched.cocoDt.anns) for matched in match_boxes(coco, results)) == len(results)
    if results:
        ours = compare(results, [], ANNOTATIONS, n_bootstrap=100).baseline["AP"]
        with silenced():
            theirs = 100 * reference(ANNOTATIONS, results)[0]
        assert ours == pytest.approx(theirs, abs=1e-6)


class Runs:
    """Two run folders whose files can be replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "images" / "sub").mkdir(parents=True)
        for name in ("5.png", "sub/6.png"):
            Image.new("RGB", (80, 60), (90, 120, 90)).save(folder / "images" / name)
        self.annotations = folder / "val.json"
        self.results = {
            "annotations": str(self.annotations),
            "image_root": str(folder / "images"),
            "categories": ["cup", "plate"],
            "bbox": {"AP": 30.0},
        }
        self.paths = [folder / "plain", folder / "se"]
        self.restore()

    def restore(self) -> None:
        self.annotations.write_text(json.dumps(ANNOTATIONS))
        for number, run in enumerate(self.paths):
            (run / "inference").mkdir(parents=True, exist_ok=True)
            (run / "inference" / "results.json").write_text(json.dumps(self.results))
            (run / "inference" / "coco_instances_results.json").write_text(json.dumps(RESULTS[number:]))
            (run / "run.json").write_text(json.dumps(RECORD))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def all_of(runs: Runs, folder: Path) -> None:
    """Everything that reads two runs."""
    assert read_run(runs.paths[1]).name == "se"
    read_training_curve(runs.paths[1])
    with warnings.catch_warnings():
        # matplotlib has no glyphs for some names.
        warnings.simplefilter("ignore", UserWarning)
        comparison = compare_runs(*runs.paths, n_bootstrap=100)
        write_html_report(comparison, folder / "report.html")
    json.dumps(comparison.to_dict(), allow_nan=False)
    for path in draw_side_by_side(*runs.paths, folder / "pictures", 2):
        assert path.parent == folder / "pictures"


OUTSIDE = r"'file_name' .* which must be a relative path inside the image folder"
FILES = {
    "run.json": RECORD,
    "inference/results.json": None,
    "inference/coco_instances_results.json": RESULTS,
    "../val.json": ANNOTATIONS,
    # JSON is valid YAML.
    "config.yaml": {"DATASETS": {"TRAIN": ["a"]}, "MODEL": {"ROI_HEADS": {"NAME": "Res5ROIHeads"}}, "SEED": 1},
    "metrics.json": {"iteration": 3, "total_loss": 1.5, "bbox/AP": 30.0},
    "bad_images.json": {"count": 1, "images": [{"file_name": "/a", "width": 1, "height": 2, "reason": "cut"}]},
}


@pytest.mark.parametrize("tally", ["run folder files"], indirect=True)
@examples(5)
@given(data=st.data())
def test_run_folders(tally, two_runs, tmp_path, data) -> None:
    name = data.draw(st.sampled_from(list(FILES)))
    try:
        write(two_runs.paths[1] / name, data.draw(damaged(FILES[name] or two_runs.results)))
        tally.refused(all_of, two_runs, tmp_path)
    finally:
        for extra in ("config.yaml", "metrics.json", "bad_images.json"):
            (two_runs.paths[1] / extra).unlink(missing_ok=True)
        shutil.rmtree(tmp_path / "pictures", ignore_errors=True)
        two_runs.restore()


def test_images_outside_the_image_folder_are_refused(two_runs, tmp_path) -> None:
    Image.new("RGB", (80, 60)).save(two_runs.folder / "secret.png")
    comparison = compare_runs(*two_runs.paths, n_bootstrap=100)
    try:
        for name in ("/etc/hostname", "../secret.png", "sub/../../secret.png", 5, None, "a\0.png"):
            images = [{**image, "file_name": name} for image in ANNOTATIONS["images"]]
            two_runs.annotations.write_text(json.dumps({**ANNOTATIONS, "images": images}))
            with pytest.raises(UserError, match=OUTSIDE):
                draw_side_by_side(*two_runs.paths, tmp_path / "pictures", 2)
            coco = load_annotations(two_runs.annotations)
            with pytest.raises(UserError, match=OUTSIDE):
                disagreement_blocks(coco, dict(zip(ROLES, [[read_run(path)] for path in two_runs.paths], strict=True)))
        # The page refuses them, too.
        with pytest.raises(UserError, match=OUTSIDE):
            write_html_report(comparison, tmp_path / "report.html")
    finally:
        two_runs.restore()
    assert not list(tmp_path.rglob("*.*"))


def test_annotations_that_pycocotools_would_ignore_are_refused() -> None:
    for change, expected in (
        ({"image_id": 4}, "names image 4"),
        ({"category_id": 4}, "names category 4"),
        ({"id": 2}, "the id of an earlier entry"),
        ({"id": 0}, "id 0"),
    ):
        last = {**ANNOTATIONS["annotations"][2], **change}
        content = {**ANNOTATIONS, "annotations": [*ANNOTATIONS["annotations"][:2], last]}
        with pytest.raises(UserError, match=expected):
            load_annotations(content)
    lost = COCO()
    lost.dataset = content
    lost.createIndex()
    assert len(lost.anns) == 3
