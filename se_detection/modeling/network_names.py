"""The names of networks in timm, torchvision and pytorchcv, and of the weights that these libraries have for them."""

from typing import Any

from ..errors import UserError, suggestion

# Before the name of a network of theirs; timm's have no prefix.
LIBRARIES = ("torchvision", "pytorchcv")
# torchvision's classifiers that convert ImageNet's mean and std to 0.5 before their first layer (`transform_input`).
CONVERTS_INPUT = ("googlenet", "inception_v3")


def library_of(name: str) -> tuple[str, str]:
    """The library of a name in `MODEL.TIMM.NAME`, and its own name of the network, with the tag if there is one."""
    library, slash, network = name.partition("/")
    return (library, network) if slash and library in LIBRARIES else ("timm", name)


def networks_of(library: str) -> list[str]:
    """The names of a library's networks.

    Raises:
        UserError: pytorchcv is not installed.
    """
    if library == "timm":
        import timm

        return timm.list_models()
    if library == "torchvision":
        from torchvision import models

        return models.list_models(module=models)
    try:
        from pytorchcv import model_provider
    except ImportError as error:
        raise UserError(
            "config.no_pytorchcv",
            "MODEL.TIMM.NAME: networks of pytorchcv need its package: pip install 'se_detection[networks]'",
        ) from error
    return list(model_provider._models)


def _is_timms(network: str) -> bool:
    import timm

    return timm.is_model(network)


def tags_of(library: str, network: str) -> list[str]:
    """The tags of a network's weights; pytorchcv's have none."""
    if library == "timm":
        import timm

        return [known.partition(".")[2] for known in timm.list_pretrained(f"{network}.*")]
    if library == "torchvision":
        from torchvision.models import get_model_weights

        return [weights.name for weights in get_model_weights(network)]
    return []


def torchvisions_weights(network: str) -> Any:
    """torchvision's entry for weights: `resnet50.IMAGENET1K_V2`, or without a tag, its default."""
    from torchvision.models import get_model_weights

    name, _, tag = network.partition(".")
    return get_model_weights(name)[tag or "DEFAULT"]


def trained_input(weights: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, in 0..255, of the RGB images that weights by name were trained on."""
    library, network = library_of(weights)
    # ImageNet's, as in pytorchcv's evaluation (pytorch/datasets/imagenet1k_cls_dataset.py of osmr/imgclsmob).
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if library == "timm":
        import timm

        trained = timm.get_pretrained_cfg(network)
        if trained is None:
            raise UserError(
                "config.unknown_network",
                f"MODEL.WEIGHTS: timm has no weights named {network!r} any more; timm.list_pretrained() lists all",
            )
        mean, std = trained.mean, trained.std
    elif network.partition(".")[0] in CONVERTS_INPUT:
        mean = std = (0.5, 0.5, 0.5)
    elif library == "torchvision":
        trained = torchvisions_weights(network).transforms()
        mean, std = trained.mean, trained.std
    return tuple(255 * value for value in mean), tuple(255 * value for value in std)


def named_weights(weights: str) -> str:
    """The name of weights that a library has, as in `MODEL.TIMM.NAME`; empty for a file or another URL.

    `timm://resnet18.a1_in1k` is `resnet18.a1_in1k`, and `torchvision://googlenet` is `torchvision/googlenet`.
    """
    library, scheme, name = weights.partition("://")
    if not scheme or library not in ("timm", *LIBRARIES):
        return ""
    return name if library == "timm" else f"{library}/{name}"


def weights_url(name: str) -> str:
    """The inverse of :func:`named_weights`."""
    return "://".join(library_of(name))


def check_name(name: str) -> None:
    """Raises a :class:`UserError` if there is no network of this name, or it has no weights of its tag."""
    library, network = library_of(name)
    architecture, dot, tag = network.partition(".")
    known = networks_of(library)
    # timm's list lacks deprecated names.
    if architecture not in known and not (library == "timm" and _is_timms(architecture)):
        listed = {"timm": "timm", "torchvision": "torchvision.models"}.get(library)
        raise UserError(
            "config.unknown_network",
            f"MODEL.TIMM.NAME: {library} has no network {network!r}; {suggestion(architecture, known)}"
            + (f"{listed}.list_models() lists all" if listed else "its page on PyPI lists all"),
        )
    tags = tags_of(library, architecture)
    if dot and tag not in tags:
        advice = f"use one of {', '.join(tags)}" if tags else f"omit it, {library} has no weights with tags for it"
        raise UserError("config.unknown_network", f"MODEL.TIMM.NAME: {name!r} has an unknown tag; {advice}")
