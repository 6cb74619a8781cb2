#!/usr/bin/env python3
"""Pairs of ImageNet networks, plain and with SE, for MODEL_ZOO.md; prints the table of docs/PAIRS.md."""

from dataclasses import dataclass

from tabulate import tabulate

TIMM = "https://github.com/huggingface/pytorch-image-models/blob/aa4b5850/results/results-imagenet.csv"
MMPRETRAIN = "https://github.com/open-mmlab/mmpretrain/blob/ee7f2e88/configs"
PYTORCHCV = "https://pypi.org/project/pytorchcv/0.0.74"
PAPER = "https://arxiv.org/abs/1709.01507v4"

SAME = "the same"
UNKNOWN = "not stated"
WIDTHS = "the same; other widths"
OTHERS = "others: two groups of authors"
# In addition to the figures.
REMARKS = {UNKNOWN: "recipes not stated", WIDTHS: "other widths", OTHERS: "other recipes"}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A plain network and one with SE, or a relative of SE, that were trained on ImageNet.

    Args:
        name: for the table.
        plain, se: as in `MODEL.WEIGHTS`; a file without such a name is in words.
        top1: of both, in percent, of one central crop of `pixels`.
        recipe: whether they were trained in the same way, in words.
        source: the name and URL of the page with the figures.
        licence: of the weights.
    """

    name: str
    plain: str
    se: str
    top1: tuple[float, float]
    recipe: str
    source: tuple[str, str]
    licence: str
    pixels: int = 224

    @property
    def gain(self) -> float:
        """In points of top-1."""
        plain, se = self.top1
        return round(se - plain, 2)


def _mmpretrain(depth: int, files: tuple[str, str], top1: tuple[float, float]) -> Pair:
    return Pair(
        name=f"ResNet-{depth}",
        plain=f"mmpretrain://{files[0]}",
        se=f"mmpretrain://{files[1]}",
        top1=top1,
        recipe="the same, but 100 and 140 epochs, and images resized by OpenCV and by Pillow",
        source=("mmpretrain", f"{MMPRETRAIN}/seresnet/metafile.yml"),
        licence="Apache-2.0",
    )


def _timm(
    name: str, tags: tuple[str, str], top1: tuple[float, float], recipe: str, licence: str, pixels: int = 224
) -> Pair:
    plain, se = (f"timm://{tag}" for tag in tags)
    source = ("timm", TIMM)
    return Pair(name=name, plain=plain, se=se, top1=top1, recipe=recipe, source=source, licence=licence, pixels=pixels)


def _pytorchcv(name: str, networks: tuple[str, str], errors: tuple[float, float]) -> Pair:
    plain, se = (f"pytorchcv://{network}" for network in networks)
    top1 = (round(100 - errors[0], 2), round(100 - errors[1], 2))
    source = ("pytorchcv", PYTORCHCV)
    return Pair(name=name, plain=plain, se=se, top1=top1, recipe=UNKNOWN, source=source, licence="MIT")


def _paper(depth: int, top1: tuple[float, float]) -> Pair:
    return Pair(
        name=f"ResNet-{depth} of MSRA and the paper",
        plain=f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl",
        se=f"timm://legacy_seresnet{depth}.in1k",
        top1=top1,
        recipe=OTHERS,
        source=("paper", PAPER),
        licence="CC BY-SA 3.0 (detectron2's file), Apache-2.0",
    )


# Accuracies from the sources, looked up in 2026-11. MSRA's are in the README of KaimingHe/deep-residual-networks.
PAIRS = (
    _mmpretrain(
        50,
        ("resnet50_8xb32_in1k_20210831-ea4938fc", "se-resnet50_batch256_imagenet_20200804-ae206104"),
        (76.55, 77.74),
    ),
    _mmpretrain(
        101,
        ("resnet101_8xb32_in1k_20210831-539c63f8", "se-resnet101_batch256_imagenet_20200804-ba5b51d4"),
        (77.97, 78.26),
    ),
    _timm("ResNet-50, A1", ("resnet50.a1_in1k", "seresnet50.a1_in1k"), (80.38, 80.01), SAME, "Apache-2.0"),
    _timm("ResNet-50, A1", ("resnet50.a1_in1k", "seresnet50.a1_in1k"), (81.24, 81.11), SAME, "Apache-2.0", 288),
    _timm("ResNet-50, A2", ("resnet50.a2_in1k", "seresnet50.a2_in1k"), (79.83, 80.10), SAME, "Apache-2.0"),
    _timm("ResNet-50, A3", ("resnet50.a3_in1k", "seresnet50.a3_in1k"), (78.05, 77.04), SAME, "Apache-2.0"),
    _timm(
        "ResNeXt-50 32×4d",
        ("resnext50_32x4d.gluon_in1k", "seresnext50_32x4d.gluon_in1k"),
        (79.35, 79.92),
        SAME,
        "Apache-2.0",
    ),
    _timm(
        "ResNeXt-101 32×4d",
        ("resnext101_32x4d.gluon_in1k", "seresnext101_32x4d.gluon_in1k"),
        (80.34, 80.89),
        SAME,
        "Apache-2.0",
    ),
    _timm(
        "ResNeXt-101 64×4d",
        ("resnext101_64x4d.gluon_in1k", "seresnext101_64x4d.gluon_in1k"),
        (80.64, 80.88),
        SAME,
        "Apache-2.0",
    ),
    _timm(
        "ResNet-33-ts, SE", ("resnet33ts.ra2_in1k", "seresnet33ts.ra2_in1k"), (79.22, 80.38), SAME, "Apache-2.0", 256
    ),
    _timm("… ECA", ("resnet33ts.ra2_in1k", "eca_resnet33ts.ra2_in1k"), (79.22, 80.08), SAME, "Apache-2.0", 256),
    _timm("… GC", ("resnet33ts.ra2_in1k", "gcresnet33ts.ra2_in1k"), (79.22, 80.07), SAME, "Apache-2.0", 256),
    _timm("ResNet-152-d", ("resnet152d.ra2_in1k", "seresnet152d.ra2_in1k"), (83.16, 83.70), SAME, "Apache-2.0", 256),
    _timm("RegNetX/Y-1.6GF", ("regnetx_016.tv2_in1k", "regnety_016.tv2_in1k"), (79.44, 80.67), WIDTHS, "BSD-3-Clause"),
    _timm("RegNetX/Y-3.2GF", ("regnetx_032.tv2_in1k", "regnety_032.tv2_in1k"), (80.92, 81.79), WIDTHS, "BSD-3-Clause"),
    _timm("RegNetX/Y-400MF", ("regnetx_004.pycls_in1k", "regnety_004.pycls_in1k"), (72.48, 74.00), WIDTHS, "MIT"),
    _timm("RegNetX/Y-4GF", ("regnetx_040.pycls_in1k", "regnety_040.pycls_in1k"), (78.49, 79.25), WIDTHS, "MIT"),
    _timm(
        "CS3-Darknet-x", ("cs3darknet_x.c2ns_in1k", "cs3sedarknet_x.c2ns_in1k"), (81.86, 81.93), SAME, "Apache-2.0", 256
    ),
    _paper(50, (75.3, 76.71)),
    _paper(101, (76.4, 77.62)),
    _pytorchcv("ResNet-18", ("resnet18", "seresnet18"), (26.94, 28.18)),
    _pytorchcv("ResNet-50", ("resnet50", "seresnet50"), (22.28, 21.22)),
    _pytorchcv("ResNet-50b", ("resnet50b", "seresnet50b"), (22.39, 20.79)),
    _pytorchcv("ResNet-101", ("resnet101", "seresnet101"), (20.79, 19.24)),
    _pytorchcv("ResNet-101b", ("resnet101b", "seresnet101b"), (20.59, 19.70)),
    _pytorchcv("ResNet-152", ("resnet152", "seresnet152"), (19.29, 18.72)),
    _pytorchcv("ResNeXt-50 32×4d", ("resnext50_32x4d", "seresnext50_32x4d"), (21.08, 18.94)),
    _pytorchcv("ResNeXt-101 32×4d", ("resnext101_32x4d", "seresnext101_32x4d"), (18.78, 19.36)),
    _pytorchcv("ResNeXt-101 64×4d", ("resnext101_64x4d", "seresnext101_64x4d"), (19.08, 18.66)),
    _pytorchcv("pre-activation ResNet-50b", ("preresnet50b", "sepreresnet50b"), (22.51, 20.85)),
    _pytorchcv("ResNet-50b, BAM", ("resnet50b", "bam_resnet50"), (22.39, 20.91)),
    _pytorchcv("ResNet-50b, CBAM", ("resnet50b", "cbam_resnet50"), (22.39, 20.17)),
    Pair(
        name="ResNet-50 of the paper",
        plain="not released",
        se="timm://legacy_seresnet50.in1k",
        top1=(75.20, 76.71),
        recipe=SAME,
        source=("paper, Table 2", PAPER),
        licence="Apache-2.0",
    ),
    Pair(
        name="ResNet-50 of tensorpack",
        plain="TensorFlow, not converted here",
        se="TensorFlow, not converted here",
        top1=(76.09, 77.06),
        recipe="the same script",
        source=("tensorpack", "https://github.com/tensorpack/tensorpack/tree/master/examples/ResNet"),
        licence="Apache-2.0",
    ),
)


def pair_of(weights: str) -> Pair | None:
    """The first pair that has these weights, as in `MODEL.WEIGHTS`; None without."""
    return next((pair for pair in PAIRS if weights in (pair.plain, pair.se)), None)


def in_words(weights: str) -> str:
    """Top-1 of the pair of these weights, and SE's gain; empty if they are of no pair."""
    pair = pair_of(weights)
    if pair is None:
        return ""
    plain, se = pair.top1
    remarks = [] if pair.gain > 0 else ["**no gain**"]
    remarks += [remark for recipe, remark in REMARKS.items() if pair.recipe == recipe]
    return "; ".join([f"{plain:.2f} → {se:.2f} ({pair.gain:+.2f})", *remarks])


def pairs_table() -> list[list[str]]:
    """The cells of the table in docs/PAIRS.md, with its headings."""
    rows = [["pair", "plain", "with SE", "pixels", "top-1 (%)", "gain", "recipe", "source", "licence"]]
    for pair in PAIRS:
        plain, se = (f"`{name}`" if "://" in name else name for name in (pair.plain, pair.se))
        name, url = pair.source
        rows.append(
            [
                pair.name,
                plain,
                se,
                str(pair.pixels),
                f"{pair.top1[0]:.2f} → {pair.top1[1]:.2f}",
                f"{pair.gain:+.2f}" if pair.gain > 0 else f"**{pair.gain:+.2f}**",
                pair.recipe,
                f"[{name}]({url})",
                pair.licence,
            ]
        )
    return rows


if __name__ == "__main__":
    print(tabulate(pairs_table(), "firstrow", tablefmt="github", disable_numparse=True))
