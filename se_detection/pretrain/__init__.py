"""Pre-training of a detector's trunk as an image classifier."""

from .config import argument_parser, load_config
from .trainer import Pretrainer

__all__ = ["Pretrainer", "argument_parser", "load_config"]
