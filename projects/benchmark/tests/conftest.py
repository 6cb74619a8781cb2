import pytest

from se_detection.model_zoo import get_config

from ..networks import Case

# Narrow FPN and heads, and narrow bottlenecks; ResNet-18 keeps its width.
SMALL = [
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 50),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 16),
]


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch) -> None:
    def get_small(name: str):
        cfg = get_config(name)
        cfg.merge_from_list(SMALL)
        return cfg

    monkeypatch.setattr("projects.benchmark.networks.get_config", get_small)
    monkeypatch.setattr("projects.benchmark.bound.COPIED", 2**20)
    monkeypatch.setattr("projects.benchmark.bound.CONVOLUTION_SIZE", {"cpu": (1, 16, 32)})
    monkeypatch.setattr("projects.benchmark.bound.PRODUCT_SIZE", {"cpu": 64})


@pytest.fixture
def make_case():
    """A function that makes a small case; keyword arguments replace its fields."""

    def make(**changes) -> Case:
        case = {"part": "backbone+fpn", "mode": "inference", "device": "cpu", "dtype": "float32", "size": 64}
        case |= {"batch": 1, "depth": 18, **changes}
        return Case(**{"width": case["size"], **case})

    return make
