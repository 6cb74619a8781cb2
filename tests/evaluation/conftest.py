from ..comparison.conftest import annotations, detect, make_annotations, reference

__all__ = ["annotations", "detect", "make_annotations", "reference"]
