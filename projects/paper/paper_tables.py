"""The paper's tables of parameters and GFLOPs (Tables 2, 3 and 10 to 16), measured on this project's backbones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from se_detection.backbones import create_backbone
from se_detection.config.se_config import PLAIN, SEConfig
from se_detection.modeling.complexity import count_parameters, multiply_adds

SIZE = 224
NUM_CLASSES = 1000


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
        """Parameters, and multiply-adds for one image of 224 x 224."""
        # Counting needs no weights, and initializing them would double the time.
        with torch.device("meta"):
            model = create_backbone(
                self.backbone if self.backbone == "senet154" else f"se_{self.backbone}",
                layout="caffe",
                out_features=("res5", "linear"),
                num_classes=NUM_CLASSES,
                se=self.se,
            )
        model.to_empty(device="cpu")
        return count_parameters(model), multiply_adds(model, torch.zeros(1, 3, SIZE, SIZE))[""]


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables.

    Args:
        table: number of the table in arXiv 1709.01507v4.
        name: name of the row.
        classifier: the network.
        parameters: millions, rounded as in the paper; for Tables 2 and 3, which give none, from timm's model.
        gflops: billions of multiply-adds at 224 x 224, rounded as in the paper; for SENet-154, from timm's model.
    """

    table: int
    name: str
    classifier: PaperClassifier
    parameters: float | None = None
    gflops: float | None = None


def _ablation(**se: Any) -> PaperClassifier:
    # The paper's ablations have no biases in the two layers of SE, but its released models have.
    return PaperClassifier("resnet50", SEConfig(bias=False, **se))


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
    PaperRow(3, "SENet-154", PaperClassifier("senet154", SEConfig()), 115.09, 20.77),
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


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A row of the paper, measured.

    Args:
        table, name: see :class:`PaperRow`.
        parameters: parameters of the classifier.
        gflops: billions of multiply-adds of convolutions and linear layers at 224 x 224.
        added_parameters, added_gflops: the difference to the same backbone without SE.
        reference_parameters, reference_gflops: the paper's, in millions and billions.
    """

    table: int
    name: str
    parameters: int
    gflops: float
    added_parameters: int
    added_gflops: float
    reference_parameters: float | None
    reference_gflops: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


def measure(rows: Sequence[PaperRow] = ROWS) -> list[Measurement]:
    """Measures parameters and GFLOPs of each row, and what SE adds. Networks in several rows are measured once."""
    plain = {row.classifier: PaperClassifier(row.classifier.backbone, PLAIN) for row in rows}
    sizes = {classifier: classifier.complexity() for classifier in dict.fromkeys([*plain, *plain.values()])}
    measured = []
    for row in rows:
        parameters, flops = sizes[row.classifier]
        plain_parameters, plain_flops = sizes[plain[row.classifier]]
        measured.append(
            Measurement(
                table=row.table,
                name=row.name,
                parameters=parameters,
                gflops=flops / 1e9,
                added_parameters=parameters - plain_parameters,
                added_gflops=(flops - plain_flops) / 1e9,
                reference_parameters=row.parameters,
                reference_gflops=row.gflops,
            )
        )
    return measured
