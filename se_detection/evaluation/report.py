"""A comparison of two runs as files and on the screen."""

import json
from pathlib import Path

from tabulate import tabulate

from ..errors import UserError
from .compare import Comparison, Difference
from .runs import Run, read_run

FILES = ("comparison.json", "comparison.md", "pictures")
COLUMNS = {"AP50": "AP@0.5", "AP": "AP", "AP75": "AP75", "APs": "APs", "APm": "APm", "APl": "APl"}
