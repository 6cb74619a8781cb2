"""The names that are imported from the top of the package."""

import inspect
import subprocess
import sys

import pytest
from detectron2 import model_zoo as detectron2_zoo

import se_detection
from se_detection import model_zoo

from .helpers import REPOSITORY, environment

FUNCTIONS = {
    "add_se_config": ["cfg"],
    "compare": ["baseline", "candidate", "annotations", "n_bootstrap"],
    "convert_state_dict": ["state_dict", "source", "depth"],
    "create_backbone": ["name", "weights", "layout", "norm", "out_features", "num_classes", "se", "freeze_at"],
    "create_res5": ["name", "weights", "layout", "norm", "se"],
    "create_timm_backbone": [
        *("name", "out_features", "norm", "freeze_at", "output_stride", "drop_path", "drop_block", "kwargs", "se"),
        "in_channels",
    ],
    "fuse_for_inference": ["model", "dtype", "compile"],
    "insert_se": ["network", "se", "sites", "skip"],
    "register_se_sites": ["block", "sites"],
    "SESite": ["module", "before"],
    "SqueezeExcitation": ["channels", "reduction", "squeeze", "gate", "bias", "gate_bias", "init"],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters(name) -> None:
    assert list(inspect.signature(getattr(se_detection, name)).parameters) == FUNCTIONS[name]


def test_the_version_is_that_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert se_detection.__version__ == content["project"]["version"]


def test_all_names_exist() -> None:
    for name in se_detection.__all__:
        assert getattr(se_detection, name) is not None
        assert name in dir(se_detection)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = se_detection.nothing


@pytest.mark.parametrize("name", ["get", "get_config", "get_config_file"])
def test_the_zoo_has_detectron2s_parameters(name) -> None:
    ours, theirs = (inspect.signature(getattr(zoo, name)).parameters for zoo in (model_zoo, detectron2_zoo))
    # The first one, a path in configs/, has another name.
    assert list(ours.values())[1:] == [
        parameter.replace(annotation=ours[key].annotation) for key, parameter in list(theirs.items())[1:]
    ]


@pytest.mark.slow
def test_the_plugin_is_imported_before_detectron2_and_lazy_names_are_the_package_functions() -> None:
    """Also after other imports from their packages."""
    code = """
import sys
from se_detection.comparison.scores import METRICS
import se_detection
from detectron2.modeling import BACKBONE_REGISTRY
assert "build_se_resnet_fpn_backbone" in BACKBONE_REGISTRY
assert "se_detection.inference" not in sys.modules
from se_detection import SEPredictor, compare
import se_detection.comparison.tables
from se_detection.comparison.compare import compare as original
assert compare is original is se_detection.compare
assert SEPredictor.__module__ == "se_detection.inference.predictor"
"""
    subprocess.run([sys.executable, "-c", code], env=environment(DETECTRON2_ENV_MODULE="se_detection.env"), check=True)
