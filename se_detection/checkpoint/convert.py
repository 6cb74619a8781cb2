"""Other projects' names for the layers of a ResNet, turned into detectron2's."""

import re
from collections.abc import Mapping

from torch import Tensor

from ..errors import UserError

# Each project's stem, then what all of them share.
STEMS = {
    "timm": ((r"^conv1\.", "stem.conv1."), (r"^bn1\.", "stem.conv1.norm.")),
    "torchvision": ((r"^conv1\.", "stem.conv1."), (r"^bn1\.", "stem.conv1.norm.")),
    "timm-legacy": ((r"^layer0\.conv1\.", "stem.conv1."), (r"^layer0\.bn1\.", "stem.conv1.norm.")),
}
STAGES_AND_BLOCKS = (
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.se_module\.", ".se."),
    (r"^(fc|last_linear)\.", "linear."),
)


def convert_state_dict(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A ResNet's or SE-ResNet's state dict in detectron2's names, without prefix (`stem.conv1.weight`, ...).

    Args:
        state_dict: as the other project saves it; the tensors are not copied.
        source: `timm` (`resnet*`, `seresnet*`), `timm-legacy` (`legacy_seresnet*`) or `torchvision`.

    Raises:
        UserError: an unknown source, or a layer that the trunks of this project don't have.
    """
    if source not in STEMS:
        raise UserError(f"source {source!r} is not one of {', '.join(STEMS)}")
    converted = {}
    for key, tensor in state_dict.items():
        # Only BatchNorm's own momentum-free average counts batches; FrozenBN has no such buffer.
        if key.endswith(".num_batches_tracked"):
            continue
        name = key
        for pattern, replacement in (*STEMS[source], *STAGES_AND_BLOCKS):
            name = re.sub(pattern, replacement, name)
        if not re.match(r"(stem\.conv1|res[2-5]\.\d+\.(conv[123]|shortcut|se\.fc[12])|linear)\.(norm\.)?\w+$", name):
            raise UserError(
                f"layer {key} is none of a plain ResNet or SE-ResNet of source {source!r}; it can't be converted"
            )
        converted[name] = tensor
    return converted
