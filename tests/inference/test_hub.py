"""Detectors for the Hugging Face Hub: in a local folder, and sent to a server that is replaced at its HTTP client."""

import base64
import json
import shutil
from pathlib import Path

import httpx2 as httpx  # what huggingface_hub calls
import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load

from se_detection.comparison.compare_runs import compare_runs
from se_detection.inference.model_card import write_model_card
from se_detection.inference.predictor import SEPredictor

from ..helpers import raises
from .conftest import CATEGORIES
from .small_runs import IMAGES, assert_same

FILES = {"README.md", "config.json", "config.yaml", "model.safetensors"}


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> Path:
    """A run as this project's evaluator leaves it."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("hub") / "run")
    file = run / "inference/results.json"
    more = {"annotations": str(trained.parent / "annotations/val.json"), "categories": {}}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return run


@pytest.fixture(scope="module")
def predictor(evaluated) -> SEPredictor:
    return SEPredictor.from_run(evaluated)


@pytest.fixture(scope="module")
def saved(predictor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "detector"
    predictor.save_pretrained(folder, model_card_kwargs={"license": "cc-by-4.0"})
    return folder


def test_a_folder_gives_the_same_detections(saved, predictor) -> None:
    assert {path.name for path in saved.iterdir()} == FILES
    read = SEPredictor.from_pretrained(saved)
    assert (read.categories, read.weights) == (CATEGORIES, saved / "model.safetensors")
    assert_same(read(IMAGES[1]), predictor(IMAGES[1]))
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["assumptions"])["pixel_mean"] == [60.0, 110.0, 160.0]
    # Neither the config nor the card has a path of this machine.
    for name in FILES - {"model.safetensors"}:
        assert str(predictor.weights.parents[1]) not in (saved / name).read_text()


def test_the_card_has_the_runs_results_and_the_hubs_fields(saved, evaluated) -> None:
    card = ModelCard.load(saved / "README.md")
    assert (card.data.license, card.data.pipeline_tag) == ("cc-by-4.0", "object-detection")
    measured = json.loads((evaluated / "inference/results.json").read_text())["bbox"]
    assert {each.metric_type: each.metric_value for each in card.data.eval_results} == {
        key: pytest.approx(measured[key], abs=0.01) for key in ("AP", "AP50", "AP75", "APs", "APm")
    }
    for text in ("circle, square, triangle, cross", "val.json", "60, 110, 160 (in BGR", "96 pixels", "iterations"):
        assert text in card.text


def test_the_card_has_the_comparison(predictor, evaluated, tmp_path) -> None:
    shutil.copytree(evaluated, tmp_path / "other")
    found = tmp_path / "other/inference/coco_instances_results.json"
    found.write_text(json.dumps(json.loads(found.read_text())[::2]))
    comparison = compare_runs(tmp_path / "other", evaluated, 100)
    (tmp_path / "comparison.json").write_text(json.dumps(comparison.to_dict()))
    text = predictor.generate_model_card(comparison=tmp_path / "comparison.json").text
    assert comparison.verdict in text
    assert f"{comparison.difference['AP'].value:+.1f}" in text
    assert "ask before you use them" in text
    for content in ("{}", "[]", '{"names": {"baseline": 1}}'):
        (tmp_path / "bad.json").write_text(content)
        with raises("compare.not_comparison", "bad.json"):
            predictor.generate_model_card(comparison=tmp_path / "bad.json")


def test_weights_that_were_not_evaluated_have_no_results(predictor, tmp_path) -> None:
    card = write_model_card(predictor.cfg, predictor.model, [*CATEGORIES.values()], tmp_path / "model.pth")
    assert card.data.eval_results is None
    assert "not evaluated" in card.text


def test_a_run_and_a_fused_detector_are_not_overwritten_and_not_saved(
    predictor, evaluated, tmp_path, monkeypatch
) -> None:
    before = (evaluated / "config.yaml").read_bytes()
    with raises("output.exists", evaluated):
        predictor.save_pretrained(evaluated)
    assert (evaluated / "config.yaml").read_bytes() == before
    monkeypatch.setattr(predictor, "fused", True)
    with raises("predict.fused", tmp_path):
        predictor.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("config.json", b'{"categories": 5}', "weights.broken"),
        ("config.json", b"[]", "weights.broken"),
        ("config.json", b"[" * 100_000, "file.not_json"),
        ("config.json", b'{"categories": [[1, "a"]]}', "weights.broken"),
        # The arguments of the constructor are not taken from the file.
        ("config.json", b'{"weights": "/etc/passwd", "categories": []}', "weights.broken"),
        ("config.yaml", b"MODEL: !!python/object/apply:os.system ['true']", "config.runs_code"),
        ("config.yaml", b"_BASE_: /etc/passwd", "config.bad_base"),
        ("config.yaml", b"\xff\xfe", "config.no_keys"),
        ("model.safetensors", b"cos\nsystem\n(S'true'\ntR.", "weights.not_weights"),
        ("model.safetensors", None, "weights.not_found"),
    ],
)
def test_a_strangers_files_are_refused(saved, tmp_path, name, content, code) -> None:
    folder = shutil.copytree(saved, tmp_path / "copy")
    (folder / name).write_bytes(content) if content is not None else (folder / name).unlink()
    with raises(code, folder):
        SEPredictor.from_pretrained(folder)


class Server:
    """The Hub's answers to an upload and a download, by path; it keeps the files of a commit."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sha = "0" * 40

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, sha = request.url.path, self.sha
        if path == "/api/repos/create":
            assert json.loads(request.content)["name"] == "detector"
            return httpx.Response(200, json={"url": "https://huggingface.co/bob/detector"})
        if path == "/api/validate-yaml":
            return httpx.Response(200, json={"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [
                {**file, "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(request.content)["files"]
            ]
            return httpx.Response(200, json={"files": files})
        if path == "/api/models/bob/detector/commit/main":
            lines = [json.loads(line) for line in request.read().splitlines()]
            contents = [line["value"] for line in lines if line["key"] == "file"]
            self.files = {value["path"]: base64.b64decode(value["content"]) for value in contents}
            return httpx.Response(
                200, json={"commitUrl": f"https://huggingface.co/bob/detector/commit/{sha}", "commitOid": sha}
            )
        if path == "/api/models/bob/detector/revision/main":
            return httpx.Response(
                200, json={"id": "bob/detector", "sha": sha, "siblings": [{"rfilename": name} for name in self.files]}
            )
        if path.startswith(f"/api/models/bob/detector/tree/{sha}"):
            tree = [{"type": "file", "path": name, "size": len(self.files[name]), "oid": sha} for name in self.files]
            return httpx.Response(200, json=tree)
        if path.startswith(f"/bob/detector/resolve/{sha}/"):
            content = self.files[path.rpartition("/")[2]]
            headers = {"X-Repo-Commit": sha, "ETag": f'"{len(content):040d}"', "Content-Length": str(len(content))}
            return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)
        return httpx.Response(404, json={"error": path})


@pytest.fixture
def server():
    found = Server()
    huggingface_hub.set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(found)))
    yield found
    huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


@pytest.mark.slow
def test_the_hub_gets_and_gives_the_files(server, saved, predictor, tmp_path) -> None:
    url = predictor.push_to_hub("bob/detector", token="hf_none", model_card_kwargs={"license": "cc-by-4.0"})
    assert url.endswith(server.sha)
    assert server.files.keys() - {".gitattributes"} == FILES
    for name in FILES - {"model.safetensors"}:
        assert server.files[name] == (saved / name).read_bytes()
    # The order of its metadata differs from file to file.
    sent, kept = load(server.files["model.safetensors"]), load((saved / "model.safetensors").read_bytes())
    assert sent.keys() == kept.keys()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in sent.items())
    read = SEPredictor.from_pretrained("bob/detector", cache_dir=tmp_path, token=False)
    assert read.categories == CATEGORIES
    assert read.weights.read_bytes() == server.files["model.safetensors"]
    assert not list(tmp_path.rglob("README.md"))
    for name in ("bob/nothing", "no such/name/at all"):
        with raises("weights.no_download", name):
            SEPredictor.from_pretrained(name, cache_dir=tmp_path, token=False)
