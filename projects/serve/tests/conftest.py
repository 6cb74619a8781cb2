"""Two small runs, with and without SE, and their detectors."""

from pathlib import Path

import pytest

from se_detection.data.toy import make_toy_dataset
from se_detection.gates.excitations import explain
from tests.inference.small_runs import write_run

from ..served_detector import ServedDetector


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    """`R` without SE, and `SE_R` with SE and its mean gates over the toy images of `toy`. Weights are random."""
    folder = tmp_path_factory.mktemp("serve")
    make_toy_dataset(folder / "toy", split="val", count=2)
    write_run(folder / "R", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    explain(write_run(folder / "SE_R"), split=toy(folder), ablation=False)
    return folder


@pytest.fixture(scope="package")
def detectors(folder) -> list[ServedDetector]:
    return [ServedDetector(folder / "R"), ServedDetector(folder / "SE_R")]


def toy(folder: Path) -> tuple[Path, Path]:
    return folder / "toy" / "annotations" / "val.json", folder / "toy" / "val"
