from ..comparison.conftest import annotations, detect, make_annotations, make_runs, runs

__all__ = ["annotations", "detect", "make_annotations", "make_runs", "runs"]
