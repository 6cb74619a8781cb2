"""Small random changes to the code, each run against the tests of its folder: which do the tests notice?

A mutation changes one place of one function: a comparison, an operator, a number, a condition, a returned value or a
call. A function is drawn by its name and the seed, and so is the change within it, so that two commits get the same
mutations of the functions that both of them have. It works on a copy of the files that git tracks.

    python dev/mutate.py --count 60 --json mutations.json
"""

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling", "checkpoint", "comparison", "evaluation")
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
}
# Runs one test session after the imports that all of them share; forked, because these imports take some seconds.
RUNNER = """
import os, sys, signal
import torch, torchvision, timm, hypothesis, pytest, detectron2.modeling, detectron2.engine, detectron2.evaluation
torch.set_num_threads(1)
for line in sys.stdin:
    folder, limit, *arguments = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path.insert(0, folder)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        signal.alarm(int(limit))
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Mutation:
    """One change: the function's file and name, the line, and the code before and after."""

    path: str
    function: str
    line: int
    before: str
    after: str
    source: str
    result: str = ""
    seconds: float = 0.0


def draw(seed: int, *names: object) -> str:
    """Returns a key to sort by: random by the seed, and the same for the same names."""
    return hashlib.sha256(":".join(map(str, (seed, *names))).encode()).hexdigest()


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what may replace a node; not other names and attributes, because mypy would notice most of them."""
    match node:
        case ast.Compare(left, [operator], right) if type(operator) in COMPARISONS:
            yield ast.Compare(left, [COMPARISONS[type(operator)]()], right)
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Return(value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call()) | ast.AugAssign():
            yield ast.Pass()


def nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yields the nodes of a function's body, without nested functions, messages of errors, logging and annotations."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop(0)
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.Raise() | ast.JoinedStr():
                continue
            case ast.Expr(ast.Constant()):
                continue
            case ast.Expr(ast.Call(ast.Attribute(_, "debug" | "info" | "warning"))):
                continue
            case ast.AnnAssign(value=value):
                todo += [value] if value is not None else []
                continue
        yield node
        todo += ast.iter_child_nodes(node)


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yields the functions and methods of a module with their dotted names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node
            yield from functions(node, f"{prefix}{node.name}.")


def replaced(source: str, node: ast.AST, new: ast.AST) -> str:
    """Returns the source with the node's text replaced; the rest of the file keeps its lines."""
    if isinstance(node, ast.If) and isinstance(new, ast.If):
        return replaced(source, node.test, new.test)  # the body keeps its comments
    lines = source.splitlines(keepends=True)
    first, last = node.lineno - 1, node.end_lineno - 1  # type: ignore[attr-defined]
    head = lines[first].encode()[: node.col_offset].decode()  # type: ignore[attr-defined]
    tail = lines[last].encode()[node.end_col_offset :].decode()  # type: ignore[attr-defined]
    text = ast.unparse(ast.fix_missing_locations(new))
    if isinstance(new, ast.expr):
        text = f"({text})"
    text = text.replace("\n", "\n" + " " * node.col_offset)  # type: ignore[attr-defined]
    return "".join([*lines[:first], head, text, tail, *lines[last + 1 :]])


def mutation_of(path: str, source: str, name: str, function: ast.FunctionDef, seed: int) -> Mutation | None:
    """Returns the mutation that the seed draws of a function, or None if there is nothing to change."""
    candidates = [
        (draw(seed, name, ast.unparse(node), ast.unparse(ast.fix_missing_locations(new))), node, new)
        for node in nodes(function)
        for new in changes(node)
    ]
    for _, node, new in sorted(candidates, key=lambda candidate: candidate[0]):
        changed = replaced(source, node, new)
        try:
            ast.parse(changed)
        except SyntaxError:
            continue
        before, after = (ast.unparse(part).splitlines()[0] for part in (node, new))
        return Mutation(path, name, node.lineno, before, after, changed)  # type: ignore[attr-defined]
    return None


