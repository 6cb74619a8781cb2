"""What pyproject.toml can't say: the wheel gets configs/ inside the package. detectron2 is installed apart."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copies configs/ into the package, so that `se_detection.model_zoo` needs no checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "se_detection", "configs")
            self.copy_tree(str(HERE / "configs"), str(target))


setup(cmdclass={"build_py": BuildWithConfigs})
