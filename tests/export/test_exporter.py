import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances
from PIL import Image

from se_detection.export.export_runs import export_runs, forms, layer_table
from se_detection.export.exporter import Form, RunExporter
from se_detection.inference.predictor import SEPredictor

from ..helpers import raises
from ..inference.small_runs import CLASSES, KINDS, run_config, write_run

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = {".onnx": REPOSITORY / "examples" / "detect_onnx.py", ".xml": REPOSITORY / "examples" / "detect_openvino.py"}


OPTIONS = {"images": 1, "calibration": 1, "evaluate": False, "overwrite": False}
ONNX, OPENVINO, TORCHSCRIPT, TORCH_EXPORT = (
    Form(format=name) for name in ("onnx", "openvino", "torchscript", "torch-export")
)
SCRIPTED = Form(format="torchscript", scripting=True)


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Callable[[Form], Path]:
    """A function that returns the file of the run of `trained` in a form, written at the first call."""
    output = tmp_path_factory.mktemp("exported")

    def export(form: Form) -> Path:
        path = form.path(output, trained)
        if not path.exists():
            rows = export_runs([trained], [form], output, **OPTIONS)
            # Next to an .xml are its weights (.bin) and, once it was loaded, OpenVINO's cache.
            files = {file.name for file in output.glob("run-*") if file.suffix not in (".bin", ".cache")}
            assert {row["file"] for row in rows} == files
            assert json.loads((output / "exports.json").read_text()) == rows
        return path

    return export


@pytest.fixture(scope="module")
def predictor(trained) -> DefaultPredictor:
    return DefaultPredictor(run_config(trained))


@pytest.fixture
def photo(trained, tmp_path) -> Path:
    """An image of the run's data, wider than those used for tracing."""
    path = tmp_path / "wide.png"
    source = next(iter(sorted((trained.parent / "val").glob("*.png"))))
    Image.open(source).convert("RGB").resize((210, 101)).save(path)
    return path


def assert_same_detections(expected, boxes, scores, atol=2e-5) -> None:
    """Compares with detectron2's predictor; detections with equal scores may be in another order."""
    assert len(expected) == len(scores) > 20
    np.testing.assert_allclose(np.sort(scores)[::-1], expected.scores.numpy(), atol=atol)
    distances = np.abs(expected.pred_boxes.tensor.numpy()[:, None] - np.asarray(boxes)[None]).max(axis=2)
    assert distances.min(axis=1).max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("form", [ONNX, OPENVINO], ids=lambda form: form.format)
def test_example_without_torch_and_detectron2_matches_detectron2s_predictor(exported, predictor, photo, form) -> None:
    block = "import sys, runpy; sys.modules.update(torch=None, detectron2=None, se_detection=None); "
    file = exported(form)
    example = EXAMPLES[file.suffix]
    code = block + f"sys.argv = sys.argv[1:]; runpy.run_path({str(example)!r}, run_name='__main__')"
    drawn = photo.with_name("drawn.png")
    command = [sys.executable, "-c", code, example, file, photo, "--output", drawn]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    detections = json.loads(done.stdout)
    expected = predictor(np.asarray(Image.open(photo))[:, :, ::-1])["instances"]
    boxes, scores = ([entry[key] for entry in detections] for key in ("box", "score"))
    # It prints four digits.
    assert_same_detections(expected, boxes, scores, atol=7e-5)
    # The category ids of the run's annotations.
    assert {(entry["category_id"], entry["name"]) for entry in detections} <= {
        (3, "circle"), (7, "square"), (9, "triangle"), (20, "cross")
    }  # fmt: skip
    assert Image.open(drawn).size == (210, 101)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "runtime"),
    [(ONNX, None), (ONNX, "openvino"), (OPENVINO, None), (TORCHSCRIPT, "torch")],
    ids=lambda value: getattr(value, "format", value),
)
def test_a_predictor_of_an_export_matches_detectron2s_predictor(
    exported, predictor, photo, form, runtime, tmp_path
) -> None:
    from_export = SEPredictor.from_export(exported(form), runtime=runtime)
    assert list(from_export.categories.items()) == [(3, "circle"), (7, "square"), (9, "triangle"), (20, "cross")]
    assert "Faster R-CNN" in repr(from_export)
    with raises("predict.exported", "copy.pth"):
        from_export.save("copy.pth")
    with raises("predict.exported", tmp_path):
        from_export.save_pretrained(tmp_path)
    expected = predictor(np.asarray(Image.open(photo))[:, :, ::-1])["instances"]
    found = from_export(photo)
    assert found.image_size == (101, 210)
    assert_same_detections(expected, found.pred_boxes.tensor.numpy(), found.scores.numpy())


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=lambda path: path.stem)
def test_example_ends_in_one_line_without_its_file(monkeypatch, tmp_path, example) -> None:
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "no.onnx"), str(example)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(example), run_name="__main__")
    assert ended.value.code == f"error: {tmp_path / 'no.onnx'}: there is no such file"


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=lambda path: path.stem)
def test_example_resizes_like_detectron2(example) -> None:
    detector_class = runpy.run_path(str(example))["Detector"]
    detector = detector_class.__new__(detector_class)
    random = np.random.default_rng(0)
    for shortest, longest in ((800, 1333), (192, 256)):
        detector.description = {"resize": {"shortest_side": shortest, "longest_side": longest}}
        for width, height in [(806, 247), (2666, 979), (640, 480), *random.integers(1, 3000, (500, 2)).tolist()]:
            expected = ResizeShortestEdge.get_output_shape(height, width, shortest, longest)
            assert detector.resized((width, height)) == expected[::-1]


