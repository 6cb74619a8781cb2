"""The oldest supported Python and torch; docs/COMPATIBILITY.md lists the tested combinations."""

import re
from collections.abc import Sequence

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 6)


def check_versions(python: Sequence[int], torch: str) -> None:
    """Checks that Python and torch are new enough.

    Args:
        python: major and minor version, as in `sys.version_info`.
        torch: `torch.__version__`.

    Raises:
        ImportError: Python or torch is too old.
    """
    found = {"Python": tuple(python[:2]), "torch": tuple(map(int, re.findall(r"\d+", torch)[:2]))}
    for name, oldest in (("Python", OLDEST_PYTHON), ("torch", OLDEST_TORCH)):
        if found[name] < oldest:
            raise ImportError(
                f"se_detection needs {name} {'.'.join(map(str, oldest))} or newer, and this is "
                f"{'.'.join(map(str, found[name]))}; see docs/COMPATIBILITY.md"
            )
