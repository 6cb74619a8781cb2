"""Hypothesis strategies for random damage to a COCO file's content."""

import math

from hypothesis import strategies as st

KEYS = {
    "images": ["id", "file_name", "width", "height"],
    "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation"],
    "categories": ["id", "name"],
}
NUMBERS = [0, 1, 2, -1, 40, 60, 100, 101, 0.5, 12.0, 1e-7, 1e308, 10**30, math.nan, math.inf]
ODD = [None, True, "", "0", "a", "\ud800", "\0", [], [1], {}, {"counts": "x", "size": [1, 1]}, [[1, 2, 3]]]
NAMES = ["0_1.png", "sub/turned.jpg", "broken.jpg", "gone.jpg", "../a", "/a"]

anything = st.sampled_from([*NUMBERS, *ODD, *NAMES])
integers = st.sampled_from([0, 1, 2, 3, 5, 40, 60, 100, 101, 4711])
coordinates = st.integers(-20, 80) | st.floats(-20, 80) | st.sampled_from(NUMBERS)
# Values of the right type, which are harder to recognize as wrong.
PLAUSIBLE = {
    "file_name": st.sampled_from(NAMES),
    "bbox": st.lists(coordinates, min_size=4, max_size=4),
    "area": st.floats(0, 1e4),
    "iscrowd": st.sampled_from([0, 1]),
    "name": st.sampled_from(["mast", "crab"]),
}


def breakages(max_size=5):
    """A strategy for lists of steps (action, kind, index, key, value)."""
    steps = st.sampled_from(["annotations"] * 5 + ["images"] * 3 + ["categories"]).flatmap(
        lambda kind: st.sampled_from(KEYS[kind]).flatmap(
            lambda key: st.tuples(
                st.sampled_from(["set"] * 5 + ["delete", "repeat", "copy", "insert", "empty"]),
                st.just(kind),
                st.integers(0, 50),
                st.just(key),
                PLAUSIBLE.get(key, integers) | anything,
            )
        )
    )
    return st.lists(steps, min_size=1, max_size=max_size)


def break_content(content, steps) -> None:
    """Damages the content in place; changed entries are copies."""
    for action, kind, position, key, value in steps:
        entries = content[kind]
        index = position % len(entries) if entries else 0
        if action == "insert":
            entries.insert(index, value)
        elif action == "empty" and position < 3:
            content[kind] = []
        elif entries and isinstance(entries[index], dict):
            entry = dict(entries[index])
            if action == "set":
                entry[key] = value
            elif action == "delete":
                entry.pop(key, None)
            elif action == "copy":
                entry[key] = value
                entries.append(dict(entry))
                continue
            elif action == "repeat":
                entries.append(dict(entry))
            entries[index] = entry
