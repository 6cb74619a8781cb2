"""The comparison of two detectors: AP, intervals, error types, tables and one page."""

from .compare import compare
from .compare_runs import compare_runs
from .comparison import ComparedModel, Comparison
from .intervals import Difference
from .side_by_side import draw_side_by_side
from .tables import comparison_markdown, comparison_table, report_folder, write_report

__all__ = [
    "ComparedModel",
    "Comparison",
    "Difference",
    "compare",
    "compare_runs",
    "comparison_markdown",
    "comparison_table",
    "draw_side_by_side",
    "report_folder",
    "write_report",
]
