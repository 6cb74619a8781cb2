"""The name of the data set that detectron2 stumbles over."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ..errors import UserError

# What detectron2 and pycocotools stumble over annotations with.
MISTAKES_IN_DATA = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@contextmanager
def naming(datasets: Iterable[str]) -> Iterator[None]:
    """Names the data sets whose annotations detectron2 stumbles over; built-in ones are not read through before."""
    try:
        yield
    except UserError:
        raise
    except MISTAKES_IN_DATA as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"data set {', '.join(datasets)}: its annotations can't be used: {reason}") from error
