"""A person's own COCO data, with masks and keypoints, in tools/train_net.py."""

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from se_detection import model_zoo
from se_detection.engine import Trainer, argument_parser, load_config
from se_detection.engine.hooks import Evaluation
from se_detection.errors import UserError

from .detectors import DETECTORS, SMALL
from .shapes import SHAPES, draw

KEYPOINTS = ["top", "right_wing", "bottom", "left_wing"]
SIGMAS = [0.1, 0.2, 0.3, 0.2]
# From scratch, as configs/Toy does it.
RECIPE = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "INPUT.MIN_SIZE_TRAIN": (96,),
    "INPUT.MIN_SIZE_TEST": 96,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.5,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 1,
}


def write_set(folder: Path, name: str, *, count: int, classes: int = len(SHAPES), suffix: str = ".png") -> Path:
    """Pictures of shapes, and their annotations with polygons and keypoints."""
    images, annotations = [], []
    (folder / name).mkdir(parents=True)
    for number in range(1, count + 1):
        picture = draw(number, classes=classes)
        height, width = picture.semantic.shape
        Image.fromarray(picture.pixels).save(folder / name / f"{number}{suffix}")
        images.append({"id": number, "file_name": f"{number}{suffix}", "height": height, "width": width})
        for item in picture.annotations:
            item = {
                **item,
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 10 * (item["category_id"] + 1),
            }
            annotations.append(item)
    categories = [{"id": 10 * (kind + 1), "name": name} for kind, name in enumerate(("kite", "trapezoid")[:classes])]
    if classes == 1:
        categories[0] |= {"keypoints": KEYPOINTS, "skeleton": [[1, 2], [2, 3], [3, 4], [4, 1]]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def changed(path: Path, target: Path, change) -> Path:
    content = json.loads(path.read_text())
    change(content)
    target.write_text(json.dumps(content))
    return target


def use_run_length_codes(content) -> None:
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        (code,) = masks.frPyObjects(annotation["segmentation"], *sizes[annotation["image_id"]])
        annotation["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}


@pytest.fixture(autouse=True)
def _data_sets_of_each_test(monkeypatch) -> None:
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))


@pytest.fixture(scope="module")
def data(module_path) -> SimpleNamespace:
    things = write_set(module_path, "things", count=2)
    kites = write_set(module_path, "kites", count=2, classes=1)
    return SimpleNamespace(
        things=things,
        kites=kites,
        codes=changed(things, module_path / "codes.json", use_run_length_codes),
        images={
            name: module_path / ("kites" if name == "kites" else "things") for name in ("things", "kites", "codes")
        },
    )


def flags(train: Path, images: Path, val: Path | None = None) -> list[str]:
    pairs = (("train", train), ("val", val or train))
    return [part for split, path in pairs for part in (f"--{split}-json", str(path), f"--{split}-images", str(images))]


def load(name: str, given: list[str], run: Path, overrides: dict[str, object] | None = None):
    """The config of a run, from the command line's words."""
    values = {**SMALL, **RECIPE, "OUTPUT_DIR": run, **(overrides or {})}
    if "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS" not in (overrides or {}):
        # The data tells it.
        del values["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"]
    words = [word for key, value in values.items() for word in (key, str(value))]
    config = model_zoo.get_config_file(DETECTORS[name].config)
    return load_config(argument_parser().parse_args(["--config-file", config, *given, *words]))


def train(cfg) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


def reference(annotations: Path, written: Path, task: str) -> list[float]:
    """pycocotools' AP, AP50, ... of a file of results, in percent."""
    truth = COCO(str(annotations))
    results = json.loads(written.read_text())
    if task == "segm":
        # COCO's areas are those of masks; a box would be taken for one.
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    evaluation = COCOeval(truth, truth.loadRes(results), task)
    if task == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.array(SIGMAS)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return (100 * evaluation.stats).tolist()


METRICS = {
    "bbox": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "segm": ["AP", "AP50", "AP75", "APs", "APm", "APl"],
    "keypoints": ["AP", "AP50", "AP75", "APm", "APl"],
}
CASES = {
    "retinanet": ("retinanet", "things", ["bbox"], {}),
    "polygons": (
        "mask_rcnn_fpn",
        "things",
        ["bbox", "segm"],
        {"TEST.AUG.ENABLED": True, "TEST.AUG.MIN_SIZES": (64, 96)},
    ),
    "codes": ("mask_rcnn_fpn", "codes", ["bbox", "segm"], {}),
    "cascade": ("cascade_mask_rcnn", "things", ["bbox", "segm"], {}),
    "keypoints": ("keypoint_rcnn", "kites", ["bbox", "keypoints"], {"TEST.KEYPOINT_OKS_SIGMAS": SIGMAS}),
}


