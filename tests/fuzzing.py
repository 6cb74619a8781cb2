"""Broken and hostile JSON for hypothesis, the number of inputs of a test, and a count of the outcomes."""

import copy
import json
import math
import os
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from se_detection import UserError

# FUZZ=50 tries 50 times as many inputs.
TIMES = int(os.environ.get("FUZZ", "1"))

NUMBERS = [
    *(0, 1, 2, -1, 3, 7, 40, 60, 0.5, -0.0, 12.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *(2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 10**400, 10**4000),
]
TEXTS = [
    *("", "0", "1", "a", "a b", "ä", "a\nb", "\x1b[2J", "\ud800", "\0", "$\\frac", "<script>", "\u202egnp.a"),
    *("a" * 300, "b" * 100_000, "../a.png", "/etc/passwd", "a/../../b", ".", "..", "sub", "http://a/b.png", "%s{0}"),
]


NESTED: Any = 1
for _ in range(60):
    NESTED = [NESTED]
ODD = [None, True, False, [], {}, [1], [[1, 2, 3]], [[]], [0] * 5000, {"counts": "x", "size": [1, 1]}, NESTED]

values = st.sampled_from([*NUMBERS, *TEXTS, *ODD])
# Most results of the first are valid files with other values.
ACTIONS = ["nudge"] * 6 + ["set"] * 6 + ["delete", "double", "wrap", "move", "rename", "empty", "add"]
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1 << 20), st.integers(0, 1 << 20), values),
    min_size=1,
    max_size=4,
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) pairs of a JSON value: at most 200 of a container, without very deep ones."""
    pairs, waiting = [], [(content, 0)]
    while waiting:
        node, depth = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in list(keys)[:200]:
            pairs.append((node, key))
            if depth < 20:
                waiting.append((node[key], depth + 1))
    return pairs


def mutated(content: Any, changes: list[tuple[str, int, int, Any]]) -> Any:
    """A copy of a JSON value with changes; their numbers choose the places."""
    top = [copy.deepcopy(content)]
    for action, where, other, value in changes:
        pairs = places(top)
        node, key = pairs[where % len(pairs)]
        if action == "nudge" and type(node[key]) in (int, float) and abs(node[key]) < 1e300:
            node[key] = node[key] + [1, 0.5, -0.25, 7][other % 4]
        elif action == "set":
            node[key] = copy.deepcopy(value)
        elif action == "wrap":
            node[key] = [node[key]]
        elif action == "move":
            other_node, other_key = pairs[other % len(pairs)]
            node[key], other_node[other_key] = copy.deepcopy(other_node[other_key]), copy.deepcopy(node[key])
        elif action == "empty" and isinstance(node[key], list | dict):
            node[key] = type(node[key])()
        elif action == "delete" and node is not top:
            del node[key]
        elif action == "double" and isinstance(node, list) and node is not top:
            node.insert(key, copy.deepcopy(node[key]))
        elif action == "rename" and isinstance(node, dict):
            node["renamed"] = node.pop(key)
        elif action == "add" and isinstance(node[key], dict):
            node[key][["ignore", "keypoints", "segmentation", "extra"][other % 4]] = copy.deepcopy(value)
    return top[0]


@st.composite
def damaged(draw: Any, content: Any) -> bytes:
    """JSON of a valid value, with other values in random places or with corrupted bytes."""
    if draw(st.integers(0, 3)):
        return json.dumps(mutated(content, draw(steps))).encode()
    data = bytearray(json.dumps(content).encode())
    where = draw(st.integers(0, len(data)))
    kind = draw(st.sampled_from(["cut", "byte", "insert", "encoding", "deep", "random"]))
    if kind == "cut":
        del data[where:]
    elif kind == "byte":
        data[where : where + 1] = draw(st.binary(min_size=1, max_size=1))
    elif kind == "insert":
        data[where:where] = draw(st.sampled_from([b"[", b"{", b'"', b"\xff", b"\0", b"NaN", b"1e999", b"9" * 5000]))
    elif kind == "encoding":
        return bytes(data).decode().encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig"])))
    elif kind == "deep":
        depth = draw(st.sampled_from([100, 500, 730, 800, 900, 960, 990, 1100, 100_000]))
        opening, closing = draw(st.sampled_from([(b"[", b"]"), (b'{"a":', b"}")]))
        data[1:1] = b'"deep":' + opening * depth + b"1" + closing * depth + b","
    else:
        return draw(st.binary(max_size=40))
    return bytes(data)


def examples(count: int) -> settings:
    """Settings for a test of `count` inputs, times FUZZ."""
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        # Shrinking a failure takes too long with so many inputs.
        phases=set(Phase) - ({Phase.shrink} if TIMES > 1 else set()),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Tally:
    """Counts the outcomes of a test's inputs, for a summary line."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.counts: Counter[str] = Counter()

    def refused(self, function: Any, *args: Any, **options: Any) -> Any:
        """The result of a function, or None if it raises a UserError, whose message must be one printable line."""
        try:
            result = function(*args, **options)
        except UserError as error:
            line = str(error)
            assert line
            assert line.isprintable()
            assert len(line) < 3000
            self.counts["refused"] += 1
            return None
        self.counts["read"] += 1
        return result

    def __str__(self) -> str:
        total = sum(self.counts.values())
        return f"{self.what}: {total} inputs, {self.counts['refused']} refused, {self.counts['read']} read"
