"""Runs trained detectors on images, videos and a camera: as Instances, drawn, and in COCO's results format."""

from .detector import Detector
from .predict import Prediction, predict
from .predictor import SEPredictor

__all__ = ["Detector", "Prediction", "SEPredictor", "predict"]
