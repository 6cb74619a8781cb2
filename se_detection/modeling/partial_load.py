"""Makes it an error to load only a part of a backbone, also with detectron2's own tools."""

import re
from typing import Any

from torch import nn

from ..errors import UserError
from .squeeze_excitation import SqueezeExcitation

PLAIN_BACKBONE_REASON = (
    "the file's backbone is plain and the config's has SE, which helps a detector only if its backbone was pre-trained "
    "with it; use SE weights (timm://seresnet50.a1_in1k, timm://legacy_seresnet50.in1k, ...), or start as the plain "
    "backbone with MODEL.SE.INIT identity"
)
# May be missing: a counter that FrozenBN does not have, and the offsets of deformable convolution, which start at 0.
OPTIONAL = r"\.num_batches_tracked$|\.conv2_offset\."


def refuse_partial_load(backbone: nn.Module) -> None:
    """Makes `load_state_dict` raise if tensors of the backbone are missing, also for a detector that contains it.

    detectron2's checkpointer loads with `strict=False` and only logs missing tensors, even if the whole backbone is
    missing. Here a missing tensor is a :class:`UserError`, unless all SE layers are missing and start as the identity.
    """
    backbone.register_load_state_dict_post_hook(_check)


def identity_gates(model: nn.Module) -> tuple[str, ...]:
    """The tensors of the SE blocks that start as the identity (`MODEL.SE.INIT`): a file without SE may lack them."""
    return tuple(
        f"{name}.{key}".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, SqueezeExcitation) and module.init == "identity"
        for key in module.state_dict()
    )


def _check(backbone: nn.Module, incompatible: Any) -> None:
    # In a detector, the missing keys so far are all its missing keys, and the backbone's keys have a prefix.
    own = tuple(key for key in backbone.state_dict() if not re.search(OPTIONAL, key))
    missing = [key for key in incompatible.missing_keys if key.endswith(own)]
    if not missing:
        return
    new = identity_gates(backbone)
    if new and sum(key.endswith(new) for key in missing) == len(missing) == len(new):
        return
    if len(missing) == sum(".se." in key for key in own) and all(".se." in key for key in missing):
        raise UserError("weights.plain_backbone", f"the weights don't fit the config: {PLAIN_BACKBONE_REASON}")
    raise UserError(
        "weights.partial_backbone",
        f"the weights don't fit the config: {len(missing)} of the backbone's {len(own)} tensors are missing or have "
        f"another shape ({missing[0]}, ...); use the config that the file was made with, or convert a file of another "
        "project with se-det convert",
    )
