"""The table of docs/DEPLOYING.md from two results of tools/benchmark.py: `deployment_table.py RANDOM TRAINED`.

RANDOM has the times of a large detector with random weights; TRAINED has a trained run, with AP.
"""

import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from se_detection.files import read_json

from .benchmark_report import ap_cell
from .rounds import Ratio

RUNTIMES = {
    "stock": ("PyTorch", "float32"),
    "fused": ("PyTorch, `fuse_for_inference`", "float32"),
    "compiled": ("the same, compiled", "float32"),
    "onnxruntime": ("ONNX Runtime, not fused", "float32"),
    "onnxruntime-fused": ("ONNX Runtime, `--fuse`", "float32"),
    "onnxruntime-int8": ("ONNX Runtime", "int8"),
    "openvino": ("OpenVINO, `--fuse`", "float32"),
    "openvino-bf16": ("OpenVINO", "bfloat16"),
    "openvino-int8": ("OpenVINO", "int8"),
}
HEADINGS = ["runtime", "precision", "time", "time, trained", "AP, and difference", "file (MB)", "memory"]


def deployment_table(random: dict[str, Any], trained: dict[str, Any]) -> str:
    """Markdown, a line for each runtime and precision that was timed in both."""
    first, second = ({row["arm"]: row for row in result["rows"]} for result in (random, trained))
    lines = []
    for name, (runtime, precision) in RUNTIMES.items():
        if name in first and name in second:
            row, own = first[name], second[name]
            ap = f"{own['ap']['exported']:.2f}" if name == "stock" and own.get("ap") else ap_cell(own.get("ap"))
            memory = "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}"
            lines.append([runtime, precision, _time(row), _time(own), ap, row.get("megabytes", ""), memory])
    return tabulate(lines, HEADINGS, tablefmt="github", disable_numparse=True)


def _time(row: dict[str, Any]) -> str:
    value, interval = Ratio(row["ratio"], row["low"], row["high"]).cells()
    return value if row["arm"] == "stock" or not interval else f"{value} ({interval})"


if __name__ == "__main__":
    print(deployment_table(*(read_json(Path(path)) for path in sys.argv[1:3])))
