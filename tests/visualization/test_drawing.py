import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from se_detection.visualization.drawing import class_colours, draw_boxes, side_by_side

NAMES = {3: "cup", 7: "plate"}
BOX = {"bbox": [20, 60, 40, 40], "category_id": 7, "score": 0.5}


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((160, 120), np.inf, (640, 480)),
        ((60, 120), np.inf, (320, 640)),
        ((640, 480), np.inf, (640, 480)),
        ((3000, 1500), np.inf, (3000, 1500)),
        ((3000, 1500), 1280, (1280, 640)),
        ((160, 120), 320, (320, 240)),
    ],
)
def test_small_images_are_enlarged_and_large_ones_reduced_to_longest(size, longest, expected) -> None:
    image = Image.new("RGB", size, (90, 90, 90))
    drawn = draw_boxes(image, [BOX], NAMES, class_colours(NAMES), longest=longest)
    assert drawn.size == expected
    assert np.asarray(image).std() == 0
    # The box's left edge, two pixels wide or more, is where it is in the image.
    scale = expected[0] / size[0]
    x, y = round(20 * scale), round(80 * scale)
    assert tuple(np.asarray(drawn)[y, x]) == class_colours(NAMES)[7]
    assert tuple(np.asarray(drawn)[y, round(40 * scale)]) == (90, 90, 90)


def test_text_is_larger_on_large_images() -> None:
    heights = []
    for width in (640, 3200):
        box = {**BOX, "bbox": [width // 4, width // 4, width // 4, width // 8]}
        drawn = np.asarray(draw_boxes(Image.new("RGB", (width, width // 2)), [box], NAMES, class_colours(NAMES)))
        # Down the left edge of the box: the label above it, and the edge.
        column = np.flatnonzero((drawn[:, width // 4 + 1] == class_colours(NAMES)[7]).all(axis=1))
        heights.append(width // 4 - column.min())
        assert column.max() == width // 4 + width // 8
    # Font sizes of 12 and 40 pixels, with margins.
    assert heights == [16, 44]


def test_colours_differ_and_do_not_depend_on_the_number_of_classes() -> None:
    colours = class_colours({number: str(number) for number in range(80)})
    assert len(set(colours.values())) == 80
    assert {key: colours[key] for key in range(3)} == class_colours(dict.fromkeys(range(3), ""))


def test_panels_are_in_a_row_below_their_titles() -> None:
    panels = [Image.new("RGB", (300, 200), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    sheet = np.asarray(side_by_side(panels, ["one", "two", "three"]))
    assert sheet.shape[1] == 3 * 300 + 2 * 8
    head = sheet.shape[0] - 200
    for number, panel in enumerate(panels):
        columns = slice(number * 308, number * 308 + 300)
        np.testing.assert_array_equal(sheet[head:, columns], np.asarray(panel))
        assert sheet[:head, columns].min() < 60
    assert (sheet[:, 300:308] == 255).all()


def test_masks_and_keypoints_of_detections_are_drawn() -> None:
    names, colours = {7: "plate"}, class_colours({7: "plate"})
    inside = np.zeros((640, 640), bool)
    inside[300:400, 100:200] = True
    code = masks.encode(np.asfortranarray(inside.astype(np.uint8)))
    entry = {
        **{"bbox": [400, 400, 40, 40], "category_id": 7, "score": 0.5},
        "segmentation": {"size": [640, 640], "counts": code["counts"].decode()},
        # Two above the threshold, and one below.
        "keypoints": [39.5, 59.5, 0.9, 79.5, 59.5, 0.06, 119.5, 59.5, 0.04],
    }
    image = Image.new("RGB", (640, 640), (90, 90, 90))
    drawn = np.asarray(draw_boxes(image, [entry], names, colours)).astype(int)
    grey = (drawn == 90).all(axis=2)
    assert not grey[inside].any()
    np.testing.assert_allclose(drawn[350, 150], 0.55 * 90 + 0.45 * np.array(colours[7]), atol=0.5)
    assert tuple(drawn[60, 40]) == tuple(drawn[60, 80]) == colours[7]
    assert grey[60, 120]
    # All other drawn pixels belong to the box and its label.
    rest = ~grey & ~inside
    rest[50:70, 30:90] = False
    assert rest.sum() > 0
    assert not rest[:350].any()
    assert not rest[:, :390].any()
    # Masks and keypoints of annotations are not drawn, nor masks of another size.
    truth = {key: value for key, value in entry.items() if key != "score"}
    truth |= {"keypoints": [39.5, 59.5, 2], "segmentation": [[100, 300, 200, 300, 200, 400]]}
    assert (np.asarray(draw_boxes(image, [truth], names, colours))[:350] == 90).all()
    other = {**entry, "segmentation": {**entry["segmentation"], "size": [320, 1280]}}
    assert (np.asarray(draw_boxes(image, [other], names, colours))[300:350, 100:200] == 90).all()
