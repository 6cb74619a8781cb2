"""detectron2's checkpointer, without its silence about layers that were not loaded."""

import pickle
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from ..errors import UserError


class StrictCheckpointer(DetectionCheckpointer):
    """Refuses a file whose layers have other shapes than the model's; detectron2 skips such layers with a log line.

    Args:
        reset_predictor: a file of another number of classes is welcome; its last layers are started afresh.
        others: as detectron2's.
    """

    def __init__(self, *args: Any, reset_predictor: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reset_predictor = reset_predictor

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a file, or nothing where the path is empty.

        Raises:
            UserError: the file can't be had or read, or it doesn't fit.
        """
        try:
            return super().load(path, *args, **kwargs)
        except UserError:
            raise
        except (OSError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
            raise UserError(f"{path} can't be loaded: {' '.join(str(error).split())[:300]}") from error

    def _load_model(self, checkpoint: Any) -> Any:
        incompatible = super()._load_model(checkpoint)
        wrong = [shape for shape in incompatible.incorrect_shapes if not self._is_reset(shape[0])]
        if wrong:
            key, in_file, in_model = wrong[0]
            raise UserError(
                f"the weights don't fit the config: {key} is {tuple(in_file)} in the file and {tuple(in_model)} in the "
                f"model ({len(wrong)} such layers); {self._advice(key)}"
            )
        return incompatible

    def _is_reset(self, key: str) -> bool:
        return self.reset_predictor and _is_predictor(key)

    def _advice(self, key: str) -> str:
        if _is_predictor(key):
            return "NUM_CLASSES contradicts the file; mend it, or start these layers afresh with --reset-predictor"
        return "use the config that the file was trained with"


def _is_predictor(key: str) -> bool:
    """Whether a layer's shape depends on the number of classes (R-CNN's last layers, RetinaNet's classifier)."""
    return ".box_predictor." in key or ".mask_head.predictor." in key or key.startswith("head.cls_score.")
