"""docs/ANY_NETWORK.md and the defaults in docs/CONFIG.md, as their readers use them."""

import importlib
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from detectron2.config import get_cfg, instantiate

from se_detection import model_zoo
from se_detection.config.buildable import check_model
from se_detection.config.defaults import flatten
from se_detection.config.meta_device import Uninitialized
from se_detection.config.read_config import read_config
from se_detection.modeling.insert_se import SE_SITES

from .pages import ROOT, Block, blocks, commands
from .test_word_by_word import type_in

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "ANY_NETWORK.md"
PYTHON, YAML = (blocks(language) for language in ("python", "yaml"))


def of(page: Path, found: list[Block]) -> list[Block]:
    return [block for block in found if block.page == page]


@pytest.mark.parametrize("block", code := of(PAGE, PYTHON), ids=[block.name for block in code])
def test_python_runs(block) -> None:
    names: dict[str, Any] = {}
    with patch.dict(SE_SITES):
        exec(compile(block.text, block.name, "exec"), names)
    if "config" in names:
        with torch.device("meta"), Uninitialized():
            assert instantiate(names["config"].model).backbone.output_shape()


@pytest.mark.parametrize("block", configs := of(PAGE, YAML), ids=[block.name for block in configs])
def test_configs_build(block, tmp_path, monkeypatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "config.yaml").write_text(block.text)
    monkeypatch.chdir(tmp_path)
    check_model(read_config("config.yaml"))


def test_a_registered_family_is_built(tmp_path, monkeypatch, capsys) -> None:
    """The command without the import, and the detector with it."""
    (code,) = (block.text for block in of(PAGE, PYTHON) if "register_se_sites(" in block.text)
    typed = [line for block in of(PAGE, blocks("bash")) for line in commands(block.text)]
    (command,) = (line for line in typed if "dla_with_se.py" in line)
    setting, _, command = command.partition(" ")
    assert setting == "DETECTRON2_ENV_MODULE=dla_with_se.py"
    (tmp_path / "dla_with_se.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = command.replace("timm://dla34.in1k", "none.pth")
    # COCO is not here.
    toy = (
        "DATASETS.TRAIN",
        "('se_toy_train',)",
        "DATASETS.TEST",
        "('se_toy_val',)",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        "4",
    )
    # Without its sites, the blocks are unknown. This is found before the weights are read.
    (tmp_path / "none.pth").touch()
    assert type_in(monkeypatch, command, *toy) == 2
    assert "model.no_se_sites" in capsys.readouterr().err
    cfg = model_zoo.get_config("Any-Network/faster_rcnn_SE_wide_resnet50_2_FPN_1x")
    cfg.MODEL.TIMM.NAME, cfg.MODEL.WEIGHTS = "dla34", ""
    assert f"MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME} " in command
    with patch.dict(SE_SITES):
        importlib.import_module("dla_with_se")
        check_model(cfg)


def test_its_error_codes_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "se_detection").rglob("*.py"))
    codes = re.findall(r"`((?:config|model|weights)\.\w+)`", PAGE.read_text())
    assert len(codes) > 10
    assert [code for code in codes if f'"{code}"' not in source] == []


@pytest.mark.parametrize("node", ["SE", "TIMM"])
def test_the_defaults_on_the_page_of_keys(node) -> None:
    (shown,) = (
        content["MODEL"][node]
        for block in of(ROOT / "docs" / "CONFIG.md", YAML)
        if node in (content := yaml.safe_load(block.text))["MODEL"]
    )
    assert flatten(shown) == flatten(get_cfg().MODEL[node])
