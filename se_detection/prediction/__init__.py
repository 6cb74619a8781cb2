"""What trained detectors find in pictures, videos and a camera: drawn, and in COCO's results format."""

from .detector import Detector
from .predict import Prediction, predict

__all__ = ["Detector", "Prediction", "predict"]
