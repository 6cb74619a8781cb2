"""Augmentations against detectron2's and torchvision's, and against the pixels of objects of one color."""

import itertools
import random
import sys

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2 import model_zoo as detectron2_zoo
from detectron2.config import get_cfg, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image
from torchvision.transforms import RandomErasing as TorchvisionErasing

from se_detection.data.augmentations import EraseTransform, RandomErasing
from se_detection.data.coco_sets import register_coco_json
from se_detection.data.mapper import CheckedMapper
from se_detection.data.pixel_transforms import PixelTransforms
from se_detection.data.train_loader import Phase, TrainLoader, seed_cpu
from se_detection.engine.checks import check_settings

from ..helpers import raises

JITTER = ("INPUT.LARGE_SCALE_JITTER.ENABLED", True)
SMALL = (*JITTER, "INPUT.LARGE_SCALE_JITTER.SIZE", (96, 128), "INPUT.LARGE_SCALE_JITTER.MIN_SCALE", 0.5)
ERASED = ("INPUT.RANDOM_ERASING.PROB", 1.0)
# Boxes as (x, y, width, height): of a red and a green rectangle, and of a blue triangle below its diagonal. A cropped
# triangle has a smaller box than its cropped box.
OBJECTS = ((6, 8, 40, 30), (60, 20, 30, 60), (96, 50, 40, 44))
TRIANGLE = 2
WIDTH, HEIGHT = 140, 100


def config(*words: object):
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.FORMAT", "RGB", *words])
    return cfg


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> dict:
    """Three objects with boxes, masks, and keypoints in their corners, on black."""
    path = tmp_path_factory.mktemp("augmented") / "image.png"
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    annotations = []
    for channel, (x, y, width, height) in enumerate(OBJECTS):
        corners = [(x + 3, y + 3), (x + width - 3, y + 3), (x + width - 3, y + height - 3)]
        outline = [x, y, x + width, y, x + width, y + height, x, y + height]
        if channel == TRIANGLE:
            corners = [(x + width - 3, y + 9), (x + width - 3, y + height - 3), (x + 9, y + height - 3)]
            del outline[:2]
        pixels[..., channel] = 255 * polygon_mask([outline], HEIGHT, WIDTH).numpy()
        annotations.append(
            {
                "bbox": [x, y, width, height],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": channel,
                "segmentation": [list(map(float, outline))],
                "keypoints": [value for corner in corners for value in (*corner, 2)],
            }
        )
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "width": WIDTH, "height": HEIGHT, "image_id": 1, "annotations": annotations}


@pytest.fixture
def keypoints():
    """A data set whose three keypoints are not swapped in flipped images."""
    metadata = MetadataCatalog.get("corners")
    metadata.set(keypoint_names=["a", "b", "c"], keypoint_flip_map=[])
    yield "corners"
    MetadataCatalog.pop("corners")


def mapped(mapper: CheckedMapper, image: dict, seed: int) -> dict:
    seed_cpu(seed)
    return mapper(image)


@pytest.mark.parametrize("masks", [False, True])
def test_large_scale_jitter_is_that_of_detectron2s_lazy_configs(image, masks) -> None:
    lazy = detectron2_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py").dataloader.train.mapper
    lazy.update(image_format="RGB", use_instance_mask=masks, recompute_boxes=masks)
    theirs, ours = instantiate(lazy), CheckedMapper(config(*JITTER, "MODEL.MASK_ON", masks), is_train=True)
    assert isinstance(theirs, DatasetMapper)
    for seed in (1, 2):
        one, other = mapped(ours, image, seed), mapped(theirs, image, seed)
        assert one["image"].shape == (3, 1024, 1024)
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)
        assert one["instances"].has("gt_masks") == masks


