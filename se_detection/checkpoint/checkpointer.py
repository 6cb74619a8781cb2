"""detectron2's checkpointer, without its silence about layers that were not loaded."""

import re
import zipfile
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

from ..errors import UserError
from ..files import write_whole
from ..modeling.partial_load import OPTIONAL, PLAIN_BACKBONE_REASON
from .assumptions import WeightsAssumptions, contradictions
from .convert import fitting_source
from .read_weights import check_download, read_checkpoint

# The file that names the newest checkpoint of a folder, as fvcore writes it.
LAST = "last_checkpoint"
# A ResNet's layers, in a classifier, under FPN, and in the ROI heads of a C4 detector.
BACKBONE = r"(^|\.)(stem|res[2-5])\."
PARTIAL = "--allow-partial-backbone loads what fits"


class StrictCheckpointer(DetectionCheckpointer):
    """Stops where detectron2 logs a line and goes on: at a file that fits the config in part, or contradicts it.

    Of a ResNet backbone every tensor must be found with its shape; of the other layers all or none. Other backbones are
    loaded as detectron2 does. Files are read without running code in them, and written whole or not at all.

    Args:
        assumptions: what the config assumes; compared with what the file says of itself, and saved into checkpoints.
        reset_predictor: a file of another number of classes is welcome; its last layers are started afresh.
        allow_partial_backbone: load what fits of the backbone, and leave the rest as it was initialised.
        needs_heads: a file of a backbone alone is not enough (for evaluation).
        others: as detectron2's.
    """

    def __init__(
        self,
        *args: Any,
        assumptions: WeightsAssumptions | None = None,
        reset_predictor: bool = False,
        allow_partial_backbone: bool = False,
        needs_heads: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.assumptions = assumptions
        self.reset_predictor = reset_predictor
        self.allow_partial_backbone = allow_partial_backbone
        self.needs_heads = needs_heads
        # What is saved as the model: a trainer may put an average of it here.
        self.weights: nn.Module = self.model

    def save(self, name: str, **kwargs: Any) -> None:
        """Saves a checkpoint to go on from, as detectron2 does, and names it in `last_checkpoint` once it is whole.

        Raises:
            OSError: it can't be written; `last_checkpoint` still names the one before.
        """
        state = {key: item.state_dict() for key, item in self.checkpointables.items()} if self.save_to_disk else {}
        self.save_weights(name, **state, **kwargs)
        if self.save_dir and self.save_to_disk:
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Saves the model with its assumptions, and what is given besides.

        Raises:
            OSError: the file can't be written; one that was there before still is.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if self.assumptions is not None:
            kwargs["assumptions"] = self.assumptions.to_dict()
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        write_whole(path, partial(torch.save, {"model": self.weights.state_dict(), **kwargs}))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """See detectron2's."""
        write_whole(Path(self.save_dir, LAST), lambda file: file.write(last_filename_basename.encode()))

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file, or nothing where the path is empty.

        Raises:
            UserError: the file can't be had or read, or it doesn't fit.
        """
        with _explained(path):
            if "://" in path:
                check_download(Path(self.path_manager.get_local_path(path.split("?")[0])))
            return super().load(path, *args, **kwargs)

    def resume(self, path: Path) -> None:
        """Loads the model and all else that was saved, in every process; without the file, over the network.

        Args:
            path: the same in all processes; the main one must have the file.

        Raises:
            UserError: the file can't be read, or it doesn't fit.
        """
        self.logger.info(f"Going on from {path}")
        with _explained(path):
            archives = comm.all_gather(_archive(path))
            alike = archives.count(archives[0]) == len(archives)
            content = read_checkpoint(path) if alike or comm.is_main_process() else {}
            if not alike:
                content = _from_main_process(content)
            self._load_model(content)
            for key, item in self.checkpointables.items():
                if key in content:
                    item.load_state_dict(content[key])

    def _load_file(self, filename: str) -> dict[str, Any]:
        # These two detectron2 would unpickle itself; of the others it calls _torch_load and reads the path's query.
        if filename.endswith((".pkl", ".pyth")):
            return read_checkpoint(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)

    def _load_model(self, checkpoint: Any) -> Any:
        if self.reset_predictor:
            checkpoint["model"] = {k: v for k, v in checkpoint["model"].items() if not _is_predictor(k)}
        if any(isinstance(module, ResNet) for module in self.model.modules()):
            self._check_assumptions(checkpoint.get("assumptions"))
            self._match_names(checkpoint)
            self._check_backbone(checkpoint["model"])
            self._check_heads(checkpoint["model"])
        self._check_kinds(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if wrong := incompatible.incorrect_shapes:
            key, in_file, in_model = wrong[0]
            advice = "use the config that the file was trained with"
            if _is_predictor(key):
                advice = (
                    "NUM_CLASSES contradicts the file; mend it, or start these layers afresh with --reset-predictor"
                )
            raise _misfit(
                f"{key} is {tuple(in_file)} in the file and {tuple(in_model)} in the model "
                f"({len(wrong)} such layers); {advice}"
            )
        return incompatible

    def _check_assumptions(self, content: Any) -> None:
        if self.assumptions is None:
            return
        if content is None:
            self.logger.warning(
                "The weights file doesn't say what it was trained on, and no tensor's shape shows it. "
                f"The config assumes: {self.assumptions}"
            )
            return
        found = contradictions(
            WeightsAssumptions.from_dict(content), self.assumptions, ignore_shapes=self.allow_partial_backbone
        )
        if found:
            raise _misfit(f"{'; '.join(found)}; mend the config, or take weights that were trained so")

    def _match_names(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["model"]
        known = checkpoint.get("__author__") == "Caffe2" or any(re.search(BACKBONE, key) for key in state)
        if not known and (source := fitting_source(state)):
            raise _misfit(
                f"its layers are named as by {source}; convert the file: tools/convert_weights.py FILE "
                f"--source {source} --output weights.pth"
            )
        # detectron2 does this itself, but then loads at once; and not for a bare backbone that doesn't ask for it.
        if checkpoint.pop("matching_heuristics", False) or any(key.startswith("stem.") for key in state):
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), state, c2_conversion=checkpoint.get("__author__") == "Caffe2"
            )

    def _check_backbone(self, state: dict[str, Tensor]) -> None:
        """Raises unless the file has the model's backbone; with `allow_partial_backbone`, completes it from the model's."""
        ignored = self._ignored(state)
        model = {
            key: tensor
            for key, tensor in self.model.state_dict().items()
            if re.search(BACKBONE, key) and not re.search(ignored, key)
        }
        left_over = [
            key for key in state if key not in model and _has_stage(model, key) and not re.search(ignored, key)
        ]
        missing, misshapen = [], []
        for key, tensor in model.items():
            # detectron2's matching leaves a tensor of another shape under the name that it has in the file.
            in_file = key if key in state else next((name for name in left_over if key.endswith(f".{name}")), None)
            if in_file is None:
                missing.append(key)
            elif in_file != key or state[key].shape != tensor.shape:
                misshapen.append(f"{key} {tuple(state[in_file].shape)} in the file, {tuple(tensor.shape)} in the model")
                left_over = [name for name in left_over if name != in_file]
                del state[in_file]
            else:
                continue
            if self.allow_partial_backbone:
                state[key] = tensor
        if not missing and not misshapen and not left_over:
            return
        counts = [
            f"{len(keys)} {what} ({keys[0]}{', ...' if len(keys) > 1 else ''})"
            for what, keys in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
            if keys
        ]
        message = f"of the backbone's {len(model)} tensors, {', '.join(counts)}"
        if self.allow_partial_backbone:
            self.logger.warning(f"The backbone is loaded in part, as --allow-partial-backbone asks: {message}")
            return
        raise _misfit(f"{message}; {_advice(missing, left_over, misshapen, state)}")

    def _ignored(self, state: dict[str, Tensor]) -> str:
        """What may be missing: some layers in any file, and all statistics in Detectron's.

        There they are folded into the scales, which FrozenBN knows, and a norm that learns does not.
        """
        folded = not any(key.endswith(".running_mean") for key in state)
        frozen = all(
            isinstance(module, FrozenBatchNorm2d)
            for name, module in self.model.named_modules()
            if re.search(BACKBONE, name) and name.endswith(".norm")
        )
        return OPTIONAL + (r"|\.running_(mean|var)$" if folded and frozen else "")

    def _check_heads(self, state: dict[str, Tensor]) -> None:
        heads = [
            key
            for key in self.model.state_dict()
            if not re.search(f"{BACKBONE}|{OPTIONAL}", key) and not self._is_reset(key)
        ]
        missing = [key for key in heads if key not in state]
        if missing and (self.needs_heads or len(missing) < len(heads)):
            raise _misfit(
                f"{len(missing)} of the {len(heads)} tensors outside the backbone are missing ({missing[0]}, ...); use "
                "the config that the file was trained with, or to fine-tune, a file of a backbone alone"
            )

    def _check_kinds(self, state: dict[str, Tensor]) -> None:
        """Raises where torch would make numbers of another kind fit: what was quantized is no weight any more."""
        for key, tensor in self.model.state_dict().items():
            if key in state and state[key].is_floating_point() != tensor.is_floating_point():
                raise _misfit(f"{key} is {state[key].dtype} in the file and {tensor.dtype} in the model")

    def _is_reset(self, key: str) -> bool:
        return self.reset_predictor and _is_predictor(key)


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of whatever class: what a file holds besides its weights may be anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{path} can't be loaded: {reason}") from error


def _archive(path: Path) -> list[int] | None:
    """The checksums of what a checkpoint holds, without reading it; None where there is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [item.CRC for item in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return None


def _from_main_process(content: dict[str, Any]) -> dict[str, Any]:
    box = [content]
    # Not over the GPUs, whose memory it would take.
    dist.broadcast_object_list(box, src=0, group=dist.new_group(backend="gloo"))
    return box[0]


def _misfit(reason: str) -> UserError:
    return UserError(f"the weights don't fit the config: {reason}")


def _has_stage(model: dict[str, Tensor], key: str) -> bool:
    """Whether the model has the stage of a left-over tensor: detectron2 builds no more stages than are used."""
    found = re.search(BACKBONE, key)
    return found is not None and any(f".{found[2]}." in f".{name}" for name in model)


def _advice(missing: list[str], left_over: list[str], misshapen: list[str], state: dict[str, Tensor]) -> str:
    only_se = not misshapen and all(".se." in key for key in missing + left_over)
    if only_se and not left_over and not any(".se." in key for key in state):
        return f"{PLAIN_BACKBONE_REASON}, or build_resnet_fpn_backbone; {PARTIAL}, with gates from scratch"
    if only_se and not missing:
        return f"the file's backbone has SE where the config's has not: see MODEL.BACKBONE.NAME and MODEL.SE; {PARTIAL}"
    return f"use the config that the file was made with; {PARTIAL}"


def _is_predictor(key: str) -> bool:
    """Whether a layer's shape depends on the number of classes (R-CNN's last layers, RetinaNet's classifier)."""
    return ".box_predictor." in key or ".mask_head.predictor." in key or key.startswith("head.cls_score.")
