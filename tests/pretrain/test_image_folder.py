import io
import os
import random
import shutil
import tarfile

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.datasets import ImageFolder

from se_detection import UserError
from se_detection.pretrain.image_folder import TRAIN, VAL, find_image_folder, register_image_folder

from ..fuzzing import TIMES, Tally


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("name", "split"), [(TRAIN, "train"), (VAL, "val")])
def test_items_equal_torchvisions_image_folder(images, name, split) -> None:
    register_image_folder(find_image_folder(images))
    theirs = ImageFolder(images / split)
    assert [(item["file_name"], item["label"]) for item in DatasetCatalog.get(name)] == theirs.samples
    assert MetadataCatalog.get(name).thing_classes == theirs.classes


@pytest.mark.parametrize("top", ["", "set"])
def test_an_archive_is_unpacked_once(images, cache, tmp_path, top) -> None:
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(images, arcname=top)
    folder = find_image_folder(archive)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*.png")) == sorted(
        p.relative_to(images) for p in images.rglob("*.png")
    )
    first = next(folder.rglob("*.png"))
    first.write_bytes(b"mark")
    assert find_image_folder(archive) == folder
    assert first.read_bytes() == b"mark"
    assert len(list((cache / "se_detection" / "images").iterdir())) == 1


def test_an_archive_cannot_write_elsewhere(cache, tmp_path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo("../../../../evil.txt")
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match="can't be unpacked"):
        find_image_folder(archive)
    assert not list(tmp_path.rglob("evil.txt"))
    assert not list((cache / "se_detection" / "images").iterdir())


def link(kind: bytes, target: str = "/etc") -> tarfile.TarInfo:
    member = tarfile.TarInfo("train/red")
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        link(tarfile.SYMTYPE),
        link(tarfile.SYMTYPE, "../val"),
        link(tarfile.SYMTYPE, "blue"),
        link(tarfile.LNKTYPE, "/etc/hostname"),
        link(tarfile.LNKTYPE, "../../../../etc/hostname"),
        link(tarfile.LNKTYPE, "nowhere"),
        link(tarfile.CHRTYPE),
        link(tarfile.BLKTYPE),
        link(tarfile.FIFOTYPE),
        tarfile.TarInfo("/etc/evil"),
        tarfile.TarInfo("train/../../evil"),
        tarfile.TarInfo("a" * 300),
    ],
    ids=lambda member: f"{member.type.decode()}-{member.name[:20]}-{member.linkname}",
)
def test_links_devices_and_paths_outside_the_folder_are_refused(images, cache, tmp_path, member) -> None:
    archive = tmp_path / "odd.tar"
    with tarfile.open(archive, "w") as file:
        file.add(images, arcname="")
        file.addfile(member)
    if member.name == "/etc/evil":
        # Python makes the path relative.
        assert (find_image_folder(archive) / "etc" / "evil").is_file()
        return
    with pytest.raises(UserError, match=r"odd\.tar") as caught:
        find_image_folder(archive)
    assert str(caught.value).isprintable()
    assert not list((cache / "se_detection" / "images").iterdir())
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_corrupted_archives_are_refused(images, cache, tmp_path, mode) -> None:
    archive = tmp_path / "corrupted"
    with tarfile.open(archive, mode) as file:
        file.add(images, arcname="")
    original = archive.read_bytes()
    rng = random.Random(0)
    tally = Tally(f"archives, {mode}")
    for _ in range(6 * TIMES):
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
def test_an_archive_without_an_end_is_refused(images, cache, tmp_path, end) -> None:
    archive = tmp_path / "cut.tar"
    with tarfile.open(archive, "w") as file:
        file.add(images, arcname="")
        last = file.offset
    os.truncate(archive, last - 512 * 8 + end)
    with pytest.raises(UserError, match="can't be unpacked"):
        find_image_folder(archive)
    os.truncate(archive, last + 100)
    with pytest.raises(UserError, match="its end is missing"):
        find_image_folder(archive)


def test_a_truncated_archive_leaves_nothing_behind(images, cache, tmp_path) -> None:
    archive = tmp_path / "cut.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(images, arcname="")
    archive.write_bytes(archive.read_bytes()[:20000])
    with pytest.raises(UserError, match="can't be unpacked"):
        find_image_folder(archive)
    assert not list((cache / "se_detection" / "images").iterdir())


def test_an_archive_of_zeros_is_not_unpacked(cache, tmp_path) -> None:
    archive = tmp_path / "zeros.tar"
    with tarfile.open(archive, "w:bz2") as file:
        member = tarfile.TarInfo("train/red/zeros.png")
        member.size = 1 << 24
        with open("/dev/zero", "rb") as zeros:
            file.addfile(member, zeros)
    assert archive.stat().st_size < member.size / 100
    with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
        find_image_folder(archive)
    assert not list((cache / "se_detection" / "images").iterdir())


def test_missing_folders_are_named(images, tmp_path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_image_folder(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"must have train/ and val/"):
        find_image_folder(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(images, other)
    shutil.rmtree(other / "val" / "red")
    with pytest.raises(UserError, match="different classes: red"):
        register_image_folder(other)
    shutil.copytree(images / "val" / "red", other / "val" / "red", ignore=lambda folder, names: names)
    register_image_folder(other)
    with pytest.raises(UserError, match="red"):
        DatasetCatalog.get(VAL)
