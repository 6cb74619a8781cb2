"""Reads a config: detectron2's defaults, a file, overrides, and the checks of their values."""

import os
import shlex
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from detectron2.config import CfgNode, get_cfg

from ..errors import UserError
from .defaults import flatten
from .values import check_values
from .yaml_file import check_yaml_config

# Raised by detectron2 and yacs for a key or a value that they can't merge.
UNMERGEABLE = (KeyError, ValueError, AssertionError, AttributeError, TypeError, RecursionError, MemoryError, OSError)


def read_config(config_file: str, overrides: Sequence[str] = (), *, base: CfgNode | None = None) -> CfgNode:
    """A config that is not frozen: detectron2's defaults, changed by a file, then by overrides (`KEY VALUE ...`).

    Args:
        base: other defaults; not changed.

    Raises:
        UserError: the file can't be read or is not YAML, or a key or value is wrong.
    """
    if not config_file:
        raise UserError("--config-file is missing; give a file, or the name of a config (se-det zoo lists them)")
    if not os.path.isfile(config_file):
        raise UserError(f"--config-file {config_file}: there is no such file")
    cfg = get_cfg() if base is None else base.clone()
    defaults = flatten(cfg)
    check_yaml_config(config_file)
    try:
        # By default, detectron2 lets a yaml file construct any Python object.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except UNMERGEABLE as error:
        raise UserError(f"{config_file}: {_explain(error, defaults)}") from error
    if flag := next((word for word in overrides[::2] if word.startswith("--") and word != "--"), None):
        raise UserError(f"config overrides: {flag[:300]}: put flags before the first KEY VALUE")
    if len(overrides) % 2:
        raise UserError(f"config overrides: {shlex.join(overrides)[:300]}: these are not pairs of KEY and VALUE")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            cfg.merge_from_list([key, _as_float(value) if isinstance(defaults.get(key), float) else value])
        except UNMERGEABLE as error:
            shown = f"{key} {value!r}"[:300]
            raise UserError(f"config overrides: {shown}: {_explain(error, defaults)}") from error
    check_values(cfg, defaults)
    return cfg


def _as_float(word: str) -> str:
    """Writes `4` as `4.0`, because detectron2 refuses an integer for a float."""
    return f"{word}.0" if word.lstrip("+-").isdecimal() else word


def _explain(error: Exception, keys: Iterable[str]) -> str:
    text = " ".join(str(error.args[0] if error.args else error).split())[:300]
    if "Non-existent" in text:
        unknown = text.rsplit(maxsplit=1)[-1]
        close = get_close_matches(unknown, keys, n=1)
        return f"unknown config key {unknown}" + (f"; did you mean {close[0]}?" if close else "")
    return text
