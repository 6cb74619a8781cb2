"""Reads a config: detectron2's defaults, a file, overrides, and the checks of their values."""

import re
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ..errors import UserError
from .defaults import flatten
from .se_config import check_choice
from .yaml_file import check_yaml_config

NOT_NEGATIVE = (
    "CHECKPOINT_PERIOD",
    "CHECKPOINTS_TO_KEEP",
    "SKIP_NON_FINITE",
    "BACKBONE_FREEZE_ITERS",
    "BACKBONE_MULTIPLIER",
)


def read_config(config_file: str, overrides: Sequence[str] = (), *, base: CfgNode | None = None) -> CfgNode:
    """A config that is not frozen: detectron2's defaults, changed by a file, then by overrides (`KEY VALUE ...`).

    Args:
        base: other defaults; not changed.

    Raises:
        UserError: the file can't be read or is not YAML, or a key or value is wrong.
    """
    cfg = get_cfg() if base is None else base.clone()
    defaults = flatten(cfg)
    check_yaml_config(config_file)
    try:
        # By default, detectron2 lets a yaml file construct any Python object.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except Exception as error:  # yacs and detectron2 raise many classes
        raise _explained(error, config_file, defaults) from error
    if flag := next((word for word in overrides[::2] if word.startswith("--")), None):
        raise UserError("config.late_flag", f"config overrides: {flag[:300]} must stand before the first KEY VALUE")
    if len(overrides) % 2:
        given = shlex.join(overrides)[:300]
        raise UserError("config.not_pairs", f"config overrides: {given}: these must be pairs of KEY and VALUE")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        try:
            cfg.merge_from_list([key, _as_float(value) if isinstance(defaults.get(key), float) else value])
        except Exception as error:
            raise _explained(error, f"config overrides: {key} {value!r}"[:300], defaults) from error
    for key, value in flatten(cfg).items():
        # yacs accepts None for any value.
        if value is None and defaults.get(key) is not None:
            raise UserError("config.no_value", f"{key}: it has no value; its default is {defaults[key]!r}")
    for key in NOT_NEGATIVE:
        if cfg.SOLVER[key] < 0:
            raise UserError("config.bad_value", f"SOLVER.{key}: {cfg.SOLVER[key]} is negative; give 0 or more")
    check_choice("INPUT.FORMAT", cfg.INPUT.FORMAT, ("RGB", "BGR"))
    if not all(isinstance(value, int | float) and value > 0 for value in cfg.MODEL.PIXEL_STD):
        raise UserError("config.bad_value", f"MODEL.PIXEL_STD: {list(cfg.MODEL.PIXEL_STD)} must be numbers above 0")
    return cfg


def _as_float(word: str) -> str:
    """Writes `4` as `4.0`, because detectron2 refuses an integer for a float."""
    return f"{word}.0" if word.lstrip("+-").isdecimal() else word


def _explained(error: Exception, where: str, defaults: Mapping[str, Any]) -> UserError:
    text = " ".join(str(error.args[0] if error.args else error).split())
    # yacs names classes; the value in it is that of a file, or of an override, which `where` names.
    if mismatch := re.fullmatch(r"Type mismatch .* with values \(.* vs\. (.*)\) for config key: (\S+)", text):
        value, key = mismatch.groups()
        if key not in where:
            where += f": {key} {value[:100]!r}"
        return UserError("config.bad_value", f"{where}: {_wanted(defaults.get(key))}")
    text = text[:300]
    if "Non-existent" not in text:
        return UserError("config.bad_value", f"{where}: {text}; give another value")
    unknown = text.rsplit(maxsplit=1)[-1]
    close = get_close_matches(unknown, defaults, n=1)
    meant = f"did you mean {close[0]}?" if close else "docs/CONFIG.md and detectron2 list the keys"
    return UserError("config.unknown_key", f"{where}: unknown config key {unknown}; {meant}")


def _wanted(default: Any) -> str:
    """What to give for a key with this default value; None for a group of keys."""
    match default:
        case None:
            return "this is a group of keys; set one of them"
        case bool():
            return "this key is True or False; give one of them"
        case int():
            return f"this key takes a whole number; give one, such as {default}"
        case float():
            return f"this key takes a number; give one, such as {default}"
        case list():
            return f'this key takes a list; give one in quotes, such as "{tuple(default) or ("name",)}"'
    return f'this key takes text; give it in two pairs of quotes, such as "{default or "name"!r}"'
