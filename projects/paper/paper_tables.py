"""The paper's tables of parameters and GFLOPs (Tables 2, 3, 8 and 10 to 16), measured on this project's backbones."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from se_detection.backbones import create_backbone
from se_detection.config.meta_device import Uninitialized, WithoutNorms
from se_detection.config.se_config import PLAIN, SEConfig
from se_detection.modeling.complexity import count_parameters
from se_detection.modeling.insert_se import insert_se

SIZE = 224
NUM_CLASSES = 1000
NOTE = f"""\
Parameters in millions, with a classifier of {NUM_CLASSES} classes. GFLOPs: 10⁹ multiply-adds of convolutions and linear
layers for one image of {SIZE}×{SIZE} (Inception-ResNet-v2: 299×299). "SE adds" is in single parameters, MFLOPs are 10⁶
multiply-adds; the paper's 0.01 to 0.02 GFLOPs are more than these layers compute.
ResNets, ResNeXts and SENet-154 have the layout of the paper's Caffe models. The paper gives no parameters for them; its
column shows timm's, also for the GFLOPs of SENet-154. Other networks are timm's and pytorchcv's (BN-Inception,
ShuffleNet), with SE from insert_se. timm's Inception-ResNet-v2 is TensorFlow's, which has 12 % more GFLOPs than the
paper's; pytorchcv's ShuffleNet has 2 % less, and 0.07 M more parameters.
Tables 10 to 16: SE without biases. The paper's parameters fit better if BN's running statistics (0.05) are added."""

MISSING = "BN-Inception and ShuffleNet are skipped, because pytorchcv is not installed: pip install pytorchcv"


@dataclass(frozen=True)
class PaperClassifier:
    """A classifier of the paper: a backbone in the layout of the paper's Caffe models, with 1000 classes.

    Args:
        backbone: a name for :func:`create_backbone`, without `se_`.
        se: the SE blocks; `PLAIN` for none.
    """

    backbone: str
    se: SEConfig

    def complexity(self) -> tuple[int, int]:
        """Parameters, and multiply-adds of convolutions and linear layers for one image of 224 x 224."""
        name = self.backbone if self.backbone == "senet154" else f"se_{self.backbone}"
        outputs = ("res5", "linear")
        # On the meta device, counting needs no memory and no arithmetic.
        with torch.device("meta"), Uninitialized():
            model = create_backbone(name, layout="caffe", out_features=outputs, num_classes=NUM_CLASSES, se=self.se)
        return _count(model, SIZE)


@dataclass(frozen=True)
class LibraryClassifier:
    """A classifier of the paper from another library, with SE from :func:`insert_se`.

    Args:
        library: `timm`, or `pytorchcv` for networks that timm lacks.
        backbone: the library's name of the network.
        se: the SE blocks; `PLAIN` for none.
        size: height and width of the image in pixels.
    """

    library: str
    backbone: str
    se: SEConfig
    size: int = SIZE

    def build(self) -> nn.Module:
        """The classifier, with random weights."""
        if self.library == "timm":
            model = timm.create_model(self.backbone)
        else:
            from pytorchcv.model_provider import get_model

            model = get_model(self.backbone)
        if self.se.stages:
            insert_se(model, self.se)
        return model

    def complexity(self) -> tuple[int, int]:
        """As :meth:`PaperClassifier.complexity`."""
        with torch.device("meta"), Uninitialized(), WithoutNorms():
            model = self.build()
        return _count(model, self.size)


def _count(model: nn.Module, size: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for one image of `size` x `size`, of a model on the meta device."""
    with torch.no_grad(), WithoutNorms(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, size, size, device="meta"))
    # torch counts a multiply-add as two operations.
    return count_parameters(model), counter.get_total_flops() // 2


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables.

    Args:
        table: number of the table in arXiv 1709.01507v4.
        name: name of the row.
        classifier: the network.
        parameters: millions, rounded as in the paper; for Tables 2 and 8, which give none, from timm's model.
        gflops: billions of multiply-adds, rounded as in the paper; for SENet-154, from timm's model.
    """

    table: int
    name: str
    classifier: PaperClassifier | LibraryClassifier
    parameters: float | None = None
    gflops: float | None = None


def _ablation(**se: Any) -> PaperClassifier:
    # The paper's ablations have no biases in the two layers of SE, but its released models have.
    return PaperClassifier("resnet50", SEConfig(bias=False, **se))


INCEPTION_RESNET = LibraryClassifier("timm", "inception_resnet_v2", PLAIN, size=299)
ROWS = (
    PaperRow(2, "ResNet-50", PaperClassifier("resnet50", PLAIN), 25.56, 3.86),
    PaperRow(2, "SE-ResNet-50", PaperClassifier("resnet50", SEConfig()), 28.09, 3.87),
    PaperRow(2, "ResNet-101", PaperClassifier("resnet101", PLAIN), 44.55, 7.58),
    PaperRow(2, "SE-ResNet-101", PaperClassifier("resnet101", SEConfig()), 49.33, 7.60),
    PaperRow(2, "ResNet-152", PaperClassifier("resnet152", PLAIN), 60.19, 11.30),
    PaperRow(2, "SE-ResNet-152", PaperClassifier("resnet152", SEConfig()), 66.82, 11.32),
    PaperRow(2, "ResNeXt-50 32x4d", PaperClassifier("resnext50_32x4d", PLAIN), 25.03, 4.24),
    PaperRow(2, "SE-ResNeXt-50 32x4d", PaperClassifier("resnext50_32x4d", SEConfig()), 27.56, 4.25),
    PaperRow(2, "ResNeXt-101 32x4d", PaperClassifier("resnext101_32x4d", PLAIN), 44.18, 7.99),
    PaperRow(2, "SE-ResNeXt-101 32x4d", PaperClassifier("resnext101_32x4d", SEConfig()), 48.96, 8.00),
    PaperRow(2, "VGG-16-BN", LibraryClassifier("timm", "vgg16_bn", PLAIN), None, 15.47),
    PaperRow(2, "SE-VGG-16-BN", LibraryClassifier("timm", "vgg16_bn", SEConfig()), None, 15.48),
    PaperRow(2, "BN-Inception", LibraryClassifier("pytorchcv", "bninception", PLAIN), None, 2.03),
    PaperRow(2, "SE-BN-Inception", LibraryClassifier("pytorchcv", "bninception", SEConfig()), None, 2.04),
    PaperRow(2, "Inception-ResNet-v2", INCEPTION_RESNET, None, 11.75),
    PaperRow(2, "SE-Inception-ResNet-v2", replace(INCEPTION_RESNET, se=SEConfig()), None, 11.76),
    PaperRow(3, "MobileNet", LibraryClassifier("timm", "mobilenetv1_100", PLAIN), 4.2, 0.569),
    PaperRow(3, "SE-MobileNet", LibraryClassifier("timm", "mobilenetv1_100", SEConfig()), 4.7, 0.572),
    PaperRow(3, "ShuffleNet", LibraryClassifier("pytorchcv", "shufflenet_g3_w1", PLAIN), 1.8, 0.140),
    PaperRow(3, "SE-ShuffleNet", LibraryClassifier("pytorchcv", "shufflenet_g3_w1", SEConfig()), 2.4, 0.142),
    PaperRow(8, "SENet-154", PaperClassifier("senet154", SEConfig()), 115.09, 20.77),
    PaperRow(10, "reduction 2", _ablation(reduction=2), 45.7),
    PaperRow(10, "reduction 4", _ablation(reduction=4), 35.7),
    PaperRow(10, "reduction 8", _ablation(reduction=8), 30.7),
    PaperRow(10, "reduction 16", _ablation(), 28.1),
    PaperRow(10, "reduction 32", _ablation(reduction=32), 26.9),
    PaperRow(10, "no SE", PaperClassifier("resnet50", PLAIN), 25.6),
    PaperRow(11, "squeeze max", _ablation(squeeze="max")),
    PaperRow(11, "squeeze avg", _ablation()),
    PaperRow(12, "gate relu", _ablation(gate="relu")),
    PaperRow(12, "gate tanh", _ablation(gate="tanh")),
    PaperRow(12, "gate sigmoid", _ablation()),
    PaperRow(13, "stage 2", _ablation(stages=("res2",)), 25.6),
    PaperRow(13, "stage 3", _ablation(stages=("res3",)), 25.7),
    PaperRow(13, "stage 4", _ablation(stages=("res4",)), 26.4),
    PaperRow(13, "stage all", _ablation(), 28.1),
    PaperRow(14, "position standard", _ablation()),
    PaperRow(14, "position pre", _ablation(position="pre")),
    PaperRow(14, "position post", _ablation(position="post")),
    PaperRow(14, "position identity", _ablation(position="identity")),
    PaperRow(15, "position 3x3", _ablation(position="3x3"), 25.8, 3.86),
    PaperRow(16, "squeeze none", _ablation(squeeze="none"), 28.1, 4.27),
)


def measure(rows: Sequence[PaperRow] = ROWS) -> list[dict[str, Any]]:
    """Measures parameters and GFLOPs of each row. Networks in several rows are measured once.

    Rows whose library is not installed are skipped.

    Returns:
        For each row its `table` and `name`; the `parameters` of the classifier and its `gflops`; `added_parameters` and
        `added_gflops`, the difference to the same backbone without SE; the paper's `reference_parameters` in millions
        and `reference_gflops`, or None.
    """
    rows = [row for row in rows if importlib.util.find_spec(getattr(row.classifier, "library", "timm"))]
    plain = {row.classifier: replace(row.classifier, se=PLAIN) for row in rows}
    sizes = {classifier: classifier.complexity() for classifier in dict.fromkeys([*plain, *plain.values()])}
    measured = []
    for row in rows:
        parameters, flops = sizes[row.classifier]
        plain_parameters, plain_flops = sizes[plain[row.classifier]]
        measured.append(
            {
                "table": row.table,
                "name": row.name,
                "parameters": parameters,
                "gflops": flops / 1e9,
                "added_parameters": parameters - plain_parameters,
                "added_gflops": (flops - plain_flops) / 1e9,
                "reference_parameters": row.parameters,
                "reference_gflops": row.gflops,
            }
        )
    return measured


def paper_table(measured: Sequence[dict[str, Any]]) -> str:
    """A line for each row of :func:`measure`: parameters and GFLOPs, the paper's, the difference, and what SE adds."""
    headings = ["Table", "model", "params", "paper", "diff.", "GFLOPs", "paper", "diff. %", "SE adds", "MFLOPs"]
    lines = []
    for row in measured:
        millions, gflops = row["parameters"] / 1e6, row["gflops"]
        cells = [row["table"], row["name"], f"{millions:.3f}", "", "", f"{gflops:.3f}", "", "", "", ""]
        if (reference := row["reference_parameters"]) is not None:
            cells[3:5] = f"{reference}", f"{millions - reference:+.3f}"
        if (reference := row["reference_gflops"]) is not None:
            digits = 3 if reference < 1 else 2
            cells[6:8] = f"{reference:.{digits}f}", f"{100 * (gflops / reference - 1):+.2f}"
        if row["added_parameters"]:
            cells[8:] = f"{row['added_parameters']:,}", f"{1e3 * row['added_gflops']:.2f}"
        lines.append(cells)
    alignment = ["right", "left", *["right"] * 8]
    table = f"{tabulate(lines, headings, disable_numparse=True, colalign=alignment)}\n\n{NOTE}"
    return table if importlib.util.find_spec("pytorchcv") else f"{table}\n{MISSING}"
