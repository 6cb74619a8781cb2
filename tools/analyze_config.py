"""x"""

from collections.abc import Sequence

from detectron2.config import CfgNode
from tabulate import tabulate

from se_detection.config.read_config import read_config
from se_detection.modeling.complexity import COUNTED, DetectorComplexity, _check_counted


def load_detector_config(config_file: str, overrides: Sequence[str]) -> CfgNode:
    """A config file with overrides (`KEY VALUE ...`), for counting.

    Raises:
        UserError: it can't be read, has an unknown key, or is of a detector that isn't counted.
    """
    cfg = read_config(config_file, overrides)
    architecture = cfg.MODEL.META_ARCHITECTURE
    _check_counted("META_ARCHITECTURE", architecture, tuple(COUNTED))
    for key, choices in COUNTED[architecture].items():
        node = cfg.MODEL
        for name in key.split("."):
            node = node[name]
        _check_counted(key, node, choices)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def detector_table(complexity: DetectorComplexity, tablefmt: str = "simple") -> str:
    """A row for each part of a detector and for the whole; below them, what was counted."""
    parts = {**complexity.parts, "total": complexity.total()}
    rows = [[part, f"{count / 1e6:.3f}", f"{gflops:.3f}"] for part, (count, gflops) in parts.items()]
    table = tabulate(
        rows,
        ["part", "params (M)", "GFLOPs"],
        tablefmt=tablefmt,
        disable_numparse=True,
        colalign=["left", "right", "right"],
    )
    note = (
        f"{complexity.detector}. GFLOPs: 10⁹ multiply-adds of convolutions and linear layers\n"
        f"for one image of {_size(complexity.size)}, padded to {_size(complexity.padded)}"
    )
    if complexity.proposals is not None:
        note += f", and {complexity.proposals} proposals (MODEL.RPN.POST_NMS_TOPK_TEST)"
    return f"{table}\n\n{note}."


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
