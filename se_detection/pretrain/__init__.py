"""Pre-trains a detector's backbone as an image classifier."""

from .pretrain_config import load_pretrain_config
from .pretrainer import Pretrainer

__all__ = ["Pretrainer", "load_pretrain_config"]