@pytest.mark.slow
def test_torchscript_needs_only_torch(exported, predictor, photo) -> None:
    extra = {"se_detection.json": ""}
    module = torch.jit.load(str(exported(TORCHSCRIPT)), _extra_files=extra)
    assert json.loads(extra["se_detection.json"])["classes"][0] == {"id": 3, "name": "circle"}
    image = np.asarray(Image.open(photo))[:, :, ::-1]
    resized = predictor.aug.get_transform(image).apply_image(image)
    boxes, scores, classes = module(torch.from_numpy(resized.transpose(2, 0, 1).copy()))
    expected = predictor(image)["instances"]
    scale = torch.tensor([210 / resized.shape[1], 101 / resized.shape[0]] * 2)
    assert_same_detections(expected, boxes * scale, scores.numpy())
    assert classes.dtype == torch.int64


@pytest.mark.slow
def test_torch_export_takes_any_number_of_images_of_any_size(exported, predictor) -> None:
    extra = {"se_detection.json": ""}
    program = torch.export.load(str(exported(TORCH_EXPORT)), extra_files=extra).module()
    description = json.loads(extra["se_detection.json"])["input"]
    model = predictor.model
    torch.testing.assert_close(torch.tensor(description["subtract"]), model.pixel_mean.flatten())
    for number, height, width in ((1, 96, 224), (3, 160, 128)):
        image = torch.randint(0, 256, (number, 3, height, width), dtype=torch.uint8)
        batch = model.preprocess_image([{"image": one} for one in image]).tensor
        with torch.no_grad():
            expected, maps = model.backbone(batch), program(batch)
        assert list(maps) == list(expected) == ["p4", "p5", "p6"]
        for name, values in expected.items():
            torch.testing.assert_close(maps[name], values, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_int8_has_8_bit_weights_and_ap(trained, tmp_path) -> None:
    exporter = RunExporter(trained, images=1)
    form = Form(format="onnx", precision="int8")
    export = exporter.export(tmp_path / "d.onnx", form, calibration=2, evaluate=True, report=True)
    sizes = {}
    for tensor in onnx.load(tmp_path / "d.onnx").graph.initializer:
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
    assert sizes[onnx.TensorProto.INT8] > 20 * sizes[onnx.TensorProto.FLOAT]
    # As evaluated by the training.
    ap = json.loads((trained / "inference" / "results.json").read_text())["bbox"]["AP"]
    assert export.ap["original"] == pytest.approx(ap, abs=0.01)
    assert 0 < export.difference.worst["scores"] < 0.2
    # The sums and gate products of the backbone are between quantized maps.
    nodes = onnx.load(tmp_path / "d.onnx").graph.node
    joins = [node for node in nodes if node.op_type in ("Add", "Mul") and node.name.startswith("/backbone/bottom_up")]
    made_by = {output: node.op_type for node in nodes for output in node.output}
    assert {made_by.get(name) for node in joins for name in node.input} == {"DequantizeLinear"}
    # Of 8-bit rounding; the last layers are not among them.
    assert all(15 < ratio < 60 for ratio in export.layers.values())
    assert list(export.layers.values()) == sorted(export.layers.values())
    assert len(export.layers) > 20
    assert not any("cls_score" in name for name in export.layers)
    assert "fc1" in layer_table(export.to_dict())
    description = onnxruntime.InferenceSession(str(tmp_path / "d.onnx")).get_modelmeta().custom_metadata_map
    assert json.loads(description["se_detection.json"])["precision"] == "int8"


class Losing(RunExporter):
    """The loss of AP falls by a factor of 2 each time, from 1."""

    def __init__(self) -> None:
        self.losses = iter([1.0, 0.5, 0.25])

    def evaluate(self, exported) -> dict:
        return {"difference": {"value": -next(self.losses)}}


class Recording:
    def __init__(self) -> None:
        self.kept: list[list[str]] = []

    def quantize(self, description, float_layers=()) -> None:
        self.kept.append(list(float_layers))

    def sensitivity(self) -> dict[str, float]:
        return {name: 20.0 + place for place, name in enumerate("abcdef")}


def test_the_noisiest_layers_stay_in_float_until_the_loss_is_small(monkeypatch, tmp_path) -> None:
    for name in ("place_onnx", "ExportedDetector"):
        monkeypatch.setattr(f"se_detection.export.exporter.{name}", MagicMock())
    quantizer = Recording()
    measured = Losing()._quantize(quantizer, tmp_path / "d.onnx", {}, report=False, max_ap_loss=0.3)
    assert quantizer.kept == [[], ["a", "b"], ["a", "b", "c", "d"]]
    assert measured["float_layers"] == ["a", "b", "c", "d"]
    assert measured["ap"]["difference"]["value"] == -0.25


@pytest.mark.slow
def test_finding_all_annotated_objects_has_an_ap_of_100(trained) -> None:
    """The images are resized, and the category ids have gaps."""
    exporter = RunExporter(trained, images=1)
    remaining = iter(exporter.data.images)

    def exported(photo) -> Instances:
        image = next(remaining)
        instances = Instances(tuple(photo.shape[1:]))
        boxes = Boxes([entry["bbox"] for entry in image["annotations"]])
        boxes.tensor[:, 2:] += boxes.tensor[:, :2]
        boxes.scale(photo.shape[2] / image["width"], photo.shape[1] / image["height"])
        instances.pred_boxes = boxes
        instances.scores = torch.ones(len(boxes))
        instances.pred_classes = torch.tensor([entry["category_id"] for entry in image["annotations"]])
        return instances

    assert exporter.evaluate(exported)["exported"] == pytest.approx(100)


@pytest.mark.slow
@pytest.mark.parametrize("form", [
    Form(format="onnx", precision="float16"),
    Form(format="torch-export", precision="bfloat16"),
], ids=lambda form: form.name)  # fmt: skip
def test_other_forms_are_close_to_the_original(trained, tmp_path, form) -> None:
    exporter = RunExporter(trained, images=1)
    export = exporter.export(form.path(tmp_path, trained), form, calibration=1, evaluate=False)
    assert export.agrees
    if form.format == "torch-export":
        # Four sizes, and a batch of two images.
        assert export.difference.images == 6
    assert export.difference.worst["p5" if form.format == "torch-export" else "scores"] < 0.05
    assert max(export.difference.worst.values()) > 1e-4
    if form.format == "onnx":
        # The backbone is stored in float16.
        sizes = {}
        for tensor in onnx.load(export.file).graph.initializer:
            sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
        halves = sum(weights.numel() for weights in exporter.run.model.backbone.parameters())
        assert 0.98 * halves < sizes[onnx.TensorProto.FLOAT16] < 1.02 * halves


@pytest.mark.slow
def test_existing_files_are_not_replaced(trained, exported) -> None:
    path = exported(TORCHSCRIPT)
    before = path.read_bytes()
    with raises("output.exists", path):
        export_runs([trained], [TORCHSCRIPT], path.parent, **OPTIONS)
    assert path.read_bytes() == before
    other = path.parent / "other" / trained.name
    with raises("export.same_name", trained.name):
        export_runs([trained, other], [TORCHSCRIPT], path.parent, **OPTIONS)
    with raises("export.images", "--images 0"):
        export_runs([trained], [TORCHSCRIPT], path.parent, **OPTIONS | {"images": 0})


@pytest.mark.slow
def test_an_export_that_differs_is_reported(trained, exported, tmp_path, monkeypatch) -> None:
    """Here that of a run with another mean."""
    other, file = exported(TORCHSCRIPT), tmp_path / "kind-torchscript-float32.ts"
    write = "se_detection.export.exporter.write_torchscript"
    monkeypatch.setattr(write, lambda path, *_, **options: shutil.copyfile(other, path))
    run = write_kind(trained, tmp_path, "MODEL.PIXEL_MEAN", "[80.0, 130.0, 180.0]")
    with raises("export.differs", file):
        export_runs([run], [TORCHSCRIPT], tmp_path, **OPTIONS)
    assert file.is_file()


C4 = [
    *("MODEL.BACKBONE.NAME", "build_se_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res4']"),
    *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
    *("MODEL.ROI_HEADS.NAME", "SERes5ROIHeads", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64, 128]]"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "32"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
]
CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]

