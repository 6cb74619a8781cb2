"""Reads numpy arrays from a pickle as plain data: the pickle cannot call numpy's or any other code."""

import pickle
import re
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np


class DType:
    """Stands in for `numpy.dtype`, for plain numbers: made from a type code, then given a byte order as its state."""

    def __init__(self, code: str, *flags: object) -> None:
        if not re.fullmatch(r"[fiu][1248]|b1", code):
            raise pickle.UnpicklingError(f"an array of {code!r:.40}")
        self.code = code
        self.order = "|"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = state[1]

    def read(self, data: bytes | bytearray | str, shape: Sequence[int], order: str) -> "np.ndarray[Any, Any]":
        """An array in the machine's byte order; ValueError if the number of values does not match the shape."""
        # Python 2 pickled bytes as str.
        numbers = np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, self.order + self.code)
        return numbers.astype(numbers.dtype.newbyteorder("=")).reshape(shape, order="F" if order == "F" else "C")


class PickledArray:
    """Stands in for `numpy.ndarray` while a file is read."""

    values: "np.ndarray[Any, Any]"

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.values = dtype.read(data, shape, "F" if is_fortran else "C")


def _reconstruct(array: type[PickledArray], shape: object, dtype: object) -> PickledArray:
    return array()


def _frombuffer(data: Any, dtype: DType, shape: Sequence[int], order: str) -> PickledArray:
    array = PickledArray()
    array.values = dtype.read(data, shape, order)
    return array


def _scalar(dtype: DType, data: bytes | str) -> Any:
    return dtype.read(data, (), "C").item()


# By module and name in the pickle; numpy 2 renamed its modules.
ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): str.encode,
    ("collections", "OrderedDict"): dict,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): DType,
}
for core in ("core", "_core"):
    ALLOWED[f"numpy.{core}.multiarray", "_reconstruct"] = _reconstruct
    ALLOWED[f"numpy.{core}.multiarray", "scalar"] = _scalar
    ALLOWED[f"numpy.{core}.numeric", "_frombuffer"] = _frombuffer


# The pure-Python unpickler: the C one allocates memory for as many objects as a file claims to hold.
class ArrayUnpickler(pickle._Unpickler):
    """Allows only arrays (as :class:`PickledArray`) and plain containers, which detectron2's `.pkl` files hold."""

    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Looks up a name in :data:`ALLOWED`; an UnpicklingError if it is not in there."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return ALLOWED[module, name]

    def load_build(self) -> None:
        """Sets an object's state; only on arrays and dtypes, because functions have attributes too."""
        if not isinstance(self.stack[-2], PickledArray | DType):
            raise pickle.UnpicklingError(f"state of a {type(self.stack[-2]).__name__}")
        build: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]
        build(self)

    def load_bytearray8(self) -> None:
        """Reads bytes; the original allocates as many as the file claims before it reads them."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(min(length, sys.maxsize))))

    dispatch |= {pickle.BUILD[0]: load_build, pickle.BYTEARRAY8[0]: load_bytearray8}
