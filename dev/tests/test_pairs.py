"""The figures of pairs against their sources, and in the documentation."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import timm

from dev.pairs import PAIRS, in_words, pair_of, pairs_table
from se_detection import model_zoo
from se_detection.checkpoint.released_weights import RELEASED

ROOT = Path(__file__).parents[2]
A1 = "timm://seresnet50.a1_in1k"


def test_pytorchcvs_figures_are_those_of_its_page() -> None:
    try:
        page = metadata("pytorchcv").get_payload()
    except PackageNotFoundError:
        pytest.skip("pytorchcv is not installed")
    errors = {}
    for name, error in re.findall(r"^\| ([\w() -]+?) \| ([\d.]+) \|", page, flags=re.MULTILINE):
        # Tables of other data sets come later.
        errors.setdefault(re.sub(r"[ ()-]", "", name).lower(), float(error))
    checked = 0
    for pair in PAIRS:
        if pair.source[0] == "pytorchcv":
            for weights, top1 in zip((pair.plain, pair.se), pair.top1, strict=True):
                name = weights.removeprefix("pytorchcv://").replace("_", "")
                assert errors[name] == pytest.approx(100 - top1), weights
                checked += 1
    assert checked >= 20


def test_names_are_known() -> None:
    for weights in {weights for pair in PAIRS for weights in (pair.plain, pair.se) if "://" in weights}:
        scheme, _, name = weights.partition("://")
        if scheme == "timm":
            assert name in timm.list_pretrained(f"{name.split('.')[0]}.*")
        elif scheme == "mmpretrain":
            assert weights in RELEASED
    assert {pair.source[0] for pair in PAIRS} >= {"mmpretrain", "timm", "pytorchcv", "paper"}


def test_a_pair_in_words() -> None:
    assert in_words("mmpretrain://resnet101_8xb32_in1k_20210831-539c63f8") == "77.97 → 78.26 (+0.29)"
    assert in_words(A1) == "80.38 → 80.01 (-0.37); **no gain**"
    assert in_words("pytorchcv://resnet50b") == "77.61 → 79.21 (+1.60); recipes not stated"
    assert in_words("detectron2://ImageNetPretrained/MSRA/R-50.pkl") == "75.30 → 76.71 (+1.41); other recipes"
    assert in_words("timm://vgg16_bn.tv_in1k") == in_words("") == ""
    assert pair_of(A1) == pair_of("timm://resnet50.a1_in1k")


def test_the_configs_without_a_gain_say_so() -> None:
    lines = (ROOT / "MODEL_ZOO.md").read_text().splitlines()
    for name in ("faster_rcnn_R_50_FPN_1x_adamw", "faster_rcnn_SE_R_50_FPN_1x_adamw"):
        assert model_zoo.get_config(f"COCO-Detection/{name}").MODEL.WEIGHTS.endswith("50.a1_in1k")
        (line,) = [line for line in lines if f"[{name}]" in line]
        assert "no gain" in line


def test_docs_pairs_md_has_the_table() -> None:
    """`python dev/pairs.py` prints it."""
    page = (ROOT / "docs" / "PAIRS.md").read_text()
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    table = pairs_table()
    start = found.index(table[0])
    assert [found[start], *found[start + 2 : start + 1 + len(table)]] == table
