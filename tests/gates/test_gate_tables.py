import csv
import json

import numpy as np
import pytest

from se_detection.gates.gate_tables import excitations_table, findings, to_dict

from .conftest import CONSTANT, IMAGES


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files(written, explained) -> None:
    assert [path.relative_to(explained.folder).as_posix() for path in written] == [
        *("excitations.json", "blocks.csv", "channels.csv", "excitations.npz", "plots/blocks.png"),
        *(f"plots/{name}.png" for name in ("SE_3_2", "SE_5_1", "SE_5_2")),
    ]
    assert all(path.is_file() for path in written)


def test_all_files_have_the_same_numbers(written, explained) -> None:
    content = json.loads(written[0].read_text())
    with np.load(written[3]) as arrays:
        blocks = [str(name) for name in arrays["blocks"]]
        classes = [str(name) for name in arrays["classes"]]
        assert arrays["seen"] == content["images"] == IMAGES
        rows = {(row["block"], row["class"]): row for row in read_csv(written[1])}
        channels = {(row["block"], int(row["channel"])): row for row in read_csv(written[2])}
        assert list(content["blocks"]) == blocks
        assert len(rows) == len(blocks) * (len(classes) + 1)
        for name in blocks:
            mean, std = arrays[f"{name}/mean"], arrays[f"{name}/std"]
            assert content["blocks"][name]["channels"] == mean.shape[1]
            assert content["blocks"][name]["mean"] == pytest.approx(mean[-1].mean())
            for index, label in enumerate([*classes, "all images"]):
                row = rows[name, label]
                assert int(row["images"]) == arrays[f"{name}/images"][index]
                assert float(row["mean gate"]) == pytest.approx(mean[index].mean(), rel=1e-4)
                assert float(row["spread over images"]) == pytest.approx((std[index] ** 2).mean() ** 0.5, rel=1e-4)
                distance = ((mean[index] - mean[-1]) ** 2).mean() ** 0.5
                assert float(row["distance from the mean of all images"]) == pytest.approx(distance, rel=1e-4)
            for channel in (0, mean.shape[1] - 1):
                row = channels[name, channel]
                figures = [mean[-1, channel], std[-1, channel], *mean[:-1, channel]]
                assert [float(row[key]) for key in ("mean", "spread", *classes)] == pytest.approx(figures, rel=1e-4)
    assert len(channels) == sum(block["channels"] for block in content["blocks"].values())


def test_the_json_has_the_ablation(written, explained) -> None:
    content = json.loads(written[0].read_text())
    assert content == json.loads(json.dumps(to_dict(explained)))
    rows = content["ablation"]["rows"]
    assert list(rows) == [*explained.gates, "all blocks"]
    assert rows["SE_5_1"]["difference"]["AP"]["value"] == explained.ablation.blocks["SE_5_1"].difference["AP"].value
    assert content["ablation"]["unchanged"] == explained.ablation.unchanged
    assert content["ablation"]["time"]["device"] == "cpu"
    assert "can be folded into the norm before it" in content["ablation"]["folding"]


def test_findings_follow_from_the_statistics(explained) -> None:
    found = findings(explained)
    assert CONSTANT in found["hardly_vary"]
    assert CONSTANT not in found["tell_classes_apart"]
    for name, block in explained.statistics.items():
        assert (name in found["hardly_vary"]) == (block.relative_spread <= 0.05)
        assert (name in found["tell_classes_apart"]) == ((block.class_share or 0) >= 0.1)
        assert (name in found["saturated"]) == (block.saturated >= 0.25)
        assert (name in found["dispensable"]) == explained.ablation.blocks[name].dispensable


def test_the_table(explained) -> None:
    table = excitations_table(explained)
    lines = {line.split("  ")[0].strip(): line for line in table.splitlines()}
    for name, row in explained.ablation.blocks.items():
        assert f"{row.parameters:,}" in lines[name]
        assert f"{explained.statistics[name].mean[-1].mean():.3f}" in lines[name]
        assert f"  {row.metrics['AP']:.2f}  " in lines[name]
        assert f"{row.difference['AP50'].value:+.2f}".replace("-0.00", "+0.00") in lines[name]
    assert f"{explained.ablation.unchanged['AP50']:.2f}" in lines["unchanged"]
    assert "all blocks" in lines
    assert f"{IMAGES} images" in table