def mutations(folder: str, count: int, seed: int) -> list[Mutation]:
    """Returns the mutations of a folder of the package, at most one of each function."""
    found: list[tuple[str, str, str, str, ast.FunctionDef]] = []
    for path in sorted((ROOT / "se_detection" / folder).rglob("*.py")):
        source = path.read_text()
        for name, function in functions(ast.parse(source)):
            found.append((draw(seed, name), str(path.relative_to(ROOT)), source, name, function))
    found.sort(key=lambda item: item[:2])
    drawn = (mutation_of(path, source, name, function, seed) for _, path, source, name, function in found)
    return [mutation for mutation in drawn if mutation is not None][:count]


class Checkout:
    """A copy of the tracked files, and a process that runs tests in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, tracked.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.folder / name)
        if (ROOT.parent / "shared").is_dir():
            (folder / "shared").symlink_to(ROOT.parent / "shared")
        environment = os.environ | {
            "PYTHONPATH": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def tests(self, mutation: Mutation) -> list[str]:
        """Returns the tests of the module's folder; those that name the module or the function come first."""
        module = Path(mutation.path).stem
        names = (f"test_{module}", mutation.function.split(".")[0], module)

        def distance(file: Path) -> tuple[int, Path]:
            text = file.stem + file.read_text()
            return next((place for place, name in enumerate(names) if name in text), len(names)), file

        folder = self.folder / "tests" / Path(mutation.path).parts[1]
        return [str(file) for file in sorted(folder.rglob("test_*.py"), key=distance)]

    def run(self, mutation: Mutation, limit: int) -> Mutation:
        """Runs the tests on a mutation; those that take longer than the limit, in seconds, have noticed it."""
        path = self.folder / mutation.path
        original = path.read_text()
        start = time.monotonic()
        path.write_text(mutation.source)
        try:
            assert self.process.stdin
            assert self.process.stdout
            line = "\t".join([str(self.folder), str(limit), *self.tests(mutation)])
            print(line, file=self.process.stdin, flush=True)
            status = int(self.process.stdout.readline())
        finally:
            path.write_text(original)
        mutation.result = "survived" if status == 0 else "killed" if status > 0 else "timeout"
        mutation.seconds = round(time.monotonic() - start, 1)
        return mutation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="mutations in all, shared equally by the folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", nargs="+", default=FOLDERS, help="folders of se_detection and of tests")
    parser.add_argument("--limit", type=int, default=600, help="seconds for the tests of one mutation")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="show the mutations, run none")
    parser.add_argument("--json", type=Path, help="write the results here after each mutation")
    args = parser.parse_args()
    todo = [m for folder in args.folders for m in mutations(folder, args.count // len(args.folders), args.seed)]
    if args.list:
        for mutation in todo:
            print(f"{mutation.path}:{mutation.line} {mutation.function}: {mutation.before} -> {mutation.after}")
        return
    done: list[Mutation] = []

    def work(part: list[Mutation]) -> None:
        with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
            checkout = Checkout(Path(folder))
            for mutation in part:
                done.append(checkout.run(mutation, args.limit))
                print(
                    f"{len(done)}/{len(todo)} {mutation.result} in {mutation.seconds:.0f} s: {mutation.path}:"
                    f"{mutation.line} {mutation.function}: {mutation.before} -> {mutation.after}",
                    flush=True,
                )
                if args.json:
                    rows = [{k: v for k, v in asdict(row).items() if k != "source"} for row in done]
                    args.json.write_text(json.dumps(rows, indent=1) + "\n")

    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(work, (todo[i :: args.processes] for i in range(args.processes))))
    killed = sum(mutation.result != "survived" for mutation in done)
    print(f"{killed} of {len(done)} mutations killed ({100 * killed / len(done):.0f} %)")


if __name__ == "__main__":
    main()
