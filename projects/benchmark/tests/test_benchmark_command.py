import json

import pytest
import torch

from se_detection.errors import UserError
from se_detection_cli.main import command_parser

from .. import benchmark_command
from ..benchmark_command import benchmark_settings


def parse(*arguments: str):
    return benchmark_settings(command_parser(benchmark_command).parse_args(arguments))


def test_defaults() -> None:
    settings = parse("--device", "cpu")
    assert [str(case) for case in settings.cases] == [
        f"backbone+fpn, {mode}, float32, 512 px, batch 1" for mode in ("inference", "train")
    ]
    assert {"stock", "timm-legacy", "eager", "fused", "compiled", "stock-compiled", "bound"} <= set(settings.models)
    quick = parse("--device", "cpu", "--quick")
    assert not any("compiled" in name for name in quick.models)
    assert {"timm", "fused", "bound"} <= set(quick.models)
    assert (quick.rounds, quick.cases[0].size) == (6, 256)
    assert parse("--quick", "--device", "cpu", "--size", "320", "--arms", "compiled").models == ["compiled"]


def test_sweeps_cover_all_values() -> None:
    settings = parse("--device", "cpu", "--size", "512", "256", "--batch", "2", "1", "--dtype", "float32", "bfloat16")
    assert len(settings.cases) == 2 * 2 * 2 * 2
    # The first case of a sweep is the reference of `cost`.
    assert [(case.size, case.batch) for case in settings.cases[:4]] == [(256, 1), (256, 2), (512, 1), (512, 2)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--arms", "eager", "faster"), "--arms faster: choose from stock, "),
        (("--arms", "fused", "--mode", "train"), "--arms fused: it is for inference only"),
        (("--size", "500"), "--size 500: FPN needs a multiple of 32"),
        (("--size", "0"), "--size 0: FPN needs a multiple of 32"),
        (("--batch", "0"), "--batch 0: give at least one"),
        (("--rounds", "-1"), "--rounds -1: give at least 1"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(arguments, said) -> None:
    with pytest.raises(UserError) as error:
        parse("--device", "cpu", *arguments)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_a_missing_gpu_is_reported(monkeypatch, run_script, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        run_script("benchmark.py", "--device", "cuda")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: PyTorch finds no GPU here")


def test_a_small_benchmark_from_the_command_line(run_script, tmp_path, capsys) -> None:
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
    assert "machine" in content
    out = capsys.readouterr().out
    assert "R18, backbone+fpn, inference, float32, 64 px, batch 1: 6 rounds" in out
    assert image.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit) as ended:
        run_script("benchmark.py", *options, "--json", table)
    assert ended.value.code == 2
    assert f"{table} already exists" in capsys.readouterr().err


def test_help_has_an_example(run_script, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script("benchmark.py", "--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "$ tools/benchmark.py --quick" in out
    assert "stock-fused" in out
