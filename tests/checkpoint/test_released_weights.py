"""mmpretrain's and pytorchcv's weights by name, from a server in this process, and as local files."""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from io import BytesIO
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision
from detectron2.utils.file_io import PathManager

from se_detection import create_backbone
from se_detection.checkpoint import released_weights, timm_handler
from se_detection.checkpoint.convert import convert_state_dict
from se_detection.checkpoint.convert_input import convert_input
from se_detection.checkpoint.converted import Converted
from se_detection.checkpoint.released_weights import RELEASED, ReleasedFile, find_released, has_stride_in_1x1
from se_detection.checkpoint.timm_handler import find_model_weights

from ..helpers import raises

SCHEMES = ("mmpretrain", "pytorchcv")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[str]:
    """Serves `tmp_path / "www"`; the cache is empty."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "www").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www"))) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def release(server, tmp_path, monkeypatch) -> Callable[[str, bytes, bytes], ReleasedFile]:
    """Adds a file to the known ones and to the server, which may send another content."""

    def add(scheme: str, content: bytes, sent: bytes = b"") -> ReleasedFile:
        algorithm = "sha256" if scheme == "mmpretrain" else "sha1"
        digest = hashlib.new(algorithm, content).hexdigest()
        file = f"resnet18-{digest[:8]}.pth"
        url = f"{server}/{file}"
        if scheme == "pytorchcv":
            url += ".zip"
            with zipfile.ZipFile(tmp_path / "www" / f"{file}.zip", "w") as archive:
                archive.writestr(file, sent or content)
        else:
            (tmp_path / "www" / file).write_bytes(sent or content)
            digest = digest[:8]
        released = ReleasedFile(name=f"{scheme}://resnet18", file=file, url=url, algorithm=algorithm, digest=digest)
        monkeypatch.setitem(RELEASED, released.name, released)
        return released

    return add


@pytest.fixture(scope="module")
def originals() -> dict[str, bytes]:
    """A ResNet-18 in the files of both projects; mmpretrain's is a checkpoint, below `backbone.` and `head.`."""
    state = torchvision.models.resnet18().state_dict()
    named = {f"head.{key}" if key.startswith("fc.") else f"backbone.{key}": value for key, value in state.items()}
    checkpoint = {"meta": {"mmcls_version": "0.15.0", "CLASSES": ["tench"]}, "state_dict": named}
    files = {}
    for scheme, content in (("mmpretrain", checkpoint), ("pytorchcv", as_pytorchcv(state))):
        file = BytesIO()
        torch.save(content, file)
        files[scheme] = file.getvalue()
    return files


