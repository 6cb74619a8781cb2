"""The `MODEL.SE` node of detectron2's config: its defaults, and the one place where its values are checked."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from detectron2.config import CfgNode

from ..errors import UserError

POSITIONS = ("standard", "pre", "post", "identity", "3x3")
SQUEEZES = ("avg", "max", "avgmax", "none")
GATES = ("sigmoid", "tanh", "relu", "hardsigmoid")
STAGES = ("res2", "res3", "res4", "res5")
STEMS = ("basic", "caffe", "deep")
TRAINER = {
    "CHECKPOINTS_TO_KEEP": 0,
    "BEST_METRIC": "bbox/AP",
    "EMA_DECAY": 0.0,
    "SKIP_NON_FINITE": 0,
    "TRUNK_FROZEN_ITERS": 0,
    "TRUNK_LR_FACTOR": 1.0,
    "CHANNELS_LAST": False,
}


@dataclass(frozen=True, kw_only=True)
class SEConfig:
    """What the SE blocks of a trunk look like; the fields are the keys of `MODEL.SE`.

    Args:
        reduction: the paper's r; a block of C channels is squeezed through C // r.
        reduction_per_stage: one r for each of res2 to res5, instead of `reduction`.
        position: where the block sits: `standard`, `pre`, `post`, `identity` (the paper's Fig. 5) or `3x3` (Table 15).
        squeeze: `avg`, `max`, `avgmax` (both, concatenated) or `none` (the paper's NoSqueeze, Table 16).
        gate: `sigmoid`, `tanh`, `relu` (Table 12) or `hardsigmoid`.
        stages: the stages that have SE blocks.
        bias: whether the two layers have biases; released weights have them, the paper's ablations don't.
        gate_bias: added to the second bias as it is initialised; 4 opens sigmoid gates (0.98), so that a trunk that was
            pre-trained without SE begins as it was.

    Raises:
        UserError: a value is none of its choices, or contradicts another.
    """

    reduction: int = 16
    reduction_per_stage: Sequence[int] = ()
    position: str = "standard"
    squeeze: str = "avg"
    gate: str = "sigmoid"
    stages: Sequence[str] = STAGES
    bias: bool = True
    gate_bias: float = 0.0

    def __post_init__(self) -> None:
        check_choice("POSITION", self.position, POSITIONS)
        check_choice("SQUEEZE", self.squeeze, SQUEEZES)
        check_choice("GATE", self.gate, GATES)
        for stage in self.stages:
            check_choice("STAGES", stage, STAGES)
        if not abs(self.gate_bias) <= 100:
            raise UserError(f"MODEL.SE.GATE_BIAS: {self.gate_bias} is not from -100 to 100; 4 opens sigmoid gates")
        if self.gate_bias and not self.bias:
            raise UserError(f"MODEL.SE.GATE_BIAS: {self.gate_bias} needs biases; set MODEL.SE.BIAS to True")
        if len(self.reduction_per_stage) not in (0, len(STAGES)):
            raise UserError(
                f"MODEL.SE.REDUCTION_PER_STAGE: {list(self.reduction_per_stage)} has {len(self.reduction_per_stage)} "
                f"values; give one for each of {', '.join(STAGES)}, or none"
            )
        for key, ratios in (("REDUCTION", [self.reduction]), ("REDUCTION_PER_STAGE", self.reduction_per_stage)):
            for reduction in ratios:
                if not isinstance(reduction, int) or isinstance(reduction, bool) or reduction < 1:
                    raise UserError(f"MODEL.SE.{key}: {reduction!r} is not a whole number of at least 1")

    def reduction_in(self, stage: str) -> int | None:
        """The reduction ratio r in a stage (`res2` to `res5`), or None where the stage has no SE."""
        if stage not in self.stages:
            return None
        if self.reduction_per_stage:
            return self.reduction_per_stage[STAGES.index(stage)]
        return self.reduction

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "SEConfig":
        """Reads `cfg.MODEL.SE`."""
        return cls(**{field: getattr(cfg.MODEL.SE, field.upper()) for field in asdict(cls())})


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Raises a :class:`UserError` that names the key of `MODEL.SE`, the value and the choices, unless it is one."""
    if value not in choices:
        raise UserError(f"MODEL.SE.{key}: {value!r} is not one of {', '.join(choices)}")


# A trunk without SE.
PLAIN = SEConfig(stages=())


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's values by full key, such as `MODEL.SE.REDUCTION`; tuples as lists, as YAML knows no others."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def classifier(cfg: CfgNode) -> str:
    """The node of `MODEL` whose `NUM_CLASSES` a config's detector goes by."""
    return "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"


def add_se_config(cfg: CfgNode) -> None:
    """Adds `MODEL.SE`, and what this project's trainer reads in `SOLVER`, with defaults; what is there stays as it is.

    The trainer's: `CHECKPOINTS_TO_KEEP`, the number of checkpoints along the way that are kept, 0 for all;
    `BEST_METRIC`, by which `model_best.pth` is chosen where `TEST.EVAL_PERIOD` is set, empty for none; `EMA_DECAY` of a
    moving average of the weights, 0 for none; `SKIP_NON_FINITE`, how many steps in a row are skipped for a loss that is
    not finite before the run stops; `TRUNK_FROZEN_ITERS`, for how many iterations the trunk is frozen at first;
    `TRUNK_LR_FACTOR`, of its learning rate; `CHANNELS_LAST`, the order of the weights in memory; `AMP.BF16`, mixed
    precision in bfloat16 instead of float16.
    """
    for key, value in TRAINER.items():
        cfg.setdefault("SOLVER", CfgNode()).setdefault(key, value)
    cfg.SOLVER.setdefault("AMP", CfgNode()).setdefault("BF16", False)
    if "SE" in cfg.MODEL:
        return
    defaults = {
        field.upper(): list(value) if isinstance(value, tuple) else value for field, value in asdict(SEConfig()).items()
    }
    # These two are the trunk's, not the SE block's. The stem: detectron2's own, that of the released Caffe models
    # (ceil-mode pool), or SENet-154's. Whether features are kept apart from what is in a batch's padding.
    cfg.MODEL.SE = CfgNode({**defaults, "STEM": "basic", "IGNORE_PADDING": False})
