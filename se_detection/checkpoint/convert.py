"""Renames the layers of other projects' ResNets to detectron2's names."""

import re
from collections.abc import Mapping

from torch import Tensor

from ..config.se_config import STAGES
from ..errors import UserError
from ..modeling.se_resnet import BLOCKS_PER_STAGE

# Regular expressions and their replacements in a layer's name.
Rules = tuple[tuple[str, str], ...]

PLAIN_STEM: Rules = ((r"^conv1\.", "stem.conv1."), (r"^bn1\.", "stem.conv1.norm."))
CAFFE: Rules = (
    (r"^layer0\.conv(\d)\.", r"stem.conv\1."),
    (r"^layer0\.bn(\d)\.", r"stem.conv\1.norm."),
    (r"\.se_module\.", ".se."),
    (r"^last_linear\.", "linear."),
)
SOURCES = {
    "timm": PLAIN_STEM,
    "torchvision": PLAIN_STEM,
    # timm/models/senet.py and pretrainedmodels/models/senet.py: the paper's Caffe models, with the same names.
    "timm-legacy": CAFFE,
    "cadene": CAFFE,
    # mmpretrain/models/backbones/{resnet,seresnet}.py, under an ImageClassifier.
    "mmpretrain": (
        (r"^backbone\.", ""),
        *PLAIN_STEM,
        (r"\.se_layer\.conv(\d)\.conv\.", r".se.fc\1."),
        (r"^head\.fc\.", "linear."),
    ),
    # pytorchcv/models/{resnet,resnext,seresnet,seresnext}.py.
    "pytorchcv": (
        (r"^features\.init_block\.conv\.", "stem.conv1."),
        (r"^features\.stage(\d)\.", r"layer\1."),
        # Its units count from 1; ResNet-152 has 36 in a stage.
        *((rf"\.unit{number}\.", f".{number - 1}.") for number in range(1, 37)),
        (r"\.body\.", "."),
        (r"\.identity_conv\.(?=conv|bn)", ".shortcut."),
        (r"\.se\.conv(\d)\.", r".se.fc\1."),
        (r"^(stem\.conv1|layer.*\.(?:conv\d|shortcut))\.conv\.", r"\1."),
        (r"^(stem\.conv1|layer.*\.(?:conv\d|shortcut))\.bn\.", r"\1.norm."),
        (r"^output\.", "linear."),
    ),
    # senet/se_module.py of moskomule/senet.pytorch, in torchvision's ResNet: linear layers without bias.
    "moskomule": (*PLAIN_STEM, (r"\.se\.fc\.0\.", ".se.fc1."), (r"\.se\.fc\.2\.", ".se.fc2.")),
}
# Their networks have the layout of the Caffe models; the others have torchvision's.
CAFFE_SOURCES = ("timm-legacy", "cadene")
BLOCKS: Rules = (
    *((rf"^layer{number - 1}\.", f"res{number}.") for number in range(2, 6)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)
KNOWN = r"(stem\.conv[123]|res[2-5]\.\d+\.(conv[123]|shortcut|se\.fc[12])|linear)\.(norm\.)?\w+"


def convert_state_dict(state_dict: Mapping[str, Tensor], source: str, *, depth: int | None = None) -> dict[str, Tensor]:
    """A ResNet's or SE-ResNet's state dict in detectron2's names, without prefix (`stem.conv1.weight`, ...).

    Args:
        state_dict: as the other project saves it; the tensors are not copied.
        source: `timm` (`resnet*`, `seresnet*`, `seresnext*`), `timm-legacy` (`legacy_se*`), `torchvision`, `cadene`,
            `mmpretrain`, `pytorchcv` (`resnet*`, `resnext*`, `seresnet*`, `seresnext*`) or `moskomule`.
        depth: the required `MODEL.RESNETS.DEPTH`; None accepts any.

    Raises:
        UserError: an unknown source, a layer that this project's backbones don't have, or another depth.
    """
    if source not in SOURCES:
        raise UserError("weights.unknown_source", f"source {source!r} is not one of {', '.join(SOURCES)}")
    converted = {}
    for key, tensor in state_dict.items():
        # BatchNorm needs it only with momentum=None, and FrozenBN has no such buffer.
        if key.endswith(".num_batches_tracked"):
            continue
        name = key
        for pattern, replacement in (*SOURCES[source], *BLOCKS):
            name = re.sub(pattern, replacement, name)
        if not re.fullmatch(KNOWN, name):
            raise UserError(
                "weights.unsupported_network",
                f"layer {key} is not of a plain ResNet or SE-ResNet from {source!r}; use weights of a network without "
                "deep stem, average-pooled shortcuts, anti-aliasing or other changes",
            )
        is_linear = re.search(r"\.se\.fc[12]\.weight$", name) and tensor.dim() == 2
        converted[name] = tensor[:, :, None, None] if is_linear else tensor
    found = backbone_depth(converted)
    if source in CAFFE_SOURCES and found < 50:
        raise UserError(
            "weights.unsupported_network",
            f"SE-ResNet-{found} from {source!r} has a ReLU before each SE block, unlike the paper's; use other weights",
        )
    if depth not in (None, found):
        raise UserError(
            "weights.wrong_depth",
            f"depth: {depth}, but the layers are those of depth {found}; omit depth, or give {found}",
        )
    return converted


def backbone_depth(weights: Mapping[str, Tensor]) -> int:
    """`MODEL.RESNETS.DEPTH` of a backbone, from detectron2's names of its layers.

    Raises:
        UserError: no backbone of this project has these numbers of blocks.
    """
    blocks = tuple(len({key.split(".")[1] for key in weights if key.startswith(f"{stage}.")}) for stage in STAGES)
    bottlenecks = "res2.0.conv3.weight" in weights
    deep_stem = "stem.conv2.weight" in weights
    for depth, expected in BLOCKS_PER_STAGE.items():
        if blocks == expected and bottlenecks == (depth >= 50) and deep_stem == (depth == 154):
            return depth
    kind = "bottlenecks" if bottlenecks else "basic blocks"
    raise UserError(
        "weights.unsupported_network",
        f"the stages have {', '.join(map(str, blocks))} {kind}; use a network of depth "
        f"{', '.join(map(str, BLOCKS_PER_STAGE))}",
    )


def fitting_source(state_dict: Mapping[str, Tensor]) -> str | None:
    """The first source whose layer names fit a state dict; None if none fits."""
    for source in SOURCES:
        try:
            convert_state_dict(state_dict, source)
        except UserError:
            continue
        return source
    return None