TIMM = [
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_resnet"),
    *("MODEL.TIMM.NORM", "BN", "MODEL.TIMM.FREEZE_AT", "0", "MODEL.TIMM.INSERT_SE", "True"),
    *("INPUT.FORMAT", "RGB", "MODEL.SE.REDUCTION", "4"),
]


def write_kind(trained: Path, folder: Path, *overrides: str) -> Path:
    """A run with random weights and the data of `trained`."""
    run = write_run(
        folder / "kind", *overrides, "DATASETS.TEST", "('kinds_val',)", "DATASETS.TRAIN", "('kinds_train',)"
    )
    paths = {
        f"kinds_{split}": {
            "json": str(trained.parent / "annotations" / f"{split}.json"), "images": str(trained.parent / split)
        }
        for split in ("train", "val")
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps({"classes": CLASSES, "data": paths}))
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "form", "outputs"), [
    # test_graph.py has the ONNX file of a RetinaNet.
    (KINDS["RetinaNet"], SCRIPTED, set()),
    ([*KINDS["Mask R-CNN"], *CASCADE, "MODEL.SE.IGNORE_PADDING", "True"], ONNX, {"masks"}),
    (KINDS["Keypoint R-CNN"], TORCHSCRIPT, {"keypoints"}),
    (C4, ONNX, set()),
    (TIMM, ONNX, set()),
], ids=["RetinaNet", "Cascade Mask R-CNN", "Keypoint R-CNN", "C4", "timm"])  # fmt: skip
def test_each_kind_of_detector_matches_its_original(trained, tmp_path, overrides, form, outputs) -> None:
    exporter = RunExporter(write_kind(trained, tmp_path, *overrides), images=1)
    export = exporter.export(form.path(tmp_path, tmp_path), form, calibration=1, evaluate=False)
    assert export.agrees
    assert export.difference.detections > 20
    assert export.difference.worst.keys() == {"boxes", "scores"} | outputs


