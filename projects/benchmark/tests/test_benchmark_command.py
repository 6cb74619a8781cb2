import json

import pytest
import torch

from se_detection.modeling.fuse.fuse_detector import COMPILE_MODES
from se_detection_cli.main import command_parser
from tests.helpers import raises

from .. import benchmark_command
from ..choices import choose_cases, choose_models
from ..networks import DTYPES, MODES, PARTS
from ..timed_models import EXPORTED, MODEL_NAMES, RUN_MODELS


def parse(*arguments: str):
    args = command_parser(benchmark_command).parse_args(["--device", "cpu", *arguments])
    return choose_cases(args), choose_models(args)


def test_choices_are_those_of_the_package() -> None:
    assert benchmark_command.PARTS == PARTS
    assert benchmark_command.MODES == MODES
    assert benchmark_command.DTYPES == tuple(DTYPES)
    assert benchmark_command.COMPILE_MODES == COMPILE_MODES
    assert tuple(benchmark_command.DESCRIPTIONS) == MODEL_NAMES


def test_defaults() -> None:
    cases, models = parse()
    assert [str(case) for case in cases] == [
        f"backbone+fpn, {mode}, float32, 512 px, batch 1" for mode in ("inference", "train")
    ]
    assert {"stock", "timm-legacy", "eager", "fused", "compiled", "stock-compiled", "bound"} <= set(models)
    cases, models = parse("--quick")
    assert not any("compiled" in name for name in models)
    assert {"timm", "fused", "bound"} <= set(models)
    assert cases[0].size == 256
    cases, models = parse("--quick", "--size", "320", "--arms", "compiled")
    assert (cases[0].size, models) == (320, ["compiled"])
    # Whole detectors only.
    assert not set(models) & set(EXPORTED)


def test_a_run_has_its_own_models() -> None:
    whole = ("--part", "detector", "--mode", "inference")
    assert parse(*whole, "--run", "output/SE_R")[1] == list(RUN_MODELS)
    cases, models = parse(*whole, "--size", "480x640", "--arms", "openvino")
    assert (cases[0].size, cases[0].width, models) == (480, 640, ["openvino"])
    assert str(cases[0]) == "detector, inference, float32, 480×640 px, batch 1"


def test_sweeps_cover_all_values() -> None:
    cases, _ = parse("--size", "512", "256", "--batch", "2", "1", "--dtype", "float32", "bfloat16")
    assert len(cases) == 2 * 2 * 2 * 2
    # The first case of a sweep is the reference of `cost`.
    assert [(case.size, case.batch) for case in cases[:4]] == [(256, 1), (256, 2), (512, 1), (512, 2)]


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("--arms", "eager", "faster"), "benchmark.unknown_model", "--arms faster: choose from stock, "),
        (("--arms", "fused", "--mode", "train"), "benchmark.inference_only", "fused"),
        (("--size", "500"), "benchmark.size", "500"),
        (("--size", "0"), "benchmark.size", "--size 0x0"),
        (("--arms", "openvino", "--mode", "inference"), "benchmark.detector_only", "openvino"),
        (
            ("--run", "r", "--arms", "timm", "--part", "detector", "--mode", "inference"),
            *("benchmark.unknown_model", "timm"),
        ),
    ],
)
def test_invalid_arguments_are_reported(arguments, code, named) -> None:
    with raises(code, named):
        parse(*arguments)


@pytest.mark.slow
def test_a_small_benchmark_from_the_command_line(run_script, tmp_path, capsys, monkeypatch) -> None:
    """The JSON format; on the CPU, ratios but no times."""
    table, image = tmp_path / "benchmark.json", tmp_path / "benchmark.png"
    options = ("--depth", 18, "--size", 64, "--mode", "inference", "--device", "cpu", "--rounds", 6)
    run_script("benchmark.py", *options, "--arms", "eager", "--json", table, "--plot", image)
    content = json.loads(table.read_text())
    assert [row["arm"] for row in content["rows"]] == ["stock", "eager"]
    row = content["rows"][1]
    wanted = ("part", "mode", "device", "dtype", "size", "batch", "ratio", "low", "high", "memory_ratio")
    assert set(wanted) < row.keys()
    assert row["low"] <= row["ratio"] <= row["high"]
    assert row["memory_ratio"] > 1
    assert row["median_ms"] is None
    assert content["machine"]["device"]
    assert "tools/benchmark.py" in content["command"]
    out = capsys.readouterr().out
    assert "R18, backbone+fpn, inference, float32, 64 px, batch 1: 6 rounds" in out
    assert image.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, said in (
        (("--json", table), "[output.exists]"),
        (("--device", "cuda"), "[benchmark.no_gpu]"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_script("benchmark.py", *options, *arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_script("benchmark.py", "--help")
    assert "$ tools/benchmark.py --quick" in capsys.readouterr().out
