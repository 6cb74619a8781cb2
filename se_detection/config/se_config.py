"""The `MODEL.SE` node of detectron2's config: its defaults, its choices, and the checks of its values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from detectron2.config import CfgNode

from ..errors import UserError

POSITIONS = ("standard", "pre", "post", "identity", "3x3")
SQUEEZES = ("avg", "max", "avgmax", "none")
GATES = ("sigmoid", "tanh", "relu", "hardsigmoid")
INITS = ("default", "identity")
# SE, and relatives of timm: `timm.layers.create_attn`.
KINDS = ("se", "eca", "ese", "cbam", "gc")
# Those whose value for 0 is one half.
IDENTITY_GATES = ("sigmoid", "hardsigmoid")
STAGES = ("res2", "res3", "res4", "res5")
STEMS = ("basic", "caffe", "deep")


@dataclass(frozen=True, kw_only=True)
class SEConfig:
    """The SE blocks of a backbone; the fields are the keys of `MODEL.SE`.

    Args:
        reduction: the paper's r; the excitation of C channels has C // r hidden channels.
        reduction_per_stage: one r for each of res2 to res5, instead of `reduction`.
        position: where SE sits in a residual block: `standard`, `pre`, `post`, `identity` (the paper's Fig. 5) or
            `3x3` (Table 15).
        squeeze: `avg`, `max`, `avgmax` (both, concatenated) or `none` (the paper's NoSqueeze, Table 16).
        gate: `sigmoid`, `tanh`, `relu` (Table 12) or `hardsigmoid`.
        stages: the stages that have SE blocks.
        bias: whether the two layers have biases. Released weights have them, the paper's ablations do not.
        gate_bias: added to the initial bias of the second layer. With 4, sigmoid gates start open (0.98), so that a
            backbone pre-trained without SE starts with almost the same outputs.
        init: `default`, or `identity`: the gate is 2 * sigmoid (or 2 * hardsigmoid), and its last layer starts at 0.
            All gates start at exactly 1, so that a network with new SE blocks computes what it computed without them.
        kind: `se`; or for comparison, only in blocks that are inserted into a network, FPN or RoI features, one of
            timm's `eca`, `ese`, `cbam` and `gc`, of which only `reduction` is set.

    Raises:
        UserError: a value is not one of its choices, or contradicts another value.
    """

    reduction: int = 16
    reduction_per_stage: Sequence[int] = ()
    position: str = "standard"
    squeeze: str = "avg"
    gate: str = "sigmoid"
    stages: Sequence[str] = STAGES
    bias: bool = True
    gate_bias: float = 0.0
    init: str = "default"
    kind: str = "se"

    def __post_init__(self) -> None:
        check_choice("MODEL.SE.POSITION", self.position, POSITIONS)
        check_choice("MODEL.SE.SQUEEZE", self.squeeze, SQUEEZES)
        check_choice("MODEL.SE.GATE", self.gate, GATES)
        check_choice("MODEL.SE.INIT", self.init, INITS)
        check_choice("MODEL.SE.KIND", self.kind, KINDS)
        if self.kind != "se" and self.init != "default":
            raise UserError(
                "config.bad_value", f"MODEL.SE.KIND: {self.kind} has no MODEL.SE.INIT {self.init}; set it to default"
            )
        if self.init == "identity":
            check_choice("MODEL.SE.GATE with MODEL.SE.INIT identity", self.gate, IDENTITY_GATES)
            if self.gate_bias:
                raise UserError(
                    "config.bad_value",
                    f"MODEL.SE.GATE_BIAS: {self.gate_bias} contradicts MODEL.SE.INIT identity; set it to 0",
                )
        for stage in self.stages:
            check_choice("MODEL.SE.STAGES", stage, STAGES)
        if self.gate_bias and not self.bias:
            raise UserError("config.bad_value", f"MODEL.SE.GATE_BIAS: {self.gate_bias} needs MODEL.SE.BIAS True")
        if len(self.reduction_per_stage) not in (0, len(STAGES)):
            values = list(self.reduction_per_stage)
            raise UserError("config.bad_value", f"MODEL.SE.REDUCTION_PER_STAGE: {values} must have 4 values, or none")
        for reduction in (self.reduction, *self.reduction_per_stage):
            if not isinstance(reduction, int) or reduction < 1:
                raise UserError("config.bad_value", f"MODEL.SE.REDUCTION: {reduction!r} must be a whole number above 0")

    def reduction_in(self, stage: str) -> int | None:
        """The reduction ratio r in a stage (`res2` to `res5`), or None if the stage has no SE."""
        if stage not in self.stages:
            return None
        if self.reduction_per_stage:
            return self.reduction_per_stage[STAGES.index(stage)]
        return self.reduction

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "SEConfig":
        """Reads `cfg.MODEL.SE`."""
        return cls(**{field: getattr(cfg.MODEL.SE, field.upper()) for field in asdict(cls())})


def check_choice(key: str, value: object, choices: Sequence[object]) -> None:
    """Raises a :class:`UserError` that names the key, the value and the choices, unless the value is one of them."""
    if value not in choices:
        raise UserError("config.unknown_choice", f"{key}: {value!r} is not one of {', '.join(map(str, choices))}")


# A backbone without SE.
PLAIN = SEConfig(stages=())
