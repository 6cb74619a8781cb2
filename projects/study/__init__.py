"""Arms x seeds: trunks pre-trained alike, detectors fine-tuned alike, and a table of what came of it."""

from .definition import Study, read_study
from .files import Data
from .report import write_report
from .runner import run_study

__all__ = ["Data", "Study", "read_study", "run_study", "write_report"]
