"""Arms x seeds: backbones pre-trained alike, detectors fine-tuned alike, and a table of what came of it."""

from .definition import Study, read_study
from .runner import run_study
from .study_data import Data
from .study_report import write_study_report

__all__ = ["Data", "Study", "read_study", "run_study", "write_study_report"]