@pytest.mark.parametrize("case", CASES)
def test_ap_is_pycocotools_of_what_was_written(data, case, tmp_path) -> None:
    name, source, tasks, overrides = CASES[case]
    json_file = vars(data)[source]
    images = data.images[source]
    # Evaluated twice: at half of the steps, and at the end.
    evaluations = {"TEST.EVAL_PERIOD": RECIPE["SOLVER.MAX_ITER"] // 2, "SOLVER.BEST_METRIC": f"{tasks[-1]}/AP"}
    cfg = load(name, flags(json_file, images), tmp_path, evaluations | overrides)
    train(cfg)

    assert cfg.INPUT.MASK_FORMAT == ("bitmask" if case == "codes" else "polygon")
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    logged = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    for task in tasks:
        expected = reference(json_file, tmp_path / "inference" / "coco_instances_results.json", task)
        for metric, value in zip(METRICS[task], expected, strict=False):
            # pycocotools' -1 is detectron2's NaN.
            assert results[task][metric] == (pytest.approx(value, abs=1e-6) if value >= 0 else None)
        assert logged[-1][f"{task}/AP"] == pytest.approx(expected[0], abs=1e-6)
        if overrides.get("TEST.AUG.ENABLED"):
            written = tmp_path / "inference_TTA" / cfg.DATASETS.TEST[0] / "coco_instances_results.json"
            expected = reference(json_file, written, task)
            assert logged[-1][f"{task}_TTA/AP"] == pytest.approx(expected[0], abs=1e-6)
            # Other boxes than those of one size, unflipped.
            assert written.read_text() != (tmp_path / "inference" / "coco_instances_results.json").read_text()
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert best[f"{tasks[-1]}/AP"] == max(line[f"{tasks[-1]}/AP"] for line in logged if f"{tasks[-1]}/AP" in line)


@pytest.mark.parametrize(
    ("case", "tasks"),
    [("polygons", ["bbox", "segm"]), ("codes", ["bbox", "segm"]), ("keypoints", ["bbox", "keypoints"])],
)
def test_what_is_nearly_right_has_pycocotools_ap(data, case, tasks, tmp_path) -> None:
    """The truth a few pixels off, as it would be found, in the evaluation of a run's config."""
    name, source, _, _ = CASES[case]
    json_file = vars(data)[source]
    sigmas = {"TEST.KEYPOINT_OKS_SIGMAS": SIGMAS} if case == "keypoints" else {}
    cfg = load(name, flags(json_file, data.images[source]), tmp_path, sigmas)
    evaluator = Trainer.build_evaluator(cfg, cfg.DATASETS.TEST[0])
    evaluator.reset()
    for number in (1, 2):
        picture = draw(number, classes=1 if case == "keypoints" else len(SHAPES))
        found = Instances(picture.semantic.shape)
        boxes = torch.tensor([item["bbox"] for item in picture.annotations])
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes + 2 * number)
        found.scores = torch.tensor([0.9, 0.8]) / number
        found.pred_classes = torch.tensor([item["category_id"] for item in picture.annotations])
        if case == "keypoints":
            points = torch.tensor([item["keypoints"] for item in picture.annotations]).reshape(2, -1, 3)
            found.pred_keypoints = points + torch.tensor([2.0 * number, 0, 0])
        else:
            codes = [masks.frPyObjects(item["segmentation"], *found.image_size) for item in picture.annotations]
            shapes = np.stack([masks.decode(masks.merge(code)) for code in codes])
            found.pred_masks = torch.from_numpy(np.roll(shapes, 2 * number, axis=2)).bool()
        evaluator.process([{"image_id": number}], [{"instances": found}])
    returned = evaluator.evaluate()
    assert list(returned) == tasks
    for task in tasks:
        expected = reference(json_file, tmp_path / "inference" / "coco_instances_results.json", task)
        assert 10 < expected[0] < 95
        for metric, value in zip(METRICS[task], expected, strict=False):
            assert returned[task][metric] == pytest.approx(value if value >= 0 else np.nan, abs=1e-6, nan_ok=True)


