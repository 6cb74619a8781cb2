"""What is imported at the start: besides detectron2 and what it needs itself, next to nothing."""

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
    # Some of numpy's and Pillow's own modules are imported when they are first used.
    assert set(done.stdout.split()) - {"numpy", "PIL"} == {"se_detection", "safetensors"}
