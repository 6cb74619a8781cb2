import json
import subprocess
import sys
from pathlib import Path

import pytest

from se_detection import model_zoo
from se_detection.data.toy import make_toy_dataset

REPOSITORY = Path(__file__).parents[2]

# A detector that trains a step in half a second; with GN, which needs no statistics.
SMALL = [
    *("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.WARMUP_ITERS", "0"),
]


class Tool:
    """Runs a script as a user would, in its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *map(str, arguments)],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def run_tool(tmp_path) -> Tool:
    return Tool(tmp_path)


@pytest.fixture
def train_net() -> Path:
    return REPOSITORY / "tools" / "train_net.py"


@pytest.fixture
def se_config() -> str:
    return model_zoo.get_config_file("Toy/faster_rcnn_SE_R_18_FPN")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Eight images to train on and four to evaluate, in COCO format."""
    folder = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", 8), ("val", 4)):
        make_toy_dataset(folder, split=split, count=count)
    return folder


@pytest.fixture
def tiny_flags(tiny) -> list[str]:
    return [
        *("--train-json", str(tiny / "annotations" / "train.json"), "--train-images", str(tiny / "train")),
        *("--val-json", str(tiny / "annotations" / "val.json"), "--val-images", str(tiny / "val")),
    ]


def read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
