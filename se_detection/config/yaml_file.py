"""Safe reading of YAML from any source: it creates no Python objects, and its size is limited."""

import math
import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.utils.file_io import PathManager

from ..errors import UserError

BASE = "_BASE_"
# detectron2's own config has 400 values in 10 kB. A few lines with aliases of aliases expand to billions of values.
MAX_BYTES = 2**18
MAX_VALUES = 100_000
MAX_FILES = 100


def read_yaml(path: Path | str) -> Any:
    """The content of a file: mappings, lists and plain values.

    Raises:
        UserError: the file can't be read, is not YAML, creates Python objects, or is too large for a config.
    """
    # Opening a pipe would block.
    if "://" not in str(path) and not os.path.isfile(path):
        raise UserError("config.not_found", f"{path}: there is no such file; se-det zoo lists the configs")
    try:
        with PathManager.open(str(path), "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError("config.unreadable", f"{path}: {error.strerror or error}; give another path") from error
    if len(content) > MAX_BYTES:
        raise UserError("config.too_large", f"{path} has more than {MAX_BYTES} bytes, so it can't be a config")
    try:
        # The loader in C is ten times as fast.
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(content)
        tree = loader.get_single_node()
        if tree is None:
            return None
        if _count_values(tree, {}) > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES} values after its aliases are expanded")
        return loader.construct_document(tree)
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            "config.runs_code",
            f"{path}: it makes Python objects ({error.problem}), and no code is run from a config; write the values "
            "out, or if you trust it, run detectron2's own tools/train_net.py with "
            "DETECTRON2_ENV_MODULE=se_detection.env",
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError("config.not_yaml", f"{path} is not valid YAML ({reason}); correct it") from error


def check_yaml_config(path: str) -> None:
    """Checks a config file and its `_BASE_` files before detectron2 reads them.

    Raises:
        UserError: a file can't be read or has no keys, or there are too many files.
    """
    files = [path]
    for file in files:
        if file.endswith(".py"):
            raise UserError("config.lazy", f"{file} is a lazy config; use detectron2's tools/lazyconfig_train_net.py")
        content = read_yaml(file)
        if not isinstance(content, dict):
            raise UserError("config.no_keys", f"{file} is not a config: it has no keys with values; give another file")
        bases = content.get(BASE, [])
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str) or not base:
                raise UserError("config.bad_base", f"{file}: {BASE}: {base!r} must be the path of a config")
            # As in detectron2, relative to the config.
            is_url = base.startswith(("https://", "http://"))
            files.append(base if is_url else os.path.join(os.path.dirname(file), os.path.expanduser(base)))
        if len(files) > MAX_FILES:
            raise UserError("config.bad_base", f"{path} needs more than {MAX_FILES} files; is one its own {BASE}?")


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values after the aliases are expanded; infinite if a node contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        children = (child for item in node.value for child in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_count_values(child, known) for child in children)
    return known[id(node)]
