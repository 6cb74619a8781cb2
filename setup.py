"""Packaging of se_detection; detectron2 is installed apart (see se_detection/install_detectron2.py)."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Puts configs/ inside the package, so that `se_detection.model_zoo` needs no checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "se_detection", "configs")
            self.copy_tree(str(HERE / "configs"), str(target))


setup(
    name="se_detection",
    version="0.1.0",
    description="Squeeze-and-excitation backbones for detectron2",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # A .pth file, not an import hook: to a script beside the checkout, the checkout would else be the package.
    package_dir={"": "."},
    packages=find_packages(include=["se_detection", "se_detection.*"]),
    package_data={
        "se_detection": ["py.typed"],
        "se_detection.visualization": ["templates/*"],
    },
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=[
        # No lower bound: pip must not replace the torch that an installed detectron2 was compiled for.
        "torch",
        "torchvision",
        "pycocotools>=2.0.11",
        "timm",
        "jinja2>=3.1",
        "markupsafe",
        "werkzeug>=3.1",
        "tqdm",
        # What detectron2 imports: its pinned wheel is installed without its own list, which asks for numpy<2.
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "yacs>=0.1.8",
        "cloudpickle",
        "matplotlib",
        "numpy",
        "opencv-python-headless",
        "packaging",
        "pillow",
        "setuptools<81",
        "tabulate>=0.9",
        "tensorboard",
        "termcolor",
    ],
    extras_require={
        "export": ["onnx", "onnxruntime"],
        "dev": [
            "axe-playwright-python",
            "hypothesis",
            "mypy",
            "onnx",
            "onnxruntime",
            "playwright",
            "pretrainedmodels",
            "psutil",  # detectron2's tools/benchmark.py
            "pytest",
            "pytest-xdist",
            "ruff",
            "six",  # pretrainedmodels imports it without saying so
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