@pytest.mark.parametrize("words", [SMALL, (*SMALL, "INPUT.CROP.ENABLED", True)], ids=["jitter", "with a crop"])
@pytest.mark.parametrize("masks", ["polygon", "bitmask", "run-length"])
def test_boxes_masks_and_keypoints_are_where_the_pixels_are(image, keypoints, words, masks) -> None:
    mask_format = "polygon" if masks == "polygon" else "bitmask"
    options = ("MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True, "INPUT.MASK_FORMAT", mask_format)
    if masks == "run-length":
        image = {**image, "annotations": [run_length(annotation) for annotation in image["annotations"]]}
    mapper = CheckedMapper(config(*words, *options, "DATASETS.TRAIN", (keypoints,)), is_train=True)
    counts = []
    for seed in range(16):
        found = mapped(mapper, image, seed)
        assert found["image"].shape == (3, 96, 128)
        # The padding is gray.
        painted = (found["image"] > 127) & (found["image"].sum(dim=0) < 380)
        instances = found["instances"]
        counts.append(len(instances))
        for number, channel in enumerate(instances.gt_classes.tolist()):
            rows, columns = painted[channel].nonzero(as_tuple=True)
            seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            box = instances.gt_boxes.tensor[number]
            # A blurred corner of the triangle looks shorter.
            assert (box - seen).abs().max() < (3 if channel == TRIANGLE else 1.1)
            one = instances.gt_masks[number]
            mask = one.tensor[0] if mask_format == "bitmask" else polygon_mask(one.polygons[0], 96, 128)
            # A border of one pixel may differ.
            perimeter = 2 * int((seen[2:] - seen[:2]).sum())
            assert (mask ^ painted[channel]).sum() <= perimeter
            for x, y, visible in instances.gt_keypoints.tensor[number].tolist():
                # An invisible keypoint is outside of the image. Its border is inside.
                assert visible == 0 or painted[channel, min(int(y), 95), min(int(x), 127)]
    # Objects outside of the crop are dropped.
    assert max(counts) == 3
    assert min(counts) < 3


def polygon_mask(polygons, height: int, width: int) -> torch.Tensor:
    return torch.as_tensor(polygons_to_bitmask([np.asarray(one) for one in polygons], height, width))


def run_length(annotation: dict) -> dict:
    mask = polygon_mask(annotation["segmentation"], HEIGHT, WIDTH).numpy()
    return {**annotation, "segmentation": pycocotools.mask.encode(np.asfortranarray(mask))}


def test_padding_of_stuff_is_ignored(image, tmp_path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 7).save(tmp_path / "stuff.png")
    stuff = {**image, "sem_seg_file_name": str(tmp_path / "stuff.png")}
    found = mapped(CheckedMapper(config(*SMALL, "MODEL.MASK_ON", True), is_train=True), stuff, 3)
    gray = (found["image"] == 128).all(dim=0)
    assert 0 < gray.sum() < gray.numel()
    assert torch.equal(found["sem_seg"], torch.where(gray, 255, 7))


def test_a_keypoint_outside_of_the_crop_is_invisible(image, keypoints) -> None:
    """By hand: the image is doubled, then cropped to its upper left quarter."""
    words = (*JITTER, "INPUT.LARGE_SCALE_JITTER.MIN_SCALE", 2.0, "INPUT.LARGE_SCALE_JITTER.SIZE", (HEIGHT, WIDTH))
    cfg = config(*words, "MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", (keypoints,), "INPUT.RANDOM_FLIP", "none")
    mapper = CheckedMapper(cfg, is_train=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "uniform", lambda low, high: low)
        instances = mapper(image)["instances"]
    # (6, 8, 40, 30) becomes (12, 16, 80, 60); (60, 20, 30, 60) becomes (120, 40, 60, 120); the third is outside.
    assert instances.gt_boxes.tensor.tolist() == [[12, 16, 92, 76], [120, 40, 140, 100]]
    assert instances.gt_keypoints.tensor.tolist() == [
        [[18, 22, 2], [86, 22, 2], [86, 70, 2]],
        [[126, 46, 2], [0, 0, 0], [0, 0, 0]],
    ]


def test_erasing_changes_the_pixels_of_a_rectangle_alone(image, keypoints) -> None:
    options = ("MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True, "DATASETS.TRAIN", (keypoints,))
    options = (*options, "MODEL.PIXEL_MEAN", (10.4, 20.6, 30.0))
    plain, erasing = (CheckedMapper(config(*options, *words), is_train=True) for words in ((), ERASED))
    for seed in range(3):
        before, after = mapped(plain, image, seed), mapped(erasing, image, seed)
        ours, theirs = after["instances"], before["instances"]
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_keypoints.tensor, theirs.gt_keypoints.tensor)
        for one, other in zip(ours.gt_masks.polygons, theirs.gt_masks.polygons, strict=True):
            assert np.array_equal(one, other)
        changed = (after["image"] != before["image"]).any(dim=0)
        rows, columns = changed.nonzero(as_tuple=True)
        rectangle = after["image"][:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (rectangle == torch.tensor([10, 21, 30])[:, None, None]).all()
        assert 0.01 < rectangle[0].numel() / changed.numel() < 0.34


def test_rectangles_are_torchvisions() -> None:
    pixels = np.full((50, 80, 3), 200, dtype=np.uint8)
    torch.manual_seed(4)
    expected = TorchvisionErasing.get_params(torch.zeros(1, 50, 80), (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
    torch.manual_seed(4)
    transform = RandomErasing(1.0, (0.02, 0.33), (0.3, 3.3), (1, 2, 3)).get_transform(pixels)
    assert (transform.y, transform.x, transform.height, transform.width) == expected


def test_a_rectangle_by_hand() -> None:
    transform = EraseTransform(x=1, y=2, width=3, height=1, value=(9.0, 8.0, 7.6))
    pixels = np.zeros((4, 5, 3), dtype=np.uint8)
    erased = transform.apply_image(pixels)
    expected = np.zeros_like(pixels)
    expected[2, 1:4] = (9, 8, 8)
    assert np.array_equal(erased, expected)
    assert not pixels.any()
    box = np.array([[0.5, 0.5, 4.0, 3.0]])
    assert np.array_equal(transform.apply_box(box), box)


def test_an_image_without_room_for_a_rectangle_stays() -> None:
    """torchvision then returns the whole image, with its own pixels."""
    augmentation = RandomErasing(1.0, (0.9, 1.0), (1.0, 1.0), (0, 0, 0))
    assert isinstance(augmentation.get_transform(np.zeros((20, 400, 3), dtype=np.uint8)), T.NoOpTransform)


def test_how_often_an_image_is_erased() -> None:
    random.seed(0)
    np.random.seed(0)
    augmentation = RandomErasing(0.25, (0.1, 0.1), (1.0, 1.0), (0, 0, 0))
    transforms = [augmentation.get_transform(np.zeros((40, 40, 3), dtype=np.uint8)) for _ in range(400)]
    assert sum(isinstance(one, EraseTransform) for one in transforms) == pytest.approx(100, abs=30)


@pytest.fixture
def albumentations():
    return pytest.importorskip("albumentations")


@pytest.mark.slow  # the import takes seconds
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_pixels_are_changed_as_by_albumentations_alone(image, albumentations, tmp_path, suffix) -> None:
    """In RGB in a detector of either format, and as the seed of the image says; boxes and masks stay."""
    pipeline = albumentations.Compose(
        [
            albumentations.OneOf([albumentations.GaussNoise(p=1), albumentations.Blur(p=1)], p=1),
            albumentations.ToSepia(p=0.5),
        ]
    )
    path = tmp_path / f"pipeline.{suffix}"
    albumentations.save(pipeline, path, data_format=suffix)
    pixels = np.random.RandomState(0).randint(0, 256, (32, 48, 3), dtype=np.uint8)
    outputs = []
    for seed in range(4):
        np.random.seed(seed)
        pipeline.set_random_seed(int(np.random.randint(2**31)))
        outputs.append(pipeline(image=pixels)["image"])
        for order, step in (("RGB", 1), ("BGR", -1)):
            np.random.seed(seed)
            transform = PixelTransforms(str(path), order).get_transform(pixels[..., ::step])
            for _ in range(2):
                assert np.array_equal(transform.apply_image(pixels[..., ::step])[..., ::step], outputs[-1])
    assert not np.array_equal(outputs[0], outputs[1])
    plain, changed = (
        mapped(CheckedMapper(config("MODEL.MASK_ON", True, *words), is_train=True), image, 1)
        for words in ((), ("INPUT.ALBUMENTATIONS", str(path)))
    )
    assert not torch.equal(changed["image"], plain["image"])
    assert torch.equal(changed["instances"].gt_boxes.tensor, plain["instances"].gt_boxes.tensor)
    for one, other in zip(changed["instances"].gt_masks.polygons, plain["instances"].gt_masks.polygons, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_images_depend_only_on_the_seed_and_the_iteration(data_set, albumentations, tmp_path) -> None:
    """With all augmentations: a loader that starts later, with processes of its own, gives the same images."""
    pipeline = albumentations.Compose([albumentations.GaussNoise(std_range=(0.1, 0.4), p=0.8)])
    albumentations.save(pipeline, tmp_path / "pipeline.json")
    register_coco_json("augmented", data_set.json_file, data_set.images)
    words = ("DATASETS.TRAIN", ("augmented",), "SOLVER.IMS_PER_BATCH", 2, "INPUT.RANDOM_ERASING.PROB", 0.5)
    cfg = config(*SMALL, *words, "INPUT.ALBUMENTATIONS", str(tmp_path / "pipeline.json"))
    found = []
    for start, workers in ((0, 0), (3, 0), (3, 2)):
        cfg.DATALOADER.NUM_WORKERS = workers
        loader = TrainLoader.from_cfg(cfg, CheckedMapper(cfg, is_train=True))
        loader.start_at(start, seed=5, phases=[Phase(0, 1, 2)])
        np.random.seed(start)
        batches = itertools.islice(loader, 6 - start)
        found.append([item["image"] for batch in batches for item in batch][-6:])
    for images in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(images, found[0], strict=True))
    assert not torch.equal(found[0][0], found[0][1])
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("augmented")


@pytest.mark.slow
def test_pipelines_that_move_objects_are_refused(albumentations, tmp_path) -> None:
    path = tmp_path / "pipeline.json"
    pipelines = {
        "HorizontalFlip": albumentations.Compose([albumentations.OneOf([albumentations.HorizontalFlip()])]),
        "not a Compose": albumentations.Blur(),
    }
    for named, pipeline in pipelines.items():
        albumentations.save(pipeline, path)
        with raises("config.bad_pipeline", "INPUT.ALBUMENTATIONS", path, named):
            check_settings(config("INPUT.ALBUMENTATIONS", str(path)), processes=1)
    for text in ("[1]", '{"transform": {"__class_fullname__": "os.system", "p": 1}}'):
        path.write_text(text)
        with raises("config.bad_pipeline", path):
            check_settings(config("INPUT.ALBUMENTATIONS", str(path)), processes=1)


def test_a_missing_library_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    path = tmp_path / "pipeline.json"
    with raises("config.not_found", path):
        check_settings(config("INPUT.ALBUMENTATIONS", str(path)), processes=1)
    path.write_text("{}")
    with raises("config.no_albumentations", "INPUT.ALBUMENTATIONS", "pip install albumentations"):
        check_settings(config("INPUT.ALBUMENTATIONS", str(path)), processes=1)


def test_evaluation_has_no_augmentation(image) -> None:
    plain, augmented = (CheckedMapper(config(*words), is_train=False) for words in ((), (*JITTER, *ERASED)))
    assert torch.equal(plain(image)["image"], augmented(image)["image"])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("INPUT.LARGE_SCALE_JITTER.SIZE", [512]), "INPUT.LARGE_SCALE_JITTER.SIZE: [512]"),
        (("INPUT.LARGE_SCALE_JITTER.SIZE", [512, 0]), "INPUT.LARGE_SCALE_JITTER.SIZE: [512, 0]"),
        (("INPUT.LARGE_SCALE_JITTER.MIN_SCALE", 3.0), "INPUT.LARGE_SCALE_JITTER.MIN_SCALE: 3.0"),
        (("INPUT.RANDOM_ERASING.PROB", 1.5), "INPUT.RANDOM_ERASING.PROB: 1.5"),
        (("INPUT.RANDOM_ERASING.AREA", [0.3, 0.1]), "INPUT.RANDOM_ERASING.AREA: [0.3, 0.1]"),
        (("INPUT.RANDOM_ERASING.AREA", [0.3, 1.1]), "INPUT.RANDOM_ERASING.AREA: [0.3, 1.1]"),
        (("INPUT.RANDOM_ERASING.ASPECT_RATIO", [0.0, 1.0]), "INPUT.RANDOM_ERASING.ASPECT_RATIO: [0.0, 1.0]"),
        (("MODEL.RESNETS.DROP_BLOCK", 1.0), "MODEL.RESNETS.DROP_BLOCK: 1.0"),
    ],
)
def test_unusable_settings_are_refused(words, named) -> None:
    with raises("config.bad_value", named):
        check_settings(config(*words), processes=1)
