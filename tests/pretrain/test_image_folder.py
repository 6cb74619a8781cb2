import io
import os
import random
import shutil
import tarfile

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torchvision.datasets import ImageFolder

from se_detection.pretrain.image_folder import TRAIN, VAL, find_image_folder, register_image_folder

from ..fuzzing import TIMES, Tally
from ..helpers import raises


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "se_detection" / "images"


@pytest.mark.parametrize(("name", "split"), [(TRAIN, "train"), (VAL, "val")])
def test_items_equal_torchvisions_image_folder(images, name, split) -> None:
    register_image_folder(find_image_folder(images))
    theirs = ImageFolder(images / split)
    assert [(item["file_name"], item["label"]) for item in DatasetCatalog.get(name)] == theirs.samples
    assert MetadataCatalog.get(name).thing_classes == theirs.classes


def pack(images, path, *members: tarfile.TarInfo, mode="w", top=""):
    """An archive of the images and of further members; returns its path and where its end begins."""
    with tarfile.open(path, mode) as file:
        file.add(images, arcname=top)
        for member in members:
            file.addfile(member, io.BytesIO(b"evil"))
        return path, file.offset


def test_images_of_any_format_are_used(images, tmp_path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    first = next((folder / "train" / "red").iterdir())
    for name in ("a.jfif", "a.tga", "a", "labels.txt"):
        Image.open(first).convert("RGB").save(folder / "val" / "red" / name, "TGA" if name == "a.tga" else "JPEG")
    before = len(ImageFolder(folder / "val"))
    assert register_image_folder(folder) == [folder / "val" / "red" / "labels.txt"]
    assert len(DatasetCatalog.get(VAL)) == before + 3


@pytest.mark.parametrize("top", ["", "set"])
def test_an_archive_is_unpacked_once(images, cache, tmp_path, top) -> None:
    archive, _ = pack(images, tmp_path / "images.tar.gz", mode="w:gz", top=top)
    folder = find_image_folder(archive)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*.png")) == sorted(
        p.relative_to(images) for p in images.rglob("*.png")
    )
    first = next(folder.rglob("*.png"))
    first.write_bytes(b"mark")
    assert find_image_folder(archive) == folder
    assert first.read_bytes() == b"mark"
    assert len(list(cache.iterdir())) == 1


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


@pytest.mark.parametrize(
    "odd",
    [
        member("train/red", tarfile.SYMTYPE, "/etc"),
        member("train/red", tarfile.SYMTYPE, "../val"),
        member("train/red", tarfile.LNKTYPE, "/etc/hostname"),
        member("train/red", tarfile.LNKTYPE, "../../../../etc/hostname"),
        member("train/red", tarfile.LNKTYPE, "nowhere"),
        member("train/red", tarfile.CHRTYPE),
        member("train/red", tarfile.BLKTYPE),
        member("train/red", tarfile.FIFOTYPE),
        member("train/../../evil"),
        member("../../../../evil.txt", size=4),
        member("a" * 300),
    ],
    ids=lambda info: f"{info.type.decode()}-{info.name[:20]}-{info.linkname}",
)
def test_links_devices_and_paths_outside_the_folder_are_refused(images, cache, tmp_path, odd) -> None:
    archive, _ = pack(images, tmp_path / "odd.tar", odd)
    with raises("data.bad_archive", "odd.tar"):
        find_image_folder(archive)
    assert not list(cache.iterdir())
    assert not list(tmp_path.rglob("evil*"))


def test_an_absolute_path_is_unpacked_below_the_folder(images, cache, tmp_path) -> None:
    archive, _ = pack(images, tmp_path / "odd.tar", member("/etc/evil"))
    assert (find_image_folder(archive) / "etc" / "evil").is_file()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_corrupted_archives_are_refused(images, cache, tmp_path, mode) -> None:
    archive, _ = pack(images, tmp_path / "corrupted", mode=mode)
    original = archive.read_bytes()
    rng = random.Random(0)
    tally = Tally(f"archives, {mode}")
    for _ in range(3 * TIMES):
        content = bytearray(original)
        for _ in range(3):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        archive.write_bytes(content)
        folder = tally.refused(find_image_folder, archive)
        # An uncompressed archive has checksums of its headers only.
        assert folder is None or mode == "w"
        assert folder is None or len(list(folder.rglob("*.png"))) == len(list(images.rglob("*.png")))
    print(f"\n{tally}")


@pytest.mark.parametrize("end", [0, 1, 512, 700])
def test_an_archive_without_an_end_is_refused_and_leaves_nothing_behind(images, cache, tmp_path, end) -> None:
    archive, last = pack(images, tmp_path / "cut.tar")
    for size in (last - 512 * 8 + end, last + 100):
        os.truncate(archive, size)
        with raises("data.bad_archive", "cut.tar"):
            find_image_folder(archive)
    assert not list(cache.iterdir())


def test_an_archive_of_zeros_is_not_unpacked(cache, tmp_path) -> None:
    archive, zeros = tmp_path / "zeros.tar", member("train/red/zeros.png", size=1 << 22)
    with tarfile.open(archive, "w:bz2") as file, open("/dev/zero", "rb") as content:
        file.addfile(zeros, content)
    assert archive.stat().st_size < zeros.size / 100
    with raises("data.bad_archive", "100 times its size"):
        find_image_folder(archive)
    assert not list(cache.iterdir())


def test_missing_folders_are_named(images, tmp_path) -> None:
    with raises("data.not_found", "nowhere"):
        find_image_folder(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with raises("data.no_classes", tmp_path):
        find_image_folder(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(images, other)
    shutil.rmtree(other / "val" / "red")
    with raises("data.other_classes", "red"):
        register_image_folder(other)
    shutil.copytree(images / "val" / "red", other / "val" / "red", ignore=lambda folder, names: names)
    with raises("data.no_classes", "red"):
        register_image_folder(other)
