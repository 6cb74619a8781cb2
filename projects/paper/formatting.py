"""Counts as tables for the screen, and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from se_detection.errors import UserError

from .paper_tables import NUM_CLASSES, SIZE, Measurement
from .parity import Parity

PAPER_NOTE = f"""\
Parameters in millions, with a classifier of {NUM_CLASSES} classes. GFLOPs: 10⁹ multiply-adds of convolutions and linear
layers for one image of {SIZE}×{SIZE}, in the layout of the paper's Caffe models. What SE adds to the same backbone is in
single parameters and in 10⁶ multiply-adds; the 0.01 to 0.02 GFLOPs of the paper are more than these layers compute.
Tables 2, 3: the paper gives no parameters, and its column shows timm's; so it does for SENet-154's GFLOPs.
Tables 10 to 16: SE without biases. The paper's parameters fit better with BN's running statistics (0.05) added."""


def paper_table(measurements: Sequence[Measurement], tablefmt: str = "simple") -> str:
    """A row for each row of the paper: parameters and GFLOPs, the paper's, the difference, and what SE adds.

    Args:
        measurements: of :func:`measure`.
        tablefmt: one of tabulate's, such as `simple` for the screen and `github` for Markdown.
    """
    headings = ["Table", "model", "params", "paper", "diff.", "GFLOPs", "paper", "diff. %", "SE adds", "MFLOPs"]
    rows = []
    for row in measurements:
        millions = row.parameters / 1e6
        parameters = ["", ""]
        if row.reference_parameters is not None:
            parameters = [f"{row.reference_parameters}", f"{millions - row.reference_parameters:+.3f}"]
        gflops = ["", ""]
        if row.reference_gflops is not None:
            gflops = [f"{row.reference_gflops:.2f}", f"{100 * (row.gflops / row.reference_gflops - 1):+.2f}"]
        added = ["", ""]
        if row.added_parameters:
            added = [f"{row.added_parameters:,}", f"{1e3 * row.added_gflops:.2f}"]
        rows.append([row.table, row.name, f"{millions:.3f}", *parameters, f"{row.gflops:.3f}", *gflops, *added])
    alignment = ["right", "left", *["right"] * 8]
    table = tabulate(rows, headings, tablefmt=tablefmt, disable_numparse=True, colalign=alignment)
    return f"{table}\n\n{PAPER_NOTE}"


def parity_table(parities: Sequence[Parity], tablefmt: str = "simple") -> str:
    """A row for each network of timm's."""
    rows = [[parity.name, parity.layout, f"{parity.error:.1e}"] for parity in parities]
    table = tabulate(
        rows, ["timm's network", "layout", "worst relative error"], tablefmt=tablefmt, disable_numparse=True
    )
    return f"{table}\n\nOf res2 to res5 at 224×224 and 97×131, in float64, with random weights and norms."


def check_new_file(path: Path) -> None:
    """Makes sure that a report can be written.

    Raises:
        UserError: there is such a file, or no such folder.
    """
    if path.exists():
        raise UserError(f"--json {path} is there already; remove it, or choose another name")
    if not path.parent.is_dir():
        raise UserError(f"--json {path}: there is no folder {path.parent}")


def write_json(content: Any, path: Path) -> None:
    """Writes a report as JSON."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
