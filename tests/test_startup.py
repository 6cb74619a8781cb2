"""Importing the package imports little in addition to detectron2."""

import subprocess
import sys

import pytest

from .helpers import environment

# The last of them is what tools/train_net.py imports: no timm, Matplotlib or Jinja.
CODE = """
import sys
new = set()
for theirs, ours in (
    ("detectron2.checkpoint detectron2.data detectron2.modeling", "se_detection"),
    ("detectron2.engine detectron2.evaluation", "se_detection.engine"),
):
    for name in theirs.split():
        __import__(name)
    before = set(sys.modules)
    __import__(ours)
    new |= set(sys.modules) - before
print(*{name.partition(".")[0] for name in new} - sys.stdlib_module_names)
"""


@pytest.mark.slow
def test_no_package_is_imported_that_detectron2_does_not_need() -> None:
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    # NumPy and Pillow import some of their modules on first use; other modules of detectron2 and torch may be used.
    assert set(done.stdout.split()) - {"numpy", "PIL", "detectron2", "torch"} == {"se_detection", "safetensors"}
