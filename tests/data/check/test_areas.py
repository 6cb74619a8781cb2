import json

import numpy as np
import pytest
from pycocotools import mask as masks

from se_detection.data.check.annotated_folder import decode_images, read_annotated_folder
from se_detection.data.check.areas import wrong_areas
from se_detection.data.check.fix import fix_annotations
from se_detection.data.check.health import check_health

from ..conftest import assert_usable

SIZE = (640, 480)
BOX = [10, 20, 200, 100]
TRIANGLE = [10, 20, 210, 20, 210, 120]
(CODE,) = masks.frPyObjects([TRIANGLE], 480, 640)
COMPRESSED = CODE | {"counts": CODE["counts"].decode()}
PIXELS = np.flatnonzero(np.diff(masks.decode(CODE).ravel(order="F"), prepend=0, append=0))
COUNTS = {"size": [480, 640], "counts": np.diff(PIXELS, prepend=0, append=640 * 480).tolist()}


def one(area, mask=None, box=BOX):
    return wrong_areas([({"bbox": box, "area": area, "segmentation": mask}, SIZE)]).get(0)


@pytest.mark.parametrize(("area", "right"), [
    (20000, None), (201 * 101, None), (19800, None),  # the box, in Pascal VOC's way, rounded
    (5000, None), (400, None),  # may be a mask's
    (0, 20000), (1, 20000), (21000, 20000), (80000, 20000), (1e300, 20000), (None, 20000),
])  # fmt: skip
def test_area_is_compared_with_the_box(area, right) -> None:
    assert one(area) == right
    for unusable in ([], [[1, 2, 3]], {"size": [640, 480], "counts": [0, 640 * 480]}, [[0, 0, 1e300, 0, 1e300, 1e300]]):
        assert one(area, unusable) == right


@pytest.mark.parametrize("mask", [[TRIANGLE], [TRIANGLE[:4], TRIANGLE], COMPRESSED, COUNTS])
def test_area_is_compared_with_the_mask_as_in_pycocotools(mask) -> None:
    expected = float(masks.area(CODE))
    assert one(expected, mask) is one(9900, mask) is one(20000, mask) is None
    for area in (0, 1, 5000, 13000, 40000):
        assert one(area, mask) == pytest.approx(expected, rel=0.03)


def test_areas_of_another_image_size_are_found() -> None:
    rng = np.random.default_rng(0)
    boxes = [[0, 0, *sides] for sides in rng.uniform(50, 400, (20, 2)).tolist()]

    def found(areas):
        return wrong_areas([({"bbox": box, "area": a}, SIZE) for box, a in zip(boxes, areas, strict=True)])

    whole = {index: box[2] * box[3] for index, box in enumerate(boxes)}
    assert found([area / 4 for area in whole.values()]) == found([area * 4 for area in whole.values()]) == whole
    # Those of circles, and of different shapes.
    assert not found([area * np.pi / 4 for area in whole.values()])
    assert not found(
        [area * share for area, share in zip(whole.values(), rng.uniform(0.1, 0.4, 20).tolist(), strict=True)]
    )


def test_wrong_areas_are_reported_and_fixed(data_set, cfg) -> None:
    annotations = data_set.content["annotations"]
    annotations[3] |= {"area": 1440, "segmentation": [[2, 5.5, 22, 5.5, 22, 23.5]]}
    annotations[4] |= {"area": 1}
    data_set.write()
    annotated = read_annotated_folder(data_set.json_file, data_set.images)
    decoded = decode_images(annotated)
    (finding,) = check_health(annotated, decoded, [], cfg)["findings"]
    assert (finding["key"], finding["count"], finding["level"]) == ("annotations-area", 2, "warning")
    assert finding["examples"][1].endswith("area 1, should be 360")
    fixed, changes = fix_annotations(annotated, decoded)
    assert [entry["area"] for entry in fixed.content["annotations"][3:6]] == [180, 360, 360]
    assert list(changes.values()) == [["annotation 4", "annotation 5"]]
    assert_usable(fixed.content, data_set.json_file.with_name("fixed.json"), data_set.images, cfg)


def test_areas_of_coco_are_not_wrong(shared_data) -> None:
    """COCO's areas are those of masks, which this copy of the annotations lacks."""
    for json_file in ("coco_mini/annotations/instances_val2017.json", "bccd/annotations/val.json"):
        content = json.loads((shared_data / json_file).read_bytes())
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        assert not wrong_areas([(entry, sizes[entry["image_id"]]) for entry in content["annotations"]])
