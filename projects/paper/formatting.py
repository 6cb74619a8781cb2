"""Text tables of the paper's rows and of parity."""

from collections.abc import Sequence

from tabulate import tabulate

from .paper_tables import NUM_CLASSES, SIZE, Measurement
from .parity import Parity

PAPER_NOTE = f"""\
Parameters in millions, with a classifier of {NUM_CLASSES} classes. GFLOPs: 10⁹ multiply-adds of convolutions and linear
layers for one image of {SIZE}×{SIZE}, in the layout of the paper's Caffe models. "SE adds" is in single parameters,
MFLOPs are 10⁶ multiply-adds; the paper's 0.01 to 0.02 GFLOPs are more than these layers compute.
Tables 2, 3: the paper gives no parameters; its column shows timm's, also for the GFLOPs of SENet-154.
Tables 10 to 16: SE without biases. The paper's parameters fit better if BN's running statistics (0.05) are added."""


def paper_table(measurements: Sequence[Measurement], tablefmt: str = "simple") -> str:
    """A row for each row of the paper: our parameters and GFLOPs, the paper's, the difference, and what SE adds.

    Args:
        measurements: see :func:`measure`.
        tablefmt: a format of tabulate, such as `simple`, or `github` for Markdown.
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
    """A row for each timm network."""
    rows = [[parity.name, parity.layout, f"{parity.error:.1e}"] for parity in parities]
    table = tabulate(
        rows, ["timm's network", "layout", "largest relative error"], tablefmt=tablefmt, disable_numparse=True
    )
    return f"{table}\n\nAt res2 to res5, for images of 224×224 and 97×131, in float64, with random weights and norms."
