"""Training and evaluation with detectron2's trainer, hooks and launch."""

from .checks import load_config
from .launch import use_torchrun
from .train_and_evaluate import launch_run
from .trainer import Trainer

__all__ = ["Trainer", "launch_run", "load_config", "use_torchrun"]
