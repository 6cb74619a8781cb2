"""COCO evaluation, the comparison of two detectors, and its report."""

from .coco import COCODetectionEvaluator
from .compare import Arm, Comparison, Difference, compare
from .pictures import draw_side_by_side
from .report import comparison_markdown, comparison_table, report_folder, write_report
from .runs import compare_runs

__all__ = [
    "Arm",
    "COCODetectionEvaluator",
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
