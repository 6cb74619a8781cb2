"""All kinds of image files are read as in detectron2, or refused in one line."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from se_detection import UserError
from se_detection.data.image_files import ImageFile, inspect_image
from se_detection.data.mapper import CheckedMapper
from se_detection.inference.image_array import image_array

from ..fuzzing import examples
from ..helpers import raises
from .hostile_images import SIZE, broken, images, no_files, noise, saved, write_all

# Pillow warns about odd EXIF data and large images.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
MORE_MEMORY = 1 << 29


@contextmanager
def little_memory() -> Iterator[None]:
    """Limits the process to 512 MiB more memory than it uses."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def small():
    """A config of small images."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 48, 96
    return cfg


def item(path: Path) -> dict:
    return {"file_name": str(path), "image_id": 1}


@pytest.mark.parametrize("tally", ["image files"], indirect=True)
def test_images_are_read_as_in_detectron2_or_refused(tally, small, tmp_path) -> None:
    ours, theirs = (mapper(small, is_train=False) for mapper in (CheckedMapper, DatasetMapper))
    for path in write_all(tmp_path / "good", images):
        height, width = read_image(str(path)).shape[:2]
        assert inspect_image(path) == ImageFile(width, height, turned=(width, height) == SIZE[::-1])
        assert torch.equal(tally.refused(ours, item(path))["image"], theirs(item(path))["image"])
    with little_memory():
        for path in write_all(tmp_path / "bad", broken):
            found = inspect_image(path)
            assert isinstance(found, str)
            if "bomb" in path.name:
                assert path.stat().st_size < 1_000_000
                assert "too large" in found or "exceeds limit of 178956970 pixels" in found
            if "above 255" not in found:
                assert tally.refused(ours, item(path)) is None
        for path in no_files(tmp_path / "none"):
            assert inspect_image(path) is None
            if path.name != "device.jpg":
                assert tally.refused(ours, item(path)) is None


def test_postscript_is_not_run(small, tmp_path, monkeypatch) -> None:
    path, ghostscript, trace = tmp_path / "program.jpg", tmp_path / "bin" / "gs", tmp_path / "trace"
    path.write_bytes(saved(noise(), "EPS"))
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {trace}\n")
    ghostscript.chmod(ghostscript.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=os.pathsep)
    # Pillow then looks for Ghostscript; importing this project does not change that.
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    assert "PostScript" in inspect_image(path)
    for is_train in (False, True):
        with raises("data.bad_image", path, "PostScript"):
            CheckedMapper(small, is_train=is_train)(item(path))
    with pytest.raises(UserError, match="PostScript"):
        image_array(path, "RGB", "RGB")
    assert not trace.exists()
    with Image.open(path) as image, suppress(OSError):
        image.load()
    assert trace.exists()


def test_long_and_thin_images(small, tmp_path) -> None:
    mapper = CheckedMapper(small, is_train=False)
    for size, expected in (((2000, 21), (1, 96)), ((21, 2000), (96, 1))):
        Image.new("RGB", size).save(tmp_path / "long.png")
        assert inspect_image(tmp_path / "long.png") == ImageFile(*size, turned=False)
        assert tuple(mapper(item(tmp_path / "long.png"))["image"].shape[1:]) == expected
    Image.new("RGB", (2000, 1)).save(tmp_path / "thin.png")
    with raises("data.bad_image", tmp_path / "thin.png"):
        mapper(item(tmp_path / "thin.png"))


WHOLE = [
    images()[name]
    for name in ("alpha.png", "palette_transparent.gif", "cmyk.jpg", "turned_6.jpg", "alpha.webp", "lab.tif")
]


@st.composite
def damaged_images(draw):
    data = bytearray(draw(st.sampled_from(WHOLE)))
    for _ in range(draw(st.integers(0, 3))):
        # Mostly in the headers, which are short.
        where = draw(st.integers(0, 200) | st.integers(0, len(data))) % (len(data) + 1)
        change = draw(st.sampled_from(["byte", "cut", "insert", "drop", "large"]))
        if change == "cut":
            del data[where:]
        elif change == "drop":
            del data[where : where + draw(st.integers(1, 40))]
        else:
            new = {"byte": st.binary(min_size=1, max_size=2), "insert": st.binary(min_size=1, max_size=9)}
            value = draw(new.get(change, st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4])))
            data[where : where + (0 if change == "insert" else len(value))] = value
        if not data:
            break
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("tally", ["damaged images"], indirect=True)
@examples(120)
@given(data=damaged_images())
def test_damaged_images_are_read_as_in_detectron2_or_refused(tally, small, tmp_path, data) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    with little_memory():
        found = inspect_image(path)
        size = {"width": found.width, "height": found.height} if isinstance(found, ImageFile) else {}
        ours = tally.refused(CheckedMapper(small, is_train=False), {**item(path), **size})
    if isinstance(found, ImageFile) and max(found[:2]) < 48 * min(found[:2]):
        assert ours is not None
    if ours is not None:
        theirs = DatasetMapper(small, is_train=False)({**item(path), **size})
        assert torch.equal(ours["image"], theirs["image"])
