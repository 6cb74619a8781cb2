"""Detectors as they are deployed: the same outputs, faster."""

from .fuse import fuse_for_inference

__all__ = ["fuse_for_inference"]
