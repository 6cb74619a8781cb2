"""A backbone that is loaded in part is an error, whichever tool loads it."""

import re
from typing import Any

from torch import nn

from ..errors import UserError

PLAIN_BACKBONE_REASON = (
    "the file's backbone is plain and the config's has SE, which helps a detector only when its backbone was pre-trained "
    "with it; take SE weights (timm://seresnet50.a1_in1k, timm://legacy_seresnet50.in1k, ...)"
)
# What a file may lack: a counter that FrozenBN has not, and the offsets of deformable convolution, which start at zero.
OPTIONAL = r"\.num_batches_tracked$|\.conv2_offset\."


def refuse_partial_load(backbone: nn.Module) -> None:
    """From now on, `load_state_dict` of the backbone or of a detector that holds it raises if tensors of it are missing.

    detectron2's checkpointer loads with `strict=False` and logs what was missing, also when that is the whole backbone.
    """
    backbone.register_load_state_dict_post_hook(_check)


def _check(backbone: nn.Module, incompatible: Any) -> None:
    # The hook is told of all keys that are missing so far, under the prefix that the backbone has in the detector.
    own = tuple(key for key in backbone.state_dict() if not re.search(OPTIONAL, key))
    missing = [key for key in incompatible.missing_keys if key.endswith(own)]
    if not missing:
        return
    if len(missing) == sum(".se." in key for key in own) and all(".se." in key for key in missing):
        raise UserError(f"the weights don't fit the config: {PLAIN_BACKBONE_REASON}")
    raise UserError(
        f"the weights don't fit the config: {len(missing)} of the backbone's {len(own)} tensors are missing or of another "
        f"shape ({missing[0]}, ...); take the config that the file was made with, or convert a file of another project "
        "with tools/convert_weights.py"
    )
