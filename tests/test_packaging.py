import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from se_detection import install_detectron2, model_zoo

from .helpers import REPOSITORY, environment


def python(folder: Path, code: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    env = environment(HOME=str(folder), **changes)
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_wheel_has_the_configs_and_the_commands_and_no_projects(tmp_path) -> None:
    # Built from a copy: setuptools would take up what an earlier build left in the checkout.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("se_detection", "se_detection_cli", "configs", "tools", "projects", "dev"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    # What pip calls, without pip.
    build = [sys.executable, "-c", f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"se_detection", "se_detection_cli"}
    assert (installed / "se_detection" / "py.typed").is_file()
    assert (installed / "se_detection" / "visualization" / "templates" / "page.html.jinja").is_file()
    # As a plugin of detectron2, which is imported first.
    code = """from detectron2.config import get_cfg
import se_detection
print(get_cfg().MODEL.SE.REDUCTION, se_detection.__file__, *se_detection.model_zoo.names(), sep='\\n')"""
    # detectron2's use of TorchScript must not show. Newer versions of torch print this warning.
    changes = {"DETECTRON2_ENV_MODULE": "se_detection.env", "PYTHONWARNINGS": "error:`torch.jit.script` is deprecated"}
    done = python(tmp_path, code, PYTHONPATH=str(installed), **changes)
    assert done.returncode == 0, done.stderr
    reduction, file, *names = done.stdout.splitlines()
    assert reduction == "16"
    assert Path(file).parent == installed / "se_detection"
    assert names == model_zoo.names()


def test_a_folder_of_the_checkouts_name_is_not_taken_for_the_package(tmp_path) -> None:
    (tmp_path / "se_detection").mkdir()
    done = python(tmp_path, "import importlib.util; print(importlib.util.find_spec('se_detection').origin)")
    assert done.stdout.strip() == str(REPOSITORY / "se_detection" / "__init__.py")


def test_without_detectron2_the_message_says_how_to_get_it(tmp_path) -> None:
    done = python(tmp_path, "import sys; sys.modules['detectron2'] = None; import se_detection")
    assert done.returncode == 1
    message = done.stderr.split("ModuleNotFoundError: ")[-1]
    assert message.strip() == install_detectron2.MISSING_DETECTRON2
    assert str(REPOSITORY / "se_detection" / "install_detectron2.py") in message
    assert "git+https://github.com/facebookresearch/detectron2.git" in message


def test_an_installed_detectron2_is_left_alone() -> None:
    command = [sys.executable, REPOSITORY / "se_detection" / "install_detectron2.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "detectron2 is already installed: not changed\n"


def test_another_file_under_detectron2s_name_is_not_installed(monkeypatch) -> None:
    commands = []

    def run(command: list[str], check: bool) -> None:
        commands.append(command)
        if "download" in command:
            Path(command[command.index("--dest") + 1], "sal_detectron2-0.7.2-cp310-none-any.whl").write_bytes(b"other")

    monkeypatch.setattr(install_detectron2.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(install_detectron2.subprocess, "run", run)
    with pytest.raises(RuntimeError, match=r"is not the expected 491af0c7.*; nothing installed"):
        install_detectron2.install()
    assert len(commands) == 1
