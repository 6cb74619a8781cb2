"""Checks that named configs and files exist, made before torch is imported, which takes seconds.

They find the usual mistakes at once; the package makes all checks again.
"""

import glob
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path


class QuickError(Exception):
    """A mistake in a command line, with a stable code and one line; as the package's `UserError`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} [{code}]")


def check_exist(flag: str, paths: Iterable[Path | str | None], code: str) -> None:
    """Checks that files or folders exist; None is a flag that was not given.

    Raises:
        QuickError: one doesn't exist.
    """
    for path in paths:
        if path is not None and not Path(path).exists():
            raise QuickError(code, f"{flag} {str(path)!r}: there is no such file or folder; check the path")


def check_inputs(patterns: Iterable[str]) -> None:
    """Checks the images of `se-det predict`: files, folders, patterns or a camera.

    Raises:
        QuickError: one matches nothing.
    """
    for pattern in patterns:
        if not pattern.startswith("camera:") and not Path(pattern).exists() and not glob.glob(pattern, recursive=True):
            problem = "no file or folder has this name or matches this pattern"
            raise QuickError("predict.no_files", f"{pattern!r}: {problem}; give images, videos, or folders of them")


def check_config(name: str) -> None:
    """Checks that a config file, or a config whose name has the same last part, exists.

    Raises:
        QuickError: it does not exist.
    """
    if not name:
        message = "--config-file is missing; give a file, or the name of a config (se-det zoo lists them)"
        raise QuickError("config.not_found", message)
    if Path(name).is_file():
        return
    known = _config_names()
    last = Path(name).name.removesuffix(".yaml")
    # Without detectron2, the package says how to install it.
    if known and last not in known:
        close = get_close_matches(last, known, n=1)
        meant = f"did you mean {known[close[0]]!r}? " if close else ""
        message = (
            f"--config-file {name!r}: there is no such file, and no config of that name; {meant}se-det zoo lists all"
        )
        raise QuickError("config.not_found", message)


def check_weights(overrides: Sequence[str]) -> None:
    """Checks the file that `MODEL.WEIGHTS` names in the overrides of a config, if it is a path.

    Raises:
        QuickError: it doesn't exist.
    """
    for key, value in zip(overrides[::2], overrides[1::2], strict=False):
        if key == "MODEL.WEIGHTS" and value and "://" not in value:
            # detectron2 reads a query behind the name.
            check_exist(key, [value.partition("?")[0]], "weights.not_found")


def _config_names() -> dict[str, str]:
    """The names of the configs of this project and detectron2, by their last part; empty without detectron2."""
    ours, theirs = (find_spec(package) for package in ("se_detection", "detectron2"))
    if ours is None or ours.origin is None or theirs is None or theirs.origin is None:
        return {}
    package = Path(ours.origin).parent
    folders = (Path(theirs.origin).parent / "model_zoo" / "configs", package / "configs", package.parent / "configs")
    files = (
        file.relative_to(folder)
        for folder in folders
        for file in folder.rglob("*.*")
        if file.suffix in (".yaml", ".py")
    )
    names = (file.as_posix().removesuffix(".yaml") for file in files)
    return {name.rpartition("/")[2]: name for name in names}
