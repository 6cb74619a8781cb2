"""Broken and hostile JSON for hypothesis, how many inputs a test tries, and what became of them."""

import copy
import json
import math
import os
from collections import Counter
from typing import Any, NamedTuple

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


class Nested(NamedTuple):
    """Lists in lists, or objects in objects."""

    depth: int
    shape: type

    def make(self) -> Any:
        value: Any = 1
        for _ in range(self.depth):
            value = [value] if self.shape is list else {"a": value}
        return value


ODD = [None, True, False, [], {}, [1], [[1, 2, 3]], [[]], [0] * 5000, {"counts": "x", "size": [1, 1]}]
ODD += [Nested(60, list), Nested(700, list), Nested(700, dict)]

values = st.sampled_from([*NUMBERS, *TEXTS, *ODD])
# Of the first, most make a file that is only another one.
ACTIONS = ["nudge"] * 6 + ["set"] * 6 + ["delete", "double", "wrap", "move", "rename", "empty", "add"]
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1 << 20), st.integers(0, 1 << 20), values),
    min_size=1,
    max_size=4,
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every container of a content, with a key or index in it, but for what is very deep."""
    found, waiting = [], [(content, 0)]
    while waiting:
        node, depth = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in list(keys)[:200]:
            found.append((node, key))
            if depth < 20:
                waiting.append((node[key], depth + 1))
    return found


def mutated(content: Any, changes: list[tuple[str, int, int, Any]]) -> Any:
    """A copy of a content with changes at places that the numbers choose."""
    top = [copy.deepcopy(content)]
    for action, where, other, value in changes:
        found = places(top)
        node, key = found[where % len(found)]
        if action == "nudge" and type(node[key]) in (int, float) and abs(node[key]) < 1e300:
            node[key] = node[key] + [1, 0.5, -0.25, 7][other % 4]
        elif action == "set":
            node[key] = fresh(value)
        elif action == "wrap":
            node[key] = [node[key]]
        elif action == "move":
            there, other_key = found[other % len(found)]
            node[key], there[other_key] = fresh(there[other_key]), fresh(node[key])
        elif action == "empty" and isinstance(node[key], list | dict):
            node[key] = type(node[key])()
        elif action == "delete" and node is not top:
            del node[key]
        elif action == "double" and isinstance(node, list) and node is not top:
            node.insert(key, fresh(node[key]))
        elif action == "rename" and isinstance(node, dict):
            node["renamed"] = node.pop(key)
        elif action == "add" and isinstance(node[key], dict):
            node[key][["ignore", "keypoints", "segmentation", "extra"][other % 4]] = fresh(value)
    return top[0]


def fresh(value: Any) -> Any:
    """A copy that shares nothing with the value."""
    if isinstance(value, Nested):
        return value.make()
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def encoded(content: Any) -> bytes:
    """JSON of a content, which may have become too deep for it."""
    try:
        return json.dumps(content).encode()
    except RecursionError:
        return b"null"


@st.composite
def damaged(draw: Any, content: Any) -> bytes:
    """JSON of a valid content with other values in random places, or with its bytes spoilt."""
    if draw(st.integers(0, 3)):
        return encoded(mutated(content, draw(steps)))
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
    """How many inputs a test tries."""
    return settings(
        max_examples=count * TIMES,
        deadline=None,
        # Of many inputs, the first that fails is enough.
        phases=set(Phase) - ({Phase.shrink} if TIMES > 1 else set()),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Tally:
    """What became of the inputs of a test, for its last line."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.counts: Counter[str] = Counter()

    def refused(self, function: Any, *args: Any, **options: Any) -> Any:
        """A function's result; None where it raises a UserError, which must be one line that can be printed."""
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
