"""Mutations of the code."""

import ast

import pytest

from dev.mutate import functions, mutation_of, mutations

SOURCE = '''
def area(box, *, inclusive=False):
    """Pixels of a box."""
    if box[2] < box[0]:
        raise ValueError(f"{box[0] + 1}")
    extra = 1 if inclusive else 0
    return (box[2] - box[0] + extra) * (box[3] - box[1] + extra)


class Box:
    def left(self):
        return self.box[0]
'''


def test_functions_have_dotted_names() -> None:
    assert [name for name, _ in functions(ast.parse(SOURCE))] == ["area", "Box.left"]


@pytest.mark.parametrize("seed", range(40))
def test_one_place_of_the_function_changes(seed) -> None:
    _, function = next(functions(ast.parse(SOURCE)))
    mutation = mutation_of("box.py", SOURCE, "area", function, seed)
    before, after = SOURCE.splitlines(), mutation.source.splitlines()
    assert len(before) == len(after)
    assert [number for number, lines in enumerate(zip(before, after, strict=True), 1) if len(set(lines)) > 1] == [
        mutation.line
    ]
    assert ast.dump(ast.parse(mutation.source)) != ast.dump(ast.parse(SOURCE))
    assert mutation.line in (4, 6, 7)  # neither the docstring nor the message


def test_another_function_in_the_file_changes_nothing() -> None:
    name, function = next(functions(ast.parse(SOURCE)))
    longer = "def first(x):\n    return x + 1\n" + SOURCE
    other = dict(functions(ast.parse(longer)))["area"]
    one, two = mutation_of("box.py", SOURCE, name, function, 0), mutation_of("box.py", longer, name, other, 0)
    assert (one.before, one.after) == (two.before, two.after)


def test_a_folder_gives_one_mutation_of_each_function() -> None:
    drawn = mutations("modeling", 10, seed=0)
    assert len({(mutation.path, mutation.function) for mutation in drawn}) == 10
