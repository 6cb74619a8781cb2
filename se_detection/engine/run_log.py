"""The log of a run: everything in `log.txt`, and a few lines on the screen."""

import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from detectron2.utils import comm

LOG = "log.txt"
OURS = "se_detection"
# The last is where `logging` puts Python's warnings.
PYTHON = "py.warnings"
LIBRARIES = ("detectron2", "fvcore", PYTHON)
# Of a library's warning on the screen.
LONGEST = 200
# Nothing is wrong: detectron2 was written for an older torch, category ids are mapped, or a machine without a GPU has
# CUDA's tools.
HARMLESS = re.compile(
    r"torch\.meshgrid: in an upcoming release|is_fx_tracing will return true|No CUDA runtime is found"
    r"|`torch\.(jit|cuda\.amp)\.[^`]*` is (deprecated|not supported)"
    r"|\s*Category ids in annotations are not in \[1, #categories\]"
)
# These loggers of torch print some of them.
TORCH = ("torch.fx._symbolic_trace", "torch.utils.cpp_extension")
# detectron2's messages of an evaluation: at its start, and then every 5 seconds.
EVALUATING = re.compile(r"Start inference on|Inference done (\d+)/(\d+)\..* ETA=(\S+)")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def seconds_between_lines(elapsed: float) -> float:
    """When to show progress again: after 20 seconds, later a fifth of the time so far, at most five minutes."""
    return min(max(20.0, elapsed / 5), 300.0)


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Logs a run: everything into `log.txt` of a folder, and on the screen our messages and the libraries' warnings.

    In other processes than the main one, the file is `log.txt.rank<N>` and nothing is on the screen. Handlers that the
    caller had set up are back afterwards.

    Args:
        folder: made if it does not exist.

    Raises:
        OSError: the file can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank = comm.get_rank()
    file = logging.FileHandler(folder / (f"{LOG}.rank{rank}" if rank else LOG), encoding="utf-8")
    file.setFormatter(_FileFormatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S"))
    handlers = [file] if rank else [file, _Screen()]
    loggers = [logging.getLogger(name) for name in (OURS, *LIBRARIES)]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = list(handlers), False
        logger.setLevel(logging.DEBUG)
    for name in TORCH:
        logging.getLogger(name).addFilter(_is_not_harmless)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", HARMLESS.pattern)
            warnings.showwarning = _log_warning
            yield
    finally:
        for logger, earlier, level, propagate in before:
            logger.handlers, logger.propagate = earlier, propagate
            logger.setLevel(level)
        for name in TORCH:
            logging.getLogger(name).removeFilter(_is_not_harmless)
        file.close()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Drops the warnings of the libraries while something is only tried: the run repeats them."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in before:
            logger.setLevel(level)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logger = logging.getLogger(PYTHON)
    logger.debug("%s:%d: %s", filename, lineno, category.__name__)
    logger.warning("%s", message)


def _is_not_harmless(record: logging.LogRecord) -> bool:
    return HARMLESS.match(record.getMessage()) is None


class _FileFormatter(logging.Formatter):
    """As detectron2's, without colours, which libraries put into some messages."""

    def format(self, record: logging.LogRecord) -> str:
        return COLOURS.sub("", super().format(record))


class _Screen(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints our messages, warnings in one line each, and the progress of an evaluation; without colours."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        # Of an evaluation: its start, and when the next line is due.
        self.started = self.due = 0.0
        self.warnings: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if (text := self._text(record)) is not None:
                self.stream.write(f"{text}\n")
                self.flush()
        except OSError:
            # The reader of a pipe, such as head, has closed it: the training continues.
            self.handleError(record)

    def _text(self, record: logging.LogRecord) -> str | None:
        text = COLOURS.sub("", record.getMessage())
        if record.levelno >= logging.WARNING:
            if text in self.warnings or HARMLESS.match(text):
                return None
            self.warnings.add(text)
            line = " ".join(text.split())
            if len(line) > LONGEST and not record.name.startswith(OURS):
                line = f"{line[:LONGEST]}... (the rest is in {LOG})"
            return f"{record.levelname.lower()}: {line}"
        if record.levelno == logging.INFO and record.name.startswith(OURS):
            return text
        if found := EVALUATING.match(text):
            now = time.monotonic()
            if not found[1]:
                self.started, self.due = now, now + seconds_between_lines(0)
            elif now >= self.due and found[1] != found[2]:
                self.due = now + seconds_between_lines(now - self.started)
                return f"evaluating: {found[1]}/{found[2]}, ETA {found[3]}"
        return None