def test_nothing_found_has_no_ap_of_masks_either(data, tmp_path) -> None:
    cfg = load(
        "mask_rcnn_fpn",
        flags(data.things, data.images["things"]),
        tmp_path,
        {"SOLVER.MAX_ITER": 1, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0},
    )
    train(cfg)
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert set(results["bbox"].values()) == set(results["segm"].values()) == {None}


def test_keypoints_are_known_as_detectron2_knows_its_own(data, tmp_path) -> None:
    """A person's own copy of COCO's category gives the metadata that detectron2 has built in, and its sigmas do."""
    own, builtin = tmp_path / "persons.json", MetadataCatalog.get("keypoints_coco_2017_val")
    names = list(builtin.keypoint_names)
    content = json.loads(data.kites.read_text())
    content["categories"] = [{"id": 10, "name": "person", "keypoints": names, "skeleton": [[16, 14], [14, 12]]}]
    for annotation in content["annotations"]:
        annotation |= {"keypoints": [*annotation["keypoints"], *[0] * 39]}
    own.write_text(json.dumps(content))
    cfg = load("keypoint_rcnn", flags(own, data.images["kites"]), tmp_path / "run")
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 17
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    assert metadata.keypoint_names == names
    assert sorted(metadata.keypoint_flip_map) == sorted(builtin.keypoint_flip_map)
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
        ("left_ankle", "left_knee"),
        ("left_knee", "left_hip"),
    ]
    # And the run's own config evaluates it where the training data is gone.
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    arguments = ["--eval-only", "--config-file", str(tmp_path / "run" / "config.yaml")]
    arguments += [
        *flags(own, data.images["kites"])[4:],
        "MODEL.WEIGHTS",
        str(own),
        "OUTPUT_DIR",
        str(tmp_path / "other"),
    ]
    MetadataCatalog.pop(cfg.DATASETS.TRAIN[0])
    assert load_config(argument_parser().parse_args(arguments)).DATASETS.TEST == cfg.DATASETS.TEST


def without(key: str):
    def change(content) -> None:
        del content["annotations"][1][key]

    return change


def renamed(content) -> None:
    content["categories"][0]["keypoints"] = ["top", "right_wing", "bottom", "left_fin"]


def unnamed(content) -> None:
    del content["categories"][0]["keypoints"]


def one_point_less(content) -> None:
    content["annotations"][2]["keypoints"] = content["annotations"][2]["keypoints"][:9]


def line(content) -> None:
    content["annotations"][0]["segmentation"] += [[1, 1, 5, 5]]


def turned_codes(content) -> None:
    use_run_length_codes(content)
    content["annotations"][3]["segmentation"]["size"].reverse()


