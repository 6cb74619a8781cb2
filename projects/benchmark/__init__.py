"""Time and memory of detectors by backbone, as ratios to detectron2's plain ResNet."""
