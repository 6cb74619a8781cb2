"""Importing the package imports little in addition to detectron2."""

import subprocess
import sys

import pytest

CODE = """
import sys
import {theirs}
before = set(sys.modules)
import {ours}
print(*{{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("se_detection", "detectron2.checkpoint, detectron2.data, detectron2.modeling"),
        # What tools/train_net.py imports: no timm, Matplotlib or Jinja.
        ("se_detection.engine", "detectron2.engine, detectron2.evaluation"),
    ],
)
def test_no_package_is_imported_that_detectron2_does_not_need(ours, theirs) -> None:
    command = [sys.executable, "-c", CODE.format(ours=ours, theirs=theirs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # NumPy and Pillow import some of their modules on first use; other modules of detectron2 may be used.
    assert set(done.stdout.split()) - {"numpy", "PIL", "detectron2"} == {"se_detection", "safetensors"}