def as_pytorchcv(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's ResNet-18 in pytorchcv's names, which it reads from the network itself."""
    pytorchcv = pytest.importorskip("pytorchcv.models.resnet", reason="pytorchcv is not installed")
    with torch.device("meta"):
        names = pytorchcv.resnet18().state_dict()

    # Both networks have the same layers in the same order, but for the shortcut's place in a block.
    def is_shortcut(key: str) -> bool:
        return "downsample" in key or "identity_conv" in key

    renamed = {}
    for kind in (False, True):
        theirs, ours = ([key for key in keys if is_shortcut(key) is kind] for keys in (names, state))
        renamed |= {their: state[our] for their, our in zip(theirs, ours, strict=True)}
    return renamed


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_name_is_downloaded_checked_converted_and_cached(release, originals, tmp_path, scheme) -> None:
    released = release(scheme, originals[scheme])
    path = Path(PathManager.get_local_path(released.name))
    content = torch.load(path, weights_only=True)
    assumptions = content["assumptions"]
    assert (assumptions["source"], assumptions["channel_order"], assumptions["stem"]) == (scheme, "RGB", "basic")
    # mmpretrain's data_preprocessor, and what pytorchcv's errors were measured with.
    assert assumptions["pixel_mean"] == [123.675, 116.28, 103.53]
    assert assumptions["pixel_std"] == [58.395, 57.12, 57.375]
    assert assumptions["sha256"] == hashlib.sha256(originals[scheme]).hexdigest()
    # Only the converted file is kept, and it is found without the server.
    assert [each.name for each in (tmp_path / "cache").rglob("*") if each.is_file()] == [path.name]
    for sent in (tmp_path / "www").iterdir():
        sent.unlink()
    backbone = create_backbone("resnet18", weights=released.name)
    for key, tensor in backbone.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(tensor, content["model"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_local_copy_is_used_like_its_name(release, originals, tmp_path, monkeypatch, scheme) -> None:
    released = release(scheme, originals[scheme])
    local = tmp_path / released.file
    local.write_bytes(originals[scheme])
    monkeypatch.setattr(released_weights, "_download", None)
    found = find_model_weights(str(local), for_timm=False)
    assert found == Path(PathManager.get_local_path(released.name))
    create_backbone("resnet18", weights=str(local))
    assert convert_input(str(local)).assumptions.source == scheme
    found.unlink()
    local.write_bytes(originals[scheme][:1000])
    for use in (partial(find_model_weights, for_timm=False), convert_input):
        with raises("weights.wrong_digest", released.file):
            use(str(local))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (b"<!DOCTYPE html><html>Please log in</html>", "is a web page"),
        (b"another file", "has the SHA"),
        (b"weights" * 50, "has the SHA"),
    ],
    ids=["page", "another", "truncated"],
)
def test_a_file_with_another_digest_is_refused_and_not_kept(release, tmp_path, scheme, sent, named) -> None:
    released = release(scheme, b"weights" * 100, sent)
    for use in (PathManager.get_local_path, convert_input):
        with raises("weights.wrong_digest", released.file, named, released.digest[:8], released.url):
            use(released.name)
    assert [each for each in (tmp_path / "cache").rglob("*") if each.is_file()] == []


def test_a_failed_download_says_what_to_do(release, tmp_path) -> None:
    released = release("pytorchcv", b"weights" * 100)
    archive = tmp_path / "www" / f"{released.file}.zip"
    content = archive.read_bytes()
    # A web page, where the archive should be.
    archive.write_bytes(b"<html>Please log in</html>")
    with raises("weights.wrong_digest", "is a web page", released.url):
        convert_input(released.name)
    archive.write_bytes(content[: len(content) // 2])
    with raises("weights.wrong_digest", released.url):
        convert_input(released.name)
    archive.write_bytes(content.replace(b"weightsweights", b"WEIGHTSweights", 1))
    with raises("weights.no_download", released.name, "CRC", released.url):
        convert_input(released.name)
    archive.unlink()
    with raises("weights.no_download", released.name, "404", released.url, released.file):
        convert_input(released.name)


def test_unknown_names_are_refused() -> None:
    with raises("weights.not_found", "mmpretrain://resnet50", "resnet50_8xb32_in1k_20210831-ea4938fc"):
        PathManager.get_local_path("mmpretrain://resnet50")
    for name, known in (
        ("mmpretrain://resnet50", "resnet50_8xb32_in1k_20210831-ea4938fc"),
        ("pytorchcv://cbam_resnet50", "seresnet50b"),
        ("pytorchcv://sepreresnet50b", "seresnet50b"),
    ):
        with raises("weights.not_found", name, known):
            find_model_weights(name, for_timm=False)
    assert find_released("timm://resnet50.a1_in1k") is find_released("resnet50-0676ba61.pth") is None


def test_other_names_of_pytorchcv_are_networks_of_model_timm(monkeypatch) -> None:
    """For detectron2's own tools, which know only a path."""
    monkeypatch.setattr(timm_handler, "_detector_file", lambda name, find: Path(name))
    assert PathManager.get_local_path("pytorchcv://bninception") == "pytorchcv/bninception"


def test_mmpretrains_urls() -> None:
    """As in configs/{resnet,seresnet}/metafile.yml of mmpretrain 1.2.0."""
    server = "https://download.openmmlab.com/mmclassification/v0"
    for path in (
        "resnet/resnet50_8xb32_in1k_20210831-ea4938fc",
        "resnet/resnet101_8xb32_in1k_20210831-539c63f8",
        "se-resnet/se-resnet50_batch256_imagenet_20200804-ae206104",
        "se-resnet/se-resnet101_batch256_imagenet_20200804-ba5b51d4",
    ):
        released = RELEASED[f"mmpretrain://{Path(path).name}"]
        assert released.url == f"{server}/{path}.pth"
        assert (released.algorithm, released.digest) == ("sha256", path[-8:])


def test_pytorchcvs_files_are_those_of_its_own_table() -> None:
    store = pytest.importorskip("pytorchcv.models.common.model_store", reason="pytorchcv is not installed")
    table = store.get_model_metainfo_dict()
    ours = {name.removeprefix("pytorchcv://"): file for name, file in RELEASED.items() if name.startswith("pytorchcv")}
    for name, released in ours.items():
        _, error, sha1, tag = table[name]
        assert released.digest == sha1
        assert released.file == f"{name}-{error}-{sha1[:8]}.pth"
        assert released.url == f"{store.imgclsmob_repo_url}/releases/download/{tag}/{released.file}.zip"
    for stem in ("resnet50", "resnet101", "resnet50b", "resnet101b", "resnext50_32x4d"):
        assert {stem, f"se{stem}"} <= ours.keys()


def test_a_file_of_pytorchcv_is_named_by_its_stride(tmp_path, monkeypatch) -> None:
    """`resnet50` and `resnet50b` have the same tensors."""
    resnet = pytest.importorskip("pytorchcv.models.resnet", reason="pytorchcv is not installed")
    with torch.device("meta"):
        state = resnet.resnet50().state_dict()
    # The package has a function of the module's name.
    module = import_module(convert_input.__module__)
    monkeypatch.setattr(module, "read_checkpoint", lambda path, ema: {"model": state})

    def converted(name: str, architecture: str = "") -> Converted:
        (tmp_path / name).touch()
        return convert_input(str(tmp_path / name), "pytorchcv", architecture=architecture)

    with raises("weights.no_architecture", "x.pth", "resnet50 or resnet50b"):
        converted("x.pth")
    with raises("weights.other_network", "seresnet50", "resnet50 or resnet50b"):
        converted("x.pth", "seresnet50")
    for name, in_1x1 in (("resnet50", True), ("resnet50b", False)):
        assert converted("x.pth", name).assumptions.stride_in_1x1 is in_1x1
        assert converted(f"{name}-0633.pth").assumptions.stride_in_1x1 is in_1x1
    names = {"resnet50": True, "seresnet101-0460": True, "resnet50b": False, "resnext50_32x4d": False}
    assert {name: has_stride_in_1x1(name) for name in names} == names


@pytest.mark.parametrize("name", ["cbam_resnet50", "bam_resnet50", "preresnet50b", "sepreresnet50b", "senet154"])
def test_other_networks_of_pytorchcv_are_refused(name) -> None:
    provider = pytest.importorskip("pytorchcv.model_provider", reason="pytorchcv is not installed")
    with torch.device("meta"):
        state = provider.get_model(name).state_dict()
    with raises("weights.unsupported_network", "layer features."):
        convert_state_dict(state, "pytorchcv")
