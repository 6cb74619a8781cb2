"""COCO evaluation, the comparison of two detectors, and its report."""

from .coco import COCODetectionEvaluator
from .compare import compare
from .compare_runs import compare_runs
from .comparison import Arm, Comparison
from .intervals import Difference
from .pictures import draw_side_by_side
from .report import comparison_markdown, comparison_table, report_folder, write_report

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