SET_MASK_OFF = "or set MODEL.MASK_ON to False"
REFUSED = {
    "no mask": (
        "mask_rcnn_fpn",
        without("segmentation"),
        {},
        f"1 of 4 annotations have no usable mask: annotation 2 has none; give each 'segmentation': polygons or a "
        f"run-length code, {SET_MASK_OFF}",
    ),
    "polygon of two points": ("mask_rcnn_fpn", line, {}, "annotation 1 has a polygon of less than three points"),
    "code of another size": (
        "mask_rcnn_fpn",
        turned_codes,
        {},
        "annotation 4 has one of size [128, 96] (height, width), and its image is [96, 128]",
    ),
    "codes as polygons": (
        "mask_rcnn_fpn",
        use_run_length_codes,
        {"INPUT.MASK_FORMAT": "polygon"},
        "INPUT.MASK_FORMAT: polygon contradicts",
    ),
    "unknown format": (
        "mask_rcnn_fpn",
        None,
        {"INPUT.MASK_FORMAT": "png"},
        "INPUT.MASK_FORMAT: 'png' is neither polygon nor bitmask",
    ),
    "no keypoints": ("keypoint_rcnn", without("keypoints"), {}, "annotation 2 has none; give each 'keypoints'"),
    "few keypoints": ("keypoint_rcnn", one_point_less, {}, "annotation 3 has 9 numbers, and 4 keypoints have 12"),
    "no count": ("keypoint_rcnn", without("num_keypoints"), {}, "annotation 2 has no 'num_keypoints'"),
    "no names": ("keypoint_rcnn", unnamed, {}, "category 10 'kite' has no 'keypoints'"),
    "no other side": ("keypoint_rcnn", renamed, {}, "keypoint 'right_wing' has no counterpart 'left_wing'"),
    "no sigmas": ("keypoint_rcnn", None, {}, "TEST.KEYPOINT_OKS_SIGMAS is empty, which means COCO's"),
    "few sigmas": ("keypoint_rcnn", None, {"TEST.KEYPOINT_OKS_SIGMAS": [0.1]}, "one for each"),
    "number of keypoints": (
        "keypoint_rcnn",
        None,
        {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 5},
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS: 5 contradicts",
    ),
    "no panoptic data": ("panoptic_fpn", None, {}, "register your data with detectron2's register_coco_panoptic_sep"),
    "augmented keypoints": (
        "keypoint_rcnn",
        None,
        {"TEST.AUG.ENABLED": True, "TEST.KEYPOINT_OKS_SIGMAS": SIGMAS},
        "of a GeneralizedRCNN alone, and this is a GeneralizedRCNN with keypoints",
    ),
    "augmented retinanet": ("retinanet", None, {"TEST.AUG.ENABLED": True}, "and this is a RetinaNet; set it to False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_one_line(data, case, tmp_path) -> None:
    name, change, overrides, message = REFUSED[case]
    source = "kites" if name == "keypoint_rcnn" else "things"
    json_file = vars(data)[source]
    wrong = changed(json_file, tmp_path / "wrong.json", change or (lambda content: None))
    with pytest.raises(UserError) as caught:
        load(name, flags(wrong, data.images[source]), tmp_path / "run", overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "key", "message"),
    [
        ("mask_rcnn_fpn", "segmentation", "MODEL.MASK_ON: 2 of the 2 objects in a.png have no 'segmentation'"),
        ("keypoint_rcnn", "keypoints", "MODEL.KEYPOINT_ON: 2 of the 2 objects in a.png have no 'keypoints'"),
    ],
)
def test_a_set_that_was_registered_in_python_is_looked_at_before_training(name, key, message, tmp_path) -> None:
    picture = draw(0)
    height, width = picture.semantic.shape
    entries = [
        {**{k: v for k, v in item.items() if k != key}, "category_id": 0, "bbox_mode": BoxMode.XYWH_ABS}
        for item in picture.annotations
    ]
    # A visible keypoint: pictures without any are left out by detectron2.
    entries.append({**picture.annotations[0], "category_id": 0, "iscrowd": 1})
    record = {"file_name": "a.png", "image_id": 1, "height": height, "width": width, "annotations": entries}
    DatasetCatalog.register("drawn", lambda: [record])
    MetadataCatalog.get("drawn").set(
        thing_classes=["kite"], evaluator_type="coco", keypoint_names=KEYPOINTS, keypoint_flip_map=[]
    )
    values = {
        "DATASETS.TRAIN": ("drawn",),
        "DATASETS.TEST": ("drawn",),
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "TEST.KEYPOINT_OKS_SIGMAS": SIGMAS,
    }
    cfg = load(name, [], tmp_path, values | {"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 4})
    with pytest.raises(UserError) as caught:
        Trainer.build_train_loader(cfg)
    assert message in str(caught.value)


def register_panoptic(folder: Path) -> str:
    """A set with things and stuff, by detectron2's own function; returns its name."""
    things = write_set(folder, "images", count=2, suffix=".jpg")
    content = json.loads(things.read_text())
    (folder / "stuff").mkdir()
    (folder / "panoptic").mkdir()
    panoptic = []
    for image in content["images"]:
        semantic = draw(image["id"]).semantic
        name = f"{image['id']}.png"
        Image.fromarray(semantic.astype(np.uint8)).save(folder / "stuff" / name)
        # Segments are numbered by colours, red first: 1 and 2 are stuff, then come the objects.
        segments = [{"id": kind, "category_id": 100 + kind, "iscrowd": 0} for kind in (1, 2)]
        numbers = semantic.copy()
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                (code,) = masks.frPyObjects(item["segmentation"], *semantic.shape)
                numbers[masks.decode(code).astype(bool) & (semantic == 0)] = 10 + item["id"]
                segments.append({"id": 10 + item["id"], "category_id": item["category_id"], "iscrowd": 0})
        for segment in segments:
            segment["area"] = int((numbers == segment["id"]).sum())
        colours = np.zeros((*numbers.shape, 3), np.uint8)
        colours[:, :, 0] = numbers
        Image.fromarray(colours).save(folder / "panoptic" / name)
        panoptic.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    stuff = [{"id": 100 + kind, "name": name, "isthing": 0} for kind, name in ((1, "sky"), (2, "ground"))]
    categories = [*({**category, "isthing": 1} for category in content["categories"]), *stuff]
    panoptic_json = folder / "panoptic.json"
    panoptic_json.write_text(
        json.dumps({"images": content["images"], "annotations": panoptic, "categories": categories})
    )
    metadata = {
        "thing_classes": ["kite", "trapezoid"],
        "thing_dataset_id_to_contiguous_id": {10: 0, 20: 1},
        "stuff_classes": ["things", "sky", "ground"],
        "stuff_dataset_id_to_contiguous_id": {0: 0, 101: 1, 102: 2},
    }
    register_coco_panoptic_separated(
        *("drawn", metadata, str(folder / "images"), str(folder / "panoptic"), str(panoptic_json)),
        *(str(folder / "stuff"), str(things)),
    )
    return "drawn_separated"


def test_panoptic_data_is_evaluated_as_in_detectron2s_own_train_net(tmp_path, monkeypatch) -> None:
    name = register_panoptic(tmp_path)
    values = {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,), "MODEL.ROI_HEADS.NUM_CLASSES": 2}
    if find_spec("panopticapi") is None:
        with pytest.raises(UserError, match="panopticapi, which is not there; install it: pip install"):
            load("panoptic_fpn", [], tmp_path / "run", values)
        monkeypatch.setattr("se_detection.engine.config.find_spec", lambda name: True)
    for other, message in (
        (
            {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 54},
            "54 contradicts data set 'drawn_separated', which has 3 classes of stuff",
        ),
        ({"TEST.AUG.ENABLED": True}, "this is a PanopticFPN"),
        ({"DATASETS.TRAIN": ("se_toy_train",), "MODEL.ROI_HEADS.NUM_CLASSES": 4, "DATASETS.TEST": ()}, "has no stuff"),
    ):
        with pytest.raises(UserError, match=message):
            load("panoptic_fpn", [], tmp_path / "run", values | other)
    with pytest.raises(UserError, match="is evaluated with stuff, of which a GeneralizedRCNN finds none"):
        load("mask_rcnn_fpn", [], tmp_path / "run", values)

    cfg = load("panoptic_fpn", [], tmp_path / "run", values)
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer._hooks = [hook for hook in trainer._hooks if not isinstance(hook, Evaluation)]
    trainer.train()
    ours = Trainer.build_evaluator(cfg, name)
    theirs = import_module("tools.train_net").build_evaluator(cfg, name, f"{cfg.OUTPUT_DIR}/inference")
    for one, other in zip(ours._evaluators, theirs._evaluators, strict=True):
        assert isinstance(one, type(other))
        assert one._output_dir == other._output_dir
    # All but the last, which can't do without panopticapi.
    loader = Trainer.build_test_loader(cfg, name)
    results = inference_on_dataset(trainer.model, loader, DatasetEvaluators(ours._evaluators[:2]))
    with torch.no_grad():
        outputs = [trainer.model.eval()(batch)[0]["sem_seg"].argmax(0) for batch in loader]
    truth, found = np.stack([draw(number).semantic for number in (1, 2)]), np.stack(outputs)
    kinds = [(truth == kind, found == kind) for kind in range(3)]
    ious = [(one & other).sum() / (one | other).sum() for one, other in kinds]
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * np.mean(ious), abs=1e-6)
    expected = reference(
        tmp_path / "images.json", Path(cfg.OUTPUT_DIR, "inference/coco_instances_results.json"), "segm"
    )
    assert results["segm"]["AP"] == pytest.approx(expected[0], abs=1e-6)


def test_all_files_have_the_same_keypoints(data, tmp_path) -> None:
    def turn(content) -> None:
        content["categories"][0]["keypoints"].reverse()

    other = changed(data.kites, tmp_path / "other.json", turn)
    with pytest.raises(UserError, match=f"^{other} has other 'keypoints' than {data.kites}, or in another order"):
        load("keypoint_rcnn", flags(data.kites, data.images["kites"], other), tmp_path / "run")


def test_the_tool_says_it_in_one_line(data, run_script, tmp_path, capsys) -> None:
    wrong = changed(data.things, tmp_path / "boxes.json", without("segmentation"))
    config = model_zoo.get_config_file(DETECTORS["mask_rcnn_fpn"].config)
    given = flags(wrong, data.images["things"])
    with pytest.raises(SystemExit) as caught:
        run_script("train_net.py", "--config-file", config, *given, "OUTPUT_DIR", tmp_path / "run")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {wrong}: 1 of 4 annotations have no usable mask")
