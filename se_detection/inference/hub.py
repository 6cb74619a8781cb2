"""Saves a detector for the Hugging Face Hub, and loads it from there: `config.yaml`, `config.json`, safetensors."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from detectron2.config import CfgNode
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors.torch import save as serialize
from torch import nn
from typing_extensions import Self

from ..checkpoint.timm_weights import assumptions_of
from ..checkpoint.weights_file import not_downloaded
from ..errors import UserError
from ..export.exported_detector import ExportedDetector
from ..files import read_json, write_json, write_whole
from ..runs.run_folder import CONFIG, training_files
from .detector_file import config_and_classes

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# `config.json` has the classes, which detectron2's config lacks. The Hub counts its downloads.
CLASSES, WEIGHTS = "config.json", "model.safetensors"


class HubDetector(ModelHubMixin):
    """The methods of a predictor for the Hub: `huggingface_hub`'s `ModelHubMixin` with this project's safe readers.

    `save_pretrained(folder)` writes the weights, the config without paths of this machine, the classes and a model
    card; `push_to_hub("user/name")` uploads them. Both take `model_card_kwargs`, the arguments of
    :meth:`generate_model_card`.
    """

    cfg: CfgNode
    model: nn.Module
    categories: dict[int, str]
    weights: Path
    fused: bool

    def _save_pretrained(self, save_directory: Path) -> None:
        self._check_can_be_saved(save_directory)
        if found := training_files(save_directory):
            message = f"{save_directory} holds a run ({found[0].name}), whose config would be replaced; give another"
            raise UserError("output.exists", message)
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "./output"
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
        cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = ()
        cfg.INPUT.ALBUMENTATIONS = ""
        (save_directory / CONFIG).write_text(cfg.dump(), encoding="utf-8")
        write_json(save_directory / CLASSES, {"library_name": "se_detection", "categories": [*self.categories.items()]})
        assumptions = assumptions_of(cfg)
        metadata = {"format": "pt", **({"assumptions": json.dumps(assumptions.to_dict())} if assumptions else {})}
        # Copies, because safetensors takes no tensors that share memory or are not contiguous.
        state = self.model.state_dict()
        weights = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in state.items()}
        data = serialize(weights, metadata)
        write_whole(save_directory / WEIGHTS, lambda file: file.write(data))

    def _check_can_be_saved(self, path: Path | str) -> None:
        """Refuses an export, and a fused detector."""
        if isinstance(self.model, ExportedDetector):
            raise UserError("predict.exported", f"{path}: {self.weights} is an export and can't be saved; copy it")
        if self.fused:
            raise UserError("predict.fused", f"{path}: a fused detector can't be saved; load it without fuse=True")

    def generate_model_card(self, *, license: str = "", comparison: Path | str | None = None) -> "ModelCard":
        """The model card: data, recipe and AP of the run, what the input must be, and how to use the detector.

        Args:
            license: of the weights, by its name on the Hub, such as `apache-2.0`; the author must choose it.
            comparison: `comparison.json` of `se-det compare`, if the run is one of the two.

        Raises:
            UserError: the file is not a comparison.
        """
        # Imported here, because the charts of a comparison take long to import.
        from .model_card import write_model_card

        return write_model_card(
            self.cfg, self.model, list(self.categories.values()), self.weights, license=license, comparison=comparison
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        fuse: bool = False,
        **download: Any,
    ) -> Self:
        """Loads a detector from the Hub, or from a folder of `save_pretrained`. No code in its files is run.

        Args:
            pretrained_model_name_or_path: `user/name` on the Hub, or a folder.
            fuse: make the detector faster with :func:`se_detection.fuse_for_inference`.
            download: of `huggingface_hub.snapshot_download`: `revision`, `token`, `cache_dir`, `force_download`,
                `local_files_only`.

        Raises:
            UserError: it can't be downloaded, is damaged, or is not a detector of `save_pretrained`.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(name if os.path.isdir(name) else _download(name, **download))
        if missing := [file for file in (CONFIG, CLASSES, WEIGHTS) if not (folder / file).is_file()]:
            raise UserError("weights.not_found", f"{name}: no {missing[0]}; give a detector of SEPredictor.push_to_hub")
        classes = read_json(folder / CLASSES)
        text = (folder / CONFIG).read_text(encoding="utf-8", errors="replace")
        content = {"config": text, "categories": classes.get("categories") if isinstance(classes, dict) else None}
        cfg, categories = config_and_classes(folder, content)
        # The arguments of the predictor, whose base class this is.
        make: Any = cls
        return make(cfg, folder / WEIGHTS, class_names=categories, fuse=fuse)


def _download(name: str, **download: Any) -> str:
    try:
        return snapshot_download(name, allow_patterns=[CONFIG, CLASSES, WEIGHTS], **download)
    except Exception as error:  # of any class: of the Hub, of its HTTP client, or a name that is not valid
        raise not_downloaded(name, error, "check the name (user/name), or give a folder of save_pretrained") from error
