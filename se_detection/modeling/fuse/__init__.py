"""Faster inference with the same outputs: :func:`fuse_for_inference`."""

from .fuse_detector import fuse_for_inference

__all__ = ["fuse_for_inference"]
