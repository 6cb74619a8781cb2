"""Runs the fast tests with several versions of Python and torch: `make test-matrix`.

Each combination gets an environment of its own in `build/matrix`, made by uv, or by venv and pip if uv is missing, and
removed after its tests. Rows are printed and appended to `build/matrix/results.md`. The tests run in a copy of the
checkout whose folder has a space and letters that are not Latin.
"""

import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "matrix"
# The ends: the oldest and newest Python of the oldest and the newest torch; torch 2.15 has no wheels for Python 3.10.
COMBINATIONS = (
    *("3.10:2.6.0:0.21.0", "3.13:2.6.0:0.21.0", "3.10:2.14.1:0.29.1"),
    *("3.11:2.15.0:0.29.2", "3.13:2.15.0:0.29.2", "3.14:2.15.0:0.29.2"),
)
TESTS = ["albumentations", "hypothesis", "ipython", "nbformat", "pretrainedmodels", "pytest", "pytest-xdist", "six"]
EXTRAS = "networks,completion,openvino"


@dataclass(frozen=True)
class Combination:
    """Versions that are tested together."""

    python: str
    torch: str
    torchvision: str

    def __str__(self) -> str:
        return f"Python {self.python}, torch {self.torch}, torchvision {self.torchvision}"


class NotInstalledError(Exception):
    """A combination can't be installed; the message is the reason, in one line."""


def copy_checkout(target: Path) -> None:
    """Copies git's files."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    shutil.rmtree(target, ignore_errors=True)
    for name in filter(None, files.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def install(tested: Combination, environment: Path, source: Path) -> Path:
    """Makes an environment with the newest other packages, and returns its Python.

    Raises:
        NotInstalledError: there is no such Python, or a package can't be installed.
    """
    shutil.rmtree(environment, ignore_errors=True)
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    interpreter = shutil.which(f"python{tested.python}")
    if uv := shutil.which("uv"):
        _install(
            [uv, "venv", "--quiet", "--seed", "--no-python-downloads", "--python", tested.python, str(environment)]
        )
        pip = [uv, "pip", "install", "--quiet", "--python", str(python)]
    elif interpreter:
        _install([interpreter, "-m", "venv", str(environment)])
        pip = [str(python), "-m", "pip", "install", "--quiet"]
    else:
        raise NotInstalledError(f"there is no python{tested.python} on this machine")
    pins = [f"torch=={tested.torch}", f"torchvision=={tested.torchvision}"]
    _install([*pip, *pins, *TESTS, "-e", f"{source}[{EXTRAS}]"])
    _install([str(python), str(source / "se_detection" / "install_detectron2.py")])
    return python


def _install(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [" ".join(line.split()) for line in (done.stderr or done.stdout).splitlines()]
        reasons = [line for line in lines if line and not line.lower().startswith("warning")]
        raise NotInstalledError(next((line for line in reasons if "because" in line.lower()), reasons[0])[:300])


def run_tests(python: Path, source: Path, log: Path) -> str:
    """Runs the fast tests, and returns pytest's last line, such as `900 passed in 60.00s`."""
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-m", "not slow", "tests"]
    with log.open("wb") as file:
        subprocess.run(command, cwd=source, stdout=file, stderr=subprocess.STDOUT, check=False)
    found = re.findall(r"^(?:=+ )?(\d+ \w+.* in [\d.]+s.*?)(?: =+)?$", log.read_text(errors="replace"), re.MULTILINE)
    return found[-1] if found else f"no test ran: see {log}"


def main() -> None:
    """Tests one combination after the other."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("combination", nargs="*", default=COMBINATIONS, help="PYTHON:TORCH:TORCHVISION")
    combinations = [Combination(*words.split(":")) for words in parser.parse_args().combination]
    source = FOLDER / "проверка 走"
    copy_checkout(source)
    for tested in combinations:
        environment = FOLDER / f"{tested.python}-{tested.torch}"
        try:
            python = install(tested, environment, source)
            result = run_tests(python, source, FOLDER / f"{environment.name}.log")
        except NotInstalledError as error:
            result = f"not installed: {error}"
        shutil.rmtree(environment, ignore_errors=True)
        row = f"| {tested.torch} | {tested.torchvision} | {tested.python} | {result} |"
        print(row, flush=True)
        with (FOLDER / "results.md").open("a", encoding="utf-8") as file:
            file.write(f"{row}\n")


if __name__ == "__main__":
    main()
