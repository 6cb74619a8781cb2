"""Installs detectron2 if it is missing: `python se_detection/install_detectron2.py`.

detectron2 is not on PyPI under its own name. The wheel pinned here contains upstream's Python files (commit a59f0563)
and the configs of its zoo. It is tagged for Python 3.10, but nothing in it is compiled, so it is retagged for any
Python 3. It is installed without its requirements, because they exclude numpy 2. An installed detectron2 is not
changed.

This file is run by its path and imports nothing from the package, which can't be imported without detectron2.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT, VERSION = "sal-detectron2", "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
UPSTREAM = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"

MISSING_DETECTRON2 = (
    "se_detection needs detectron2, which is not installed. Install the pure-Python wheel that se_detection is tested "
    f"with:\n  {sys.executable} {Path(__file__).resolve()}\n"
    f"or build upstream from source (needs a C++ compiler):\n  {UPSTREAM}"
)


def install() -> str:
    """Installs the pinned wheel with this interpreter's pip; returns a line that reports the result.

    Raises:
        RuntimeError: the downloaded file is not the tested one.
        subprocess.CalledProcessError: pip failed; its output says why.
    """
    if importlib.util.find_spec("detectron2"):
        return "detectron2 is already installed: not changed"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        any_python = ["--only-binary=:all:", "--python-version", "3.10", "--abi", "none", "--platform", "any"]
        download = ["download", "--quiet", "--no-deps", *any_python, "--dest", folder, f"{PROJECT}=={VERSION}"]
        subprocess.run([*pip, *download], check=True)
        (downloaded,) = Path(folder).glob("*.whl")
        digest = hashlib.sha256(downloaded.read_bytes()).hexdigest()
        if digest != SHA256:
            raise RuntimeError(f"{downloaded.name}: SHA-256 {digest} is not the expected {SHA256}; nothing installed")
        wheel = downloaded.rename(downloaded.with_name(f"{PROJECT.replace('-', '_')}-{VERSION}-py3-none-any.whl"))
        subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True)
    return f"detectron2 installed from {PROJECT} {VERSION} (SHA-256 checked)"


if __name__ == "__main__":
    try:
        print(install())
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