@pytest.mark.slow
def test_a_detector_that_cannot_be_scripted_is_reported(trained, tmp_path) -> None:
    exporter = RunExporter(write_kind(trained, tmp_path, "MODEL.SE.IGNORE_PADDING", "True"), images=1)
    with raises("export.not_scriptable", "--scripting"):
        exporter.export(tmp_path / "d.ts", SCRIPTED, calibration=1, evaluate=False)
    assert not (tmp_path / "d.ts").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "code", "named"), [
    (KINDS["Keypoint R-CNN"], "export.keypoints", "--format torchscript"),
    (("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"), "export.no_detections", "2 test images"),
    (KINDS["Panoptic FPN"], "export.architecture", "PanopticFPN"),
], ids=["keypoints", "no detections", "panoptic"])  # fmt: skip
def test_detectors_that_cannot_be_exported_are_rejected(trained, tmp_path, overrides, code, named) -> None:
    run = write_kind(trained, tmp_path, *overrides)
    with raises(code, named):
        RunExporter(run, images=2).export(tmp_path / "d.onnx", ONNX, calibration=1, evaluate=False)
    assert not (tmp_path / "d.onnx").exists()


@pytest.mark.slow
def test_missing_data_is_reported_and_can_be_given(trained, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    record = json.loads((run / "run.json").read_text())
    train, val = (next(name for name in record["data"] if name.endswith(split)) for split in ("train", "val"))
    names = {train: "gone_train", val: "gone_val"}
    record["data"] = {
        new: {key: f"/nowhere{path}" for key, path in record["data"][name].items()} for name, new in names.items()
    }
    (run / "run.json").write_text(json.dumps(record))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(train, "gone_train").replace(val, "gone_val"))
    with raises("data.not_found", "/nowhere", "val.json"):
        RunExporter(run, images=1)

    json_file, images = trained.parent / "annotations" / "val.json", trained.parent / "val"
    exporter = RunExporter(run, images=1, split=[json_file, images])
    with raises("data.not_found", "/nowhere", "train.json"):
        exporter.export(tmp_path / "d.onnx", Form(format="onnx", precision="int8"), calibration=1, evaluate=False)
    assert not (tmp_path / "d.onnx").exists()

    content = json.loads(json_file.read_text())
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({**content, "images": [], "annotations": []}))
    record["data"]["gone_val"] = {"json": str(empty), "images": str(images)}
    (run / "run.json").write_text(json.dumps(record))
    with raises("data.no_images", empty):
        RunExporter(run, images=1)


