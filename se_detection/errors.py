"""The one exception for what a person can mend, and how command-line tools show it."""

import errno
import re
import sys
from collections.abc import Callable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """A mistake that its maker can mend. The message is one line: what is wrong, where, and what to do."""


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
    disk is full.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        where = f"{error.filename} could not be written" if error.filename else "a file could not be written"
        return f"{where}: {error.strerror}; free some space, then try again (a training goes on with --resume)"
    in_child = re.findall(rf"^{__name__}\.UserError: (.+)$", text, flags=re.MULTILINE)
    if in_child:
        return in_child[-1]
    return text if isinstance(error, UserError) else None
