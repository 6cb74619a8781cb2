"""detectron2's checkpointer, with an error instead of a warning for layers that were not loaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UserError, counted, one_line
from ..files import write_whole
from ..modeling.network_names import named_weights
from ..modeling.partial_load import OPTIONAL, PLAIN_BACKBONE_REASON, identity_gates
from .assumptions import WeightsAssumptions, contradictions
from .convert import fitting_source
from .read_weights import read_checkpoint
from .released_weights import find_released
from .timm_handler import find_model_weights
from .timm_weights import TimmAssumptions, timm_part, with_detector_names
from .wheel_weights import is_of_wheel

# The file with the name of the newest checkpoint of a folder, as fvcore writes it.
LAST = "last_checkpoint"
# A ResNet's layers: in a classifier, in FPN's bottom_up, and in the ROI heads of a C4 detector.
BACKBONE_LAYERS = r"(^|\.)(stem|res[2-5])\."
MISFIT = "the weights don't fit the config:"
PARTIAL = "--allow-partial-backbone loads what fits"


class StrictCheckpointer(DetectionCheckpointer):
    """Raises an error if a file fits only part of the model, or contradicts the config; detectron2 only logs a warning.

    A file must have every tensor of a ResNet or a backbone of timm in the right shape, and all or none of the other
    layers. Other backbones are loaded as detectron2 does. Files are read without running code in them, and written
    atomically.

    Args:
        assumptions: the config's; compared with the file's, and saved into checkpoints.
        reset_predictor: accept a file for another number of classes; the last layers get random weights.
        allow_partial_backbone: load the tensors of the backbone that fit, and leave the others as initialized.
        needs_heads: refuse a file with only a backbone (for evaluation).
        args, kwargs: of detectron2's class.
    """

    def __init__(
        self,
        *args: Any,
        assumptions: WeightsAssumptions | TimmAssumptions | None = None,
        reset_predictor: bool = False,
        allow_partial_backbone: bool = False,
        needs_heads: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.assumptions = assumptions
        self._timm = timm_part(self.model)
        # A pattern of the backbone's layers.
        self._layers = BACKBONE_LAYERS if self._timm is None else rf"^{re.escape(self._timm[0])}network\."
        self.reset_predictor = reset_predictor
        self.allow_partial_backbone = allow_partial_backbone
        self.needs_heads = needs_heads
        # The module whose weights are saved: a trainer may replace it by a moving average.
        self.weights: nn.Module = self.model
        # The checkpoints that were saved or resumed from, by iteration.
        self.files: dict[int, Path] = {}

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves a checkpoint to resume from, as detectron2 does, then writes its name to `last_checkpoint`.

        All processes must call it: the state may be gathered from them.

        Raises:
            OSError: it can't be written; `last_checkpoint` still names the previous one.
        """
        state = {key: item.state_dict() for key, item in self.checkpointables.items()}
        self.save_weights(name, **state, **kwargs)
        if self.save_dir and self.save_to_disk:
            self.tag_last_checkpoint(f"{name}.pth")
            self.files[kwargs.get("iteration", -1)] = Path(self.save_dir, f"{name}.pth")

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Saves the model with its assumptions and `kwargs`.

        Raises:
            OSError: the file can't be written; an existing file is unchanged.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if self.assumptions is not None:
            kwargs["assumptions"] = self.assumptions.to_dict()
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        write_whole(path, partial(torch.save, {"model": self.weights.state_dict(), **kwargs}))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """As detectron2, but the file is replaced atomically."""
        write_whole(Path(self.save_dir, LAST), lambda file: file.write(last_filename_basename.encode()))

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file; does nothing if the path is empty.

        Raises:
            UserError: the file can't be fetched or read, or it doesn't fit.
        """
        with _as_user_errors(path):
            is_released = self._timm is None and find_released(path) is not None
            has_own_file = bool(named_weights(path)) or is_of_wheel(path) or is_released
            if "://" in path or has_own_file:
                found = find_model_weights(path, for_timm=self._timm is not None)
                # Not for other names: detectron2 reads a query behind them.
                path = str(found) if has_own_file else path
            return super().load(path, *args, **kwargs)

    def resume(self, path: Path) -> None:
        """Loads the model and the rest of the training state in every process.

        Args:
            path: read by the main process, which sends its content to the others.

        Raises:
            UserError: the file can't be read, or it doesn't fit.
        """
        self.logger.info(f"Resuming from {path}")
        with _as_user_errors(path):
            # gloo: NCCL would need GPU memory for it.
            content = [read_checkpoint(path) if comm.is_main_process() else {}]
            if comm.get_world_size() > 1:
                dist.broadcast_object_list(content, src=0, group=dist.new_group(backend="gloo"))
            (state,) = content
            # The run's own predictor is trained.
            self.reset_predictor = False
            self._load_model(state)
            for key, item in self.checkpointables.items():
                if key in state:
                    item.load_state_dict(state[key])
            self.files[state.get("iteration", -1)] = path

    def _load_file(self, filename: str) -> dict[str, Any]:
        # detectron2 unpickles these two itself. For other files it calls _torch_load, and handles a query in the path.
        if filename.endswith((".pkl", ".pyth")):
            return read_checkpoint(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: Any) -> Any:
        if self.reset_predictor:
            checkpoint["model"] = {k: v for k, v in checkpoint["model"].items() if not _is_predictor(k)}
        has_checks = self._timm is not None or any(isinstance(module, ResNet) for module in self.model.modules())
        if has_checks:
            self._check_assumptions(checkpoint.get("assumptions"))
            self._match_names(checkpoint)
            self._start_as_identity(checkpoint["model"])
            self._check_backbone(checkpoint["model"])
            self._check_heads(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if wrong := incompatible.incorrect_shapes:
            key, in_file, in_model = wrong[0]
            advice = "use the config that the file was trained with"
            if _is_predictor(key):
                advice = "NUM_CLASSES contradicts the file; fix it, or reset these layers with --reset-predictor"
            raise UserError(
                "weights.wrong_shape",
                f"{MISFIT} {key} is {tuple(in_file)} in the file and {tuple(in_model)} in the model "
                f"({counted(len(wrong), 'such layer')}); {advice}",
            )
        if has_checks:
            # The checks have found that these may be missing; fvcore would print a warning at each start.
            new = [key for key in incompatible.missing_keys if not re.search(self._layers, key)]
            if new:
                self.logger.info(f"Not in the file, initialized as for a new model: {', '.join(new)}")
            incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in new]
        return incompatible

    def _check_assumptions(self, content: Any) -> None:
        if self.assumptions is None:
            if self._timm is not None and content is not None:
                # A lazy config has no keys to compare with.
                self.logger.info(f"The weights file assumes: {TimmAssumptions.from_dict(content)}")
            return
        if content is None:
            self.logger.warning(
                "The weights file does not record its network and its input, and its tensors' shapes do not show them. "
                f"The config assumes: {self.assumptions}"
            )
            return
        is_timm = isinstance(content, dict) and "network" in content
        if is_timm != isinstance(self.assumptions, TimmAssumptions):
            kinds = "MODEL.TIMM", "MODEL.RESNETS"
            in_file, in_config = kinds if is_timm else kinds[::-1]
            raise UserError(
                "weights.other_network",
                f"{MISFIT} the file has a backbone of {in_file} and the config one of {in_config}; see "
                "MODEL.BACKBONE.NAME, or for a network of timm, use weights in timm's names (timm://NAME)",
            )
        if isinstance(self.assumptions, TimmAssumptions):
            differences = TimmAssumptions.from_dict(content).contradictions(self.assumptions)
        else:
            differences = contradictions(
                WeightsAssumptions.from_dict(content), self.assumptions, ignore_shapes=self.allow_partial_backbone
            )
        if differences:
            raise UserError(
                "weights.contradicts_config",
                f"{MISFIT} {'; '.join(differences)}; fix the config, or use weights that match it",
            )

    def _match_names(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["model"]
        if self._timm is not None:
            checkpoint["model"] = with_detector_names(state, *self._timm)
            checkpoint.pop("matching_heuristics", None)
            return
        known = checkpoint.get("__author__") == "Caffe2" or any(re.search(BACKBONE_LAYERS, key) for key in state)
        if not known and (source := fitting_source(state)):
            raise UserError(
                "weights.other_project",
                f"{MISFIT} its layers have the names of {source}; convert the file: se-det convert FILE "
                f"--source {source} --output weights.pth",
            )
        # detectron2 does this too, but only right before it loads, and only for files that ask for it.
        if checkpoint.pop("matching_heuristics", False) or any(key.startswith("stem.") for key in state):
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), state, c2_conversion=checkpoint.get("__author__") == "Caffe2"
            )

    def _start_as_identity(self, state: dict[str, Tensor]) -> None:
        """Adds the SE blocks that start as the identity to a file that has none, in the backbone or outside of it."""
        model, gates = self.model.state_dict(), identity_gates(self.model)
        for part, where in ((True, "the backbone"), (False, "FPN and heads")):
            layers = {key for key in model if bool(re.search(self._layers, key)) == part}
            new = layers.intersection(gates)
            # A file with only a backbone has no layers outside of it.
            if new and not new & state.keys() and layers & state.keys():
                self.logger.info(f"The file has no SE blocks in {where}; they start as the identity (MODEL.SE.INIT)")
                state |= {key: model[key] for key in new}

    def _check_backbone(self, state: dict[str, Tensor]) -> None:
        """Raises if tensors of the backbone don't fit; with `allow_partial_backbone`, uses the model's own."""
        ignored = self._ignored(state)
        model = {
            key: tensor
            for key, tensor in self.model.state_dict().items()
            if re.search(self._layers, key) and not re.search(ignored, key)
        }
        missing = [key for key, tensor in model.items() if key not in state or state[key].shape != tensor.shape]
        unexpected = [
            key for key in state if key not in model and self._has_stage(model, key) and not re.search(ignored, key)
        ]
        if not missing and not unexpected:
            return
        message = (
            f"{len(missing)} of the backbone's {len(model)} tensors are missing or have another shape, and "
            f"{len(unexpected)} are unexpected ({(missing + unexpected)[0]}, ...)"
        )
        if not self.allow_partial_backbone:
            raise UserError("weights.partial_backbone", f"{MISFIT} {message}; {_advice(missing, unexpected, state)}")
        self.logger.warning(f"The backbone is only loaded in part (--allow-partial-backbone): {message}")
        state |= {key: model[key] for key in missing}

    def _has_stage(self, model: dict[str, Tensor], key: str) -> bool:
        """Whether the model has the stage of an unexpected tensor: detectron2 builds only the stages that are used."""
        found = re.search(self._layers, key)
        if found is None or self._timm is not None:
            return found is not None
        return any(f".{found[2]}." in f".{name}" for name in model)

    def _ignored(self, state: dict[str, Tensor]) -> str:
        """A pattern of tensors that may be missing: some in any file, and all BN statistics in Detectron's files.

        Detectron folds the statistics into scale and bias, which only FrozenBN can use.
        """
        if self._timm is not None:
            return OPTIONAL
        folded = not any(key.endswith(".running_mean") for key in state)
        frozen = all(
            isinstance(module, FrozenBatchNorm2d)
            for name, module in self.model.named_modules()
            if re.search(BACKBONE_LAYERS, name) and name.endswith(".norm")
        )
        return OPTIONAL + (r"|\.running_(mean|var)$" if folded and frozen else "")

    def _check_heads(self, state: dict[str, Tensor]) -> None:
        heads = [
            key
            for key in self.model.state_dict()
            if not re.search(f"{self._layers}|{OPTIONAL}", key) and not (self.reset_predictor and _is_predictor(key))
        ]
        missing = [key for key in heads if key not in state]
        if missing and (self.needs_heads or len(missing) < len(heads)):
            raise UserError(
                "weights.partial_heads",
                f"{MISFIT} {len(missing)} of the {len(heads)} tensors outside the backbone are missing ({missing[0]}, "
                "...); use the config that the file was trained with, or for fine-tuning, a file with only a backbone",
            )


@contextmanager
def _as_user_errors(path: Path | str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any class: a file may hold anything in addition to its weights
        reason = one_line(error, 300)
        raise UserError("weights.not_loadable", f"{path} can't be loaded ({reason}); use another file") from error


def _advice(missing: list[str], unexpected: list[str], state: dict[str, Tensor]) -> str:
    only_se = all(".se." in key for key in missing + unexpected)
    if only_se and not any(".se." in key for key in state):
        return f"{PLAIN_BACKBONE_REASON}, or build_resnet_fpn_backbone; {PARTIAL}, and leaves the gates untrained"
    if only_se and not missing:
        return (
            f"the file's backbone has SE where the config's has none: see MODEL.BACKBONE.NAME and MODEL.SE; {PARTIAL}"
        )
    return f"use the config that the file was made with; {PARTIAL}"


def _is_predictor(key: str) -> bool:
    """Whether a layer's shape depends on the number of classes (R-CNN's last layers, RetinaNet's classifier)."""
    return ".box_predictor." in key or ".mask_head.predictor." in key or key.startswith("head.cls_score.")