def test_the_row_of_a_replaced_file_is_removed(tmp_path, monkeypatch) -> None:
    """Even if the comparison is interrupted."""
    rows = [{"file": f"run-{name}", "x": 1} for name in ("onnx-float32.onnx", "onnx-float16.onnx")]
    (tmp_path / "exports.json").write_text(json.dumps(rows))

    class Interrupted:
        def __init__(self, *arguments, **options) -> None: ...

        def export(self, *arguments, **options) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("se_detection.export.export_runs.RunExporter", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_runs([tmp_path / "run"], [ONNX], tmp_path, **OPTIONS)
    assert json.loads((tmp_path / "exports.json").read_text()) == rows[1:]


def test_forms_are_the_supported_combinations(monkeypatch) -> None:
    supported = forms(["torchscript", "onnx"], ["bfloat16", "int8"], fuse=False, scripting=False)
    assert [(form.format, form.precision) for form in supported] == [("torchscript", "bfloat16"), ("onnx", "int8")]
    scripted = forms(["onnx", "torchscript"], ["float32", "float16"], fuse=False, scripting=True)
    assert scripted == [SCRIPTED]
    for formats, precision, fuse, scripting in (
        (["torchscript", "torch-export"], "int8", False, False),
        (["onnx"], "bfloat16", False, False),
        (["onnx", "torch-export"], "float32", False, True),
        (["torchscript"], "float32", True, True),
    ):
        with raises("export.unsupported", *formats, precision, *["--fuse"] * fuse, *["--scripting"] * scripting):
            forms(formats, [precision], fuse=fuse, scripting=scripting)
    monkeypatch.setattr("se_detection.export.export_runs.find_spec", lambda name: None)
    with raises("export.no_runtime", "se_detection[export]"):
        forms(["onnx"], ["float32"], fuse=False, scripting=False)


@pytest.mark.slow
def test_the_tool_prints_the_table(trained, run_script, tmp_path, capsys) -> None:
    options = ["--run", trained, "--output", tmp_path, "--images", "1", "--calibration-images", "1", "--markdown"]
    run_script("export.py", *options, "--format", "torchscript", "--precision", "float32", "int8", "--fuse")
    run_script("export.py", *options, "--format", "torchscript", "--scripting")
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| run: Faster R-CNN")]
    names = ["run-torchscript-float32-fused.ts", "run-torchscript-float32-scripted.ts"]
    assert sorted(path.name for path in tmp_path.glob("*.ts")) == names
    rows = json.loads((tmp_path / "exports.json").read_text())
    assert [row["file"] for row in rows] == names
    # The first table has one row, the second both.
    assert [("traced" in line, "scripted" in line) for line in table] == [(True, False), (True, False), (False, True)]
    for line, row in zip(table[1:], rows, strict=True):
        assert f"{row['worst']['boxes']:.1e}" in line
