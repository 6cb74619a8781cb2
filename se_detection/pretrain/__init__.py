"""Pre-training of a detector's backbone as an image classifier."""

from .pretrain_config import argument_parser, load_pretrain_config
from .pretrainer import Pretrainer

__all__ = ["Pretrainer", "argument_parser", "load_pretrain_config"]
