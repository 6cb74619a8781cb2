import json
import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling import build_model
from detectron2.utils.analysis import FlopCountAnalysis, parameter_count
from torchvision.models import get_model_weights

from dev.model_zoo_page import MARK, PUBLISHED, ZooRow, main, measured_in_studies, zoo_page, zoo_rows
from projects.study.definition import read_study
from se_detection import model_zoo

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
TOY, COCO = "Toy/faster_rcnn_SE_R_18_FPN", "COCO-Detection/faster_rcnn_{}_50_FPN_1x"
FCOS = "lazy/COCO-Detection/fcos_SE_R_50_FPN_1x.py"
PLAIN, GATED = COCO.format("R"), COCO.format("SE_R")
STUDY = "CPU/faster_rcnn_efficientnet_lite0_FPN"
SE_FILE = "se-resnet50_batch256_imagenet_20200804-ae206104"


@pytest.fixture(scope="module")
def rows() -> dict[str, ZooRow]:
    names = [TOY, PLAIN, GATED, f"lazy/{GATED}.py", FCOS, STUDY]
    return {row.name: row for row in zoo_rows(names, RESULTS)}


@pytest.mark.slow
def test_a_row_has_the_recipe_and_the_lazy_twin(rows) -> None:
    assert rows.keys() == {TOY, PLAIN, GATED, FCOS, STUDY}
    # detectron2's "1x" is 90,000 steps of 16 images.
    assert (rows[GATED].steps, rows[GATED].images) == (90_000, 16) == (rows[FCOS].steps, rows[FCOS].images)
    assert (rows[TOY].steps, rows[TOY].images) == (150, 4)
    assert rows[GATED].weights == f"mmpretrain://{SE_FILE}" == rows[FCOS].weights
    assert {row.name: row.twin for row in rows.values() if row.twin} == {GATED: f"lazy/{GATED}.py"}
    assert {row.section for row in rows.values()} == {"Toy", "COCO-Detection", "CPU"}


@pytest.mark.slow
def test_a_lazy_twin_has_the_same_counts(rows) -> None:
    (lazy,) = zoo_rows([f"lazy/{GATED}.py"], RESULTS)
    assert lazy.size == rows[GATED].size


@pytest.mark.slow
def test_counts_equal_detectron2s() -> None:
    (row,) = zoo_rows([TOY], RESULTS)
    cfg = model_zoo.get_config(TOY)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    assert row.size.image == (96, 128)
    assert row.size.parameters == parameter_count(model)[""]
    counter = FlopCountAnalysis(model.backbone, torch.zeros(1, 3, 96, 128))
    by_operator = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert row.size.gflops == pytest.approx((by_operator["conv"] + by_operator["linear"]) / 1e9, rel=1e-9)


