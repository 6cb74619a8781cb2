"""The exception for errors that the user can fix, how command-line tools print it, and the words of messages."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch's message if it can't allocate memory on the CPU.
NO_MEMORY = "can't allocate memory"


class UserError(ValueError):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do.

    Args:
        code: names the kind of error, `area.kind`, such as `config.unknown_key`; it stays the same when the words of
            the message change, and is printed after them.
        message: one line.
    """

    def __init__(self, code: str, message: str = "") -> None:
        if not message:
            # torch rebuilds the error of a worker of a data loader from one text, which ends in the worker's traceback.
            code, message = _last_line(code) or ("worker.failed", code)
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        text = printable(self.message)
        # The beginning says what is wrong, the end what to do; long values from files are in the middle.
        text = text if len(text) <= 2000 else f"{text[:1400]} ... {text[-400:]}"
        return f"{text} [{self.code}]"


def _last_line(traceback: str) -> tuple[str, str] | None:
    """Code and message of the last :class:`UserError` in the text of tracebacks."""
    found = re.findall(rf"^{__name__}\.UserError: (.+) \[([\w.]+)\]$", traceback, flags=re.MULTILINE)
    return (found[-1][1], found[-1][0]) if found else None


def printable(text: str) -> str:
    """Escapes line breaks and control characters, which names from files may contain."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException, longest: int = 200) -> str:
    """The message of an exception in one line of at most so many characters, or its class if it has no message."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 image`, `2,000 images`.

    Args:
        plural: if it is not `singular` with an s.
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def suggestion(name: str, known: Iterable[str]) -> str:
    """`did you mean ...? `, with the most similar name; empty if none is similar.

    Case and separators don't matter: `SE-ResNet-50` is `se_resnet50`. A known name may be a path, whose last part is
    compared too.
    """
    spellings: dict[str, str] = {}
    for each in known:
        for part in (each, each.rpartition("/")[2]):
            spellings.setdefault(re.sub(r"[^a-z0-9]", "", part.lower()), each)
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    begun = [spelling for spelling in spellings if plain and spelling.startswith(plain)]
    close = begun or get_close_matches(plain, spellings, n=1)
    return f"did you mean {spellings[close[0]]!r}? " if close else ""


def run_tool(main: Callable[[], None]) -> None:
    """Runs the `main` of a command-line tool; for a :class:`UserError` it prints one line and exits with code 2.

    An error in a child process (a worker of a data loader, a launched rank) arrives as another exception whose text
    contains the traceback; the line is taken from there.
    """
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the pipe, such as head, has closed it. Python would report it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def user_message(error: BaseException) -> str | None:
    """One line for the user: what is wrong and what to do; None for other exceptions.

    There is a line for a :class:`UserError` of this or of a child process, a full disk, full memory, and files that
    can't be used.
    """
    # For an error in a child process, this text is a traceback.
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        where = f"{error.filename} could not be written" if error.filename else "a file could not be written"
        return f"{where}: {error.strerror}; free some space, then try again (--resume continues a training)"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return printable(f"{error.filename}: {error.strerror}")
    if is_out_of_memory(error):
        said = printable(text.splitlines()[0] if text else "Python's")[:200]
        return f"the memory is full ({said}); lower SOLVER.IMS_PER_BATCH or the sizes in INPUT"
    if isinstance(error, UserError):
        return str(error)
    in_child = _last_line(text)
    return f"{in_child[1]} [{in_child[0]}]" if in_child else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the memory of the machine or of its GPU is full."""
    # By name, because importing torch for its OutOfMemoryError takes seconds.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(NO_MEMORY in str(part) for part in error.args)
    )
