import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks

from se_detection.visualization.drawing import DrawnBox, Pen, class_colours, draw_boxes, draw_panel, side_by_side

NAMES = {3: "cup", 7: "plate"}
COLOURS = class_colours(NAMES)
BOX = {"bbox": [20, 60, 40, 40], "category_id": 7, "score": 0.5}
GREY, RED, BLACK = (90, 90, 90), (255, 0, 0), (0, 0, 0)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((160, 120), np.inf, (640, 480)),
        ((60, 120), np.inf, (320, 640)),
        ((1000, 500), np.inf, (1000, 500)),
        ((1000, 500), 800, (800, 400)),
        ((160, 120), 320, (320, 240)),
        ((3000, 2), np.inf, (3000, 2)),
    ],
)
def test_small_images_are_enlarged_and_large_ones_reduced_to_longest(size, longest, expected) -> None:
    image = Image.new("RGB", size, GREY)
    drawn = draw_boxes(image, [BOX], NAMES, COLOURS, longest=longest)
    assert drawn.size == expected
    assert np.asarray(image).std() == 0
    if size[1] > 100:
        # The box's left edge is where it is in the image.
        scale = expected[0] / size[0]
        y, edge, middle = (round(scale * place) for place in (80, 20, 40))
        assert drawn.getpixel((edge, y)) == COLOURS[7]
        assert drawn.getpixel((middle, y)) == GREY


def test_lines_and_text_are_larger_on_large_images() -> None:
    labels, lines = [], []
    for width in (640, 3200):
        box = {**BOX, "bbox": [width // 4, width // 4, width // 4, width // 8]}
        drawn = np.asarray(draw_boxes(Image.new("RGB", (width, width // 2)), [box], NAMES, COLOURS))
        coloured = (drawn == COLOURS[7]).all(axis=2)
        labels.append(width // 4 - np.flatnonzero(coloured.any(axis=1)).min())
        lines.append(coloured[:, width * 3 // 8].sum())
        # The corner of the last pixel of the box.
        assert abs(np.flatnonzero(coloured.any(axis=1)).max() - (width * 3 // 8 - 1)) <= lines[-1] // 2
    # Font sizes of 12 and 40 pixels with margins; two lines of 2 and 7 pixels, to which OpenCV adds up to 2.
    assert 14 <= labels[0] <= 20
    assert 45 <= labels[1] <= 65
    assert 4 <= lines[0] <= 6
    assert 14 <= lines[1] <= 18


def test_colours_differ_and_do_not_depend_on_the_number_of_classes() -> None:
    colours = class_colours(range(80))
    assert len(set(colours.values())) == 80
    assert {key: colours[key] for key in range(3)} == class_colours([2, 1, 0])
    # Labels are black: WCAG 2.2 asks for a contrast of 4.5.
    channels = np.array(list(colours.values())) / 255
    luminance = np.where(channels > 0.04045, ((channels + 0.055) / 1.055) ** 2.4, channels / 12.92)
    assert ((luminance @ [0.2126, 0.7152, 0.0722] + 0.05) / 0.05).min() > 4.5


def test_the_highest_score_is_on_top_and_labels_do_not_overlap() -> None:
    entries = [{**BOX, "bbox": [200, 200, 100, 100], "category_id": key, "score": 0.9 - key / 10} for key in NAMES]
    drawn = draw_boxes(Image.new("RGB", (640, 640), GREY), entries, NAMES, COLOURS)
    assert drawn.getpixel((250, 299)) == COLOURS[3]
    assert drawn.tobytes() == draw_boxes(Image.new("RGB", (640, 640), GREY), entries[::-1], NAMES, COLOURS).tobytes()
    above = np.asarray(drawn)[:190]
    assert all((above == colour).all(axis=2).sum() > 300 for colour in COLOURS.values())
    # More than 100 labels stay where they are, one on another.
    heights = []
    for number in (100, 101):
        many = draw_boxes(Image.new("RGB", (640, 640), GREY), entries[:1] * number, NAMES, COLOURS)
        heights.append(640 - np.flatnonzero((np.asarray(many) != 90).any(axis=(1, 2))).min())
    assert heights[0] > heights[1] > 640 - 200


def test_boxes_far_outside_are_drawn_at_once() -> None:
    boxes = [[-1e300, -1e300, 2e300, 2e300], [2e9, 2e9, 2e9, 2e9], [-5000, 100, 1e5, 1e5]]
    for dash in (0, 5):
        drawn = draw_panel(Image.new("RGB", (640, 480)), [DrawnBox(box, "", RED, dash) for box in boxes], 640)
        rows = np.flatnonzero((np.asarray(drawn) == RED).all(axis=2).any(axis=1))
        assert set(rows) <= {99, 100, 101}
        assert 100 in rows


def test_dashes_cover_half_of_the_line_and_a_dark_line_surrounds_it() -> None:
    image = Image.new("RGB", (200, 100), GREY)
    solid, dashed, dotted = (
        np.asarray(draw_panel(image, [DrawnBox([10, 10, 160, 60], "", RED, dash)], 200, Pen(line=4)))
        for dash in (0, 10, 4)
    )
    for broken in (dashed, dotted):
        coloured = [(panel == RED).all(axis=-1) for panel in (solid, broken)]
        assert not (coloured[1] & ~coloured[0]).any()
        assert coloured[1].sum() == pytest.approx(coloured[0].sum() / 2, rel=0.05)
        np.testing.assert_array_equal((broken == GREY).all(axis=-1), (solid == GREY).all(axis=-1))
        assert (broken[coloured[0] & ~coloured[1]] == 0).all()
    assert (dashed != dotted).any()
    # In a panel that is twice as wide, the box has twice the coordinates.
    wide = draw_panel(image, [DrawnBox([10, 10, 160, 60], "", RED)], 400, Pen(line=4))
    row = [wide.getpixel((x, 80)) for x in range(10, 30)]
    assert row[:6] == row[-6:] == [GREY] * 6
    assert row[10] == RED
    assert [colour for number, colour in enumerate(row) if colour != row[number - 1]] == [BLACK, RED, BLACK, GREY]


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
    inside = np.zeros((640, 640), bool)
    inside[300:400, 100:200] = True
    code = masks.encode(np.asfortranarray(inside.astype(np.uint8)))
    entry = {
        **{"bbox": [400, 400, 40, 40], "category_id": 7, "score": 0.5},
        "segmentation": {"size": [640, 640], "counts": code["counts"].decode()},
        # Two above the threshold, and one below.
        "keypoints": [39.5, 59.5, 0.9, 79.5, 59.5, 0.06, 119.5, 59.5, 0.04],
    }
    image = Image.new("RGB", (640, 640), GREY)
    drawn = np.asarray(draw_boxes(image, [entry], NAMES, COLOURS)).astype(int)
    grey = (drawn == 90).all(axis=2)
    assert not grey[inside].any()
    np.testing.assert_allclose(drawn[350, 150], 0.55 * 90 + 0.45 * np.array(COLOURS[7]), atol=0.5)
    assert tuple(drawn[60, 40]) == tuple(drawn[60, 80]) == COLOURS[7]
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
    assert (np.asarray(draw_boxes(image, [truth], NAMES, COLOURS))[:350] == 90).all()
    other = {**entry, "segmentation": {**entry["segmentation"], "size": [320, 1280]}}
    assert (np.asarray(draw_boxes(image, [other], NAMES, COLOURS))[300:350, 100:200] == 90).all()
