"""torchvision's and pytorchcv's weights for their networks in `MODEL.TIMM`: `torchvision://NAME`, `pytorchcv://NAME`."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from iopath.common.file_io import get_cache_dir
from torch import nn

from ..modeling.chain_network import create_classifier
from ..modeling.network_names import check_name, library_of, torchvisions_weights, trained_input, weights_url
from .timm_weights import TimmAssumptions
from .weights_file import not_downloaded


def read_library_weights(name: str) -> dict[str, Any]:
    """Weights in the names of their library with what they assume, for :class:`StrictCheckpointer`.

    Args:
        name: as in `MODEL.TIMM.NAME`: `torchvision/googlenet`, or with the name of torchvision's weights,
            `torchvision/googlenet.IMAGENET1K_V1`; the library downloads and checks the file.

    Raises:
        UserError: the library has no such weights, or they can't be downloaded.
    """
    check_name(name)
    url = weights_url(name)
    try:
        state_dict = _pretrained(name).state_dict()
    except Exception as error:  # of any class: each library has its own client
        remedy = "download the file on a machine with a network, and set MODEL.WEIGHTS to it"
        raise not_downloaded(url, error, remedy) from error
    digest = sha256()
    for key, tensor in state_dict.items():
        digest.update(key.encode() + tensor.numpy().tobytes())
    mean, std = trained_input(name)
    assumptions = TimmAssumptions(
        network=name.split(".")[0],
        pixel_mean=mean,
        pixel_std=std,
        channel_order="RGB",
        source=url,
        sha256=digest.hexdigest(),
    )
    return {"model": state_dict, "assumptions": assumptions.to_dict()}


def _pretrained(name: str) -> nn.Module:
    library, network = library_of(name)
    if library == "torchvision":
        return create_classifier(name, {}, weights=torchvisions_weights(network))
    return create_classifier(name, {}, weights=str(Path(get_cache_dir(), "pytorchcv")))
