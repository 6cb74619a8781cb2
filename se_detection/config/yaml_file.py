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
        raise UserError(f"{path}: there is no such file")
    try:
        with PathManager.open(str(path), "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is not a config: it has more than {MAX_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(content)
        tree = loader.get_single_node()
        if tree is None:
            return None
        if _count_values(tree, {}) > MAX_VALUES:
            raise UserError(
                f"{path} is not a config: it has more than {MAX_VALUES} values after its aliases are expanded"
            )
        return loader.construct_document(tree)
    except UserError:
        raise
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{path}: it makes Python objects ({error.problem}), and no code is run from a config; write the values "
            "out, or if you trust it, run detectron2's own tools/train_net.py with "
            "DETECTRON2_ENV_MODULE=se_detection.env"
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def check_yaml_config(path: str) -> None:
    """Checks a config file and its `_BASE_` files before detectron2 reads them.

    Raises:
        UserError: a file can't be read or has no keys, is its own base, or there are too many files.
    """
    _check_config(path, (), [])


def _check_config(path: str, above: tuple[str, ...], read: list[str]) -> None:
    if path.endswith(".py"):
        raise UserError(f"{path} is a lazy config; detectron2's own tools/lazyconfig_train_net.py trains those")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: it has no keys with values")
    read.append(path)
    if len(read) > MAX_FILES:
        raise UserError(f"{read[0]} reads more than {MAX_FILES} files through {BASE}; merge some of them")
    above = (*above, os.path.realpath(path))
    bases = content.get(BASE, [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str) or not base:
            raise UserError(f"{path}: {BASE}: {base!r} is not the path of a config")
        base_path = base
        if not base.startswith(("https://", "http://")):
            # As in detectron2, relative to the config.
            base_path = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if os.path.realpath(base_path) in above:
            raise UserError(f"{path}: {BASE}: {base} is this file, or a file whose base is this file")
        _check_config(base_path, above, read)


def _count_values(node: yaml.Node, known: dict[int, float]) -> float:
    """The number of values after the aliases are expanded; infinite if a node contains itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        children = (child for item in node.value for child in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_count_values(child, known) for child in children)
    return known[id(node)]