@pytest.mark.slow
def test_counts_agree_with_torchvision_and_timm(rows) -> None:
    """From 224x224 to 800x1088 pixels, convolutions grow with the number of pixels; SE does not."""
    with torch.device("meta"):
        plain, gated = (timm.create_model(name) for name in ("resnet50", "seresnet50"))
    added = sum(p.numel() for p in gated.parameters()) - sum(p.numel() for p in plain.parameters())
    assert rows[GATED].size.parameters - rows[PLAIN].size.parameters == added
    # SE has one multiply-add per weight.
    biases = sum(p.numel() for name, p in gated.named_parameters() if ".se." in name and name.endswith("bias"))
    added_gflops = rows[GATED].size.gflops - rows[PLAIN].size.gflops
    assert added_gflops == pytest.approx((added - biases) / 1e9, rel=1e-6)

    height, width = rows[PLAIN].size.image
    assert (height, width) == (800, 1088)
    ops = get_model_weights("resnet50").IMAGENET1K_V1.meta["_ops"] - 2048 * 1000 / 1e9
    backbone = ops * height * width / 224**2
    sizes = [(height // stride) * (width // stride) for stride in (4, 8, 16, 32)]
    fpn = sum(size * 256 * (channels + 9 * 256) for size, channels in zip(sizes, (256, 512, 1024, 2048), strict=True))
    # torchvision rounds its count to three digits.
    assert rows[PLAIN].size.gflops == pytest.approx(backbone + fpn / 1e9, rel=2e-4)


def test_published_numbers_are_from_the_same_weights() -> None:
    """No number of a detector that started from another backbone."""
    assert set(PUBLISHED) <= set(model_zoo.names())
    for name in PUBLISHED:
        weights = model_zoo.get_config(name).MODEL.WEIGHTS
        # The backbones of Detectron, those that the paper released, and from scratch.
        assert weights.startswith(("detectron2://ImageNetPretrained/MSRA/", "timm://legacy_seresnet")) or not weights


def test_measured_numbers_are_means_of_the_records(tmp_path) -> None:
    data = read_study(ROOT / "configs/Study/Study-cpu.yaml").data["bccd"]
    record = {"definition": data.digest, "data_digest": "x", "device": "cpu"}
    for seed, ap in ((1, 40.0), (2, 44.0)):
        (tmp_path / f"lite0-bccd-plain-{seed}.json").write_text(json.dumps({**record, "AP": ap}))
    # The standard deviation of 40 and 44 is 4 / sqrt(2).
    assert measured_in_studies(tmp_path) == {STUDY: ["bccd AP 42.0 ± 2.8 (2 runs)"]}


@pytest.mark.slow
def test_a_page_has_a_table_for_each_folder(rows) -> None:
    page = zoo_page(list(rows.values()))
    assert page.startswith(MARK)
    assert re.findall("^## (.+)", page, flags=re.MULTILINE) == ["COCO-Detection", "CPU", "Toy"]
    (line,) = [line for line in page.splitlines() if f"({'configs/' + GATED}.yaml)" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"[lazy](configs/lazy/{GATED}.py)"
    assert cells[2:6] == ["90,000 × 16", "44.23", "800 × 1088", "120.20"]
    url = f"https://download.openmmlab.com/mmclassification/v0/se-resnet/{SE_FILE}.pth"
    assert cells[6:] == [f"mmpretrain's [se-resnet50]({url})", "76.55 → 77.74 (+1.19)"]


def test_model_zoo_md_has_all_configs() -> None:
    """`python dev/model_zoo_page.py --output MODEL_ZOO.md` writes it."""
    page = (ROOT / "MODEL_ZOO.md").read_text()
    linked = re.findall(r"\]\((configs/[^)]+)\)", page)
    assert sorted(linked) == sorted(f"configs/{n}{'' if n.endswith('.py') else '.yaml'}" for n in model_zoo.names())
    assert all((ROOT / path).is_file() for path in linked)
    assert all((ROOT / path).exists() for path in re.findall(r"\]\((docs/[^)]+)\)", page))


@pytest.mark.slow
def test_model_zoo_md_is_up_to_date(rows) -> None:
    page = (ROOT / "MODEL_ZOO.md").read_text()
    for line in zoo_page(list(rows.values())).splitlines():
        if "](configs/" in line and STUDY not in line:
            cells = [cell.strip() for cell in line.strip("|").split("|") if cell.strip()]
            (other,) = [other for other in page.splitlines() if f"| {cells[0]} " in other]
            # The plain config's lazy twin is not in `rows`.
            others = [cell.strip() for cell in other.strip("|").split("|") if cell.strip() and "[lazy]" not in cell]
            assert others == [cell for cell in cells if "[lazy]" not in cell]


def test_the_script_writes_a_page(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(model_zoo, "names", lambda: [TOY])
    words = ["--output", str(tmp_path / "page.md"), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["model_zoo_page.py", *words])
    main()
    assert (tmp_path / "page.md").read_text().count("](configs/") == 1
