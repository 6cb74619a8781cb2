"""timm's ResNets as frozen-norm detectron2 backbones."""

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from se_detection.config.se_config import STAGES
from se_detection.errors import UserError


class TimmNetwork(Backbone):
    """A timm network with random weights, with frozen norms, stem and first stage.

    Args:
        name: one of timm's ResNets, such as `legacy_seresnet50` or `seresnet50`.

    Raises:
        UserError: timm is not installed.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError as error:
            raise UserError(f"{name} needs timm: pip install timm, or remove it from --arms") from error
        network = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
        info = network.feature_info
        self.shapes = {
            stage: ShapeSpec(channels=channels, stride=stride)
            for stage, channels, stride in zip(STAGES, info.channels(), info.reduction(), strict=True)
        }
        # Like MODEL.BACKBONE.FREEZE_AT 2.
        for module in list(network.children())[: list(network).index("layer2")]:
            module.requires_grad_(False)
        self.network = FrozenBatchNorm2d.convert_frozen_batchnorm(network)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) -> the maps res2 ... res5."""
        return dict(zip(STAGES, self.network(x), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """See :class:`detectron2.modeling.Backbone`."""
        return self.shapes
