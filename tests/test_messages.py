"""The wording of all error messages: one line that says what is wrong and, after a semicolon, what to do."""

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from se_detection.errors import UserError, counted, user_message

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("se_detection", "se_detection_cli", "projects")
# Instructions: what to do, or what is possible.
HELP = re.compile(r"; |\b(use|give|set|run|install|choose|call|import|needs?|must|can|at most|at least|one of)\b")
# Nouns of what is counted, in the plural; and values before them that are texts.
PLURAL = re.compile(
    r" (such |test |CPU )?(images|classes|annotations|boxes|objects|detections|categories|keypoints|files|frames"
    r"|numbers|processes|workers|iterations|runs|rounds|evaluations|channels|blocks|layers|times|threads)\b"
)
TEXTS = ("file.channel_order", "runs", "split")
# Made of another message, or of what a library says.
COMPOSED = re.compile(r"([{} :()]|image)+|.*(: |, and |is gone)\{\}")


def literal(node: ast.expr, values: dict[str, ast.expr]) -> str:
    """The text of a message; `{}` stands for a value."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.JoinedStr(parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)
        case ast.BinOp(left, ast.Add(), right):
            return literal(left, values) + literal(right, values)
        case ast.Name(name) if name in values:
            return literal(values[name], {})
    return "{}"


@cache
def messages() -> list[tuple[str, str, str]]:
    """Place, code and message of each error; variables have the value that was last assigned."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "tests" in path.parts:
                continue
            values: dict[str, ast.expr] = {}
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assign | ast.Call)]
            for node in sorted(nodes, key=lambda node: node.lineno):
                match node:
                    case ast.Assign([ast.Name(name)], value):
                        values[name] = value
                    case ast.Call(ast.Name("UserError" | "NoBatchError" | "QuickError"), arguments):
                        code, message = (literal(argument, values) for argument in arguments)
                        found.append((f"{path.relative_to(ROOT)}:{node.lineno}", code, message))
    return found


def test_each_error_has_a_code_and_one_line() -> None:
    wrong = {}
    for place, code, message in messages():
        faults = {
            "code": re.fullmatch(r"[a-z]+\.[a-z0-9_]+|\{\}", code) is None,
            "line break": "\n" in message,
            "full stop": message.rstrip().endswith("."),
            "spaces": "  " in message or message != message.strip(),
            "exclamation": "!" in message or "please" in message.lower(),
        }
        if any(faults.values()):
            wrong[place] = [name for name, is_wrong in faults.items() if is_wrong]
    assert wrong == {}


def test_each_message_says_what_to_do() -> None:
    without = [
        place for place, _, message in messages() if not HELP.search(message) and not COMPOSED.fullmatch(message)
    ]
    assert without == []


def test_numbers_have_a_noun_in_the_right_number() -> None:
    """`counted` writes `1 image`; a formatted value before a noun in the plural would give `1 images`."""
    assert [counted(number, "image") for number in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
    wrong = []
    for package in (*PACKAGES, "dev"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                parts = node.values if isinstance(node, ast.JoinedStr) and "tests" not in path.parts else []
                for value, text in pairwise(parts):
                    match value, text:
                        case ast.FormattedValue(number), ast.Constant(str(after)) if PLURAL.match(after):
                            # A constant is never 1.
                            if not (name := ast.unparse(number)).isupper() and name not in TEXTS:
                                wrong.append(f"{path.relative_to(ROOT)}:{value.lineno}{after}")
    assert wrong == []


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u202eb", "x" * 9000])
def test_names_from_files_stay_on_one_short_printable_line(name: str) -> None:
    text = user_message(UserError("data.no_image", f"{name}: the image is missing; add it"))
    assert text is not None
    assert text.isprintable()
    assert len(text) < 2100
    assert text.endswith("add it [data.no_image]")
