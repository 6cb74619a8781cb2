"""The one exception for what a person can mend, and how command-line tools show it."""

import errno
import re
import sys
from collections.abc import Callable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch says where the machine gives it no more.
NO_MEMORY = "can't allocate memory"


class UserError(ValueError):
    """A mistake that its maker can mend. The message is one line: what is wrong, where, and what to do."""

    def __str__(self) -> str:
        text = printable(super().__str__())
        # What is wrong stands at the beginning, what to do at the end, and what a file holds between them.
        return text if len(text) <= 2000 else f"{text[:1400]} ... {text[-400:]}"


def printable(text: str) -> str:
    """A text in one line that does nothing to a terminal: names from files may hold anything, which is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def run_tool(main: Callable[[], None]) -> None:
    """Runs a command-line tool's `main`; a :class:`UserError` ends it with that one line and exit code 2.

    An error raised in a child process (a data loader's worker, a launched rank) arrives as another exception whose
    text ends with the child's traceback; its line is found there.
    """
    try:
        main()
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def user_message(error: BaseException) -> str | None:
    """What a person can do about an exception, in one line; None where that is nothing.

    That is the message of a :class:`UserError`, or of one in a child process that the exception tells of; or that a
    disk or the memory is full, or a file can't be used.
    """
    # Of an error in a child, its traceback, of many lines.
    text = str(error.args[0]) if isinstance(error, UserError) and error.args else str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        where = f"{error.filename} could not be written" if error.filename else "a file could not be written"
        return f"{where}: {error.strerror}; free some space, then try again (a training goes on with --resume)"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")
    if is_out_of_memory(error):
        said = printable(text.splitlines()[0] if text else "Python's")[:200]
        return f"the memory is full ({said}); lower SOLVER.IMS_PER_BATCH or the sizes in INPUT"
    in_child = re.findall(rf"^{__name__}\.UserError: (.+)$", text, flags=re.MULTILINE)
    if in_child:
        return in_child[-1]
    return str(error) if isinstance(error, UserError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine, or its GPU, had no memory left."""
    # torch's for GPUs has a class of its own, which importing torch for would take seconds.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(NO_MEMORY in str(part) for part in error.args)
    )
