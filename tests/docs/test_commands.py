"""What the documentation says to type: does the tool at hand take it?"""

import ast
import importlib
import json
import re
import runpy
import shlex
import subprocess
from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from projects.study.definition import read_study
from se_detection.config.defaults import flatten
from se_detection.config.read_config import read_config
from se_detection.model_zoo import find_config_file
from se_detection.pretrain.pretrain_config import config_base
from se_detection_cli.main import COMMANDS, main_parser

from .pages import PAGES, ROOT, Block, blocks, braces, commands, inline_code, prose
from .test_word_by_word import FOLLOWED

# Only in a checkout; the other scripts of tools/ are commands of se-det.
TOOLS = ("analyze", "benchmark", "benchmark_loop", "prepare_coco", "serve", "study")
# The tests that run a command. They use each flag of the documentation, unless a block says that it needs more.
TESTS = {
    "se-det analyze": ["tests/modeling/test_detector_complexity.py", "tests/gates/test_*.py"],
    "se-det check-data": ["tests/data/test_prepare_coco.py"],
    "se-det compare": ["tests/comparison/test_compare_command.py", "tests/comparison/test_comparison_page.py"],
    "se-det convert": ["tests/checkpoint/test_tool.py"],
    "se-det export": ["tests/export/test_exporter.py"],
    "se-det minival": ["tests/data/test_prepare_coco.py"],
    "se-det predict": ["tests/inference/test_predict.py"],
    "se-det pretrain": ["tests/pretrain/conftest.py", "tests/pretrain/test_pretrainer.py"],
    "se-det sample": ["tests/data/test_prepare_coco.py"],
    "se-det train": [
        "tests/engine/test_train_net.py",
        "tests/engine/conftest.py",
        "tests/engine/test_many_processes.py",
    ],
    "se-det zoo": ["tests/cli/test_main.py"],
    "analyze": ["projects/paper/tests/*.py"],
    "benchmark": ["projects/benchmark/tests/test_benchmark_command.py"],
    "benchmark_loop": ["projects/benchmark/tests/test_loop.py"],
    "prepare_coco": ["tests/data/test_prepare_coco.py"],
    "serve": ["projects/serve/tests/test_*.py"],
    "study": ["projects/study/tests/test_study.py"],
}
# Flags that no test types, and the test of the function that gets their value.
PASSED_ON = {
    (
        "benchmark",
        "--part",
    ): "projects/benchmark/tests/test_timed_models.py::test_fused_models_have_the_outputs_of_eager_ones",
    (
        "se-det export",
        "--evaluate",
    ): "tests/export/test_exporter.py::test_int8_has_8_bit_weights_and_ap",
    ("study", "--page"): "projects/study/tests/test_results.py::test_the_page_is_made_from_the_records",
}
# Other commands, and the files that run or check them.
OTHERS = {
    "make": "Makefile",
    ".": "Makefile",
    "pip": "tests/test_packaging.py",
    "python": "tests/docs/test_commands.py",
    "tensorboard": "tests/engine/test_tensorboard.py",
}
FOLDERS = r"(\.ci|configs|dev|docs|examples|projects|se_detection|se_detection_cli|tests|tools)/"
CONFIGS = r"(COCO-\w+|Paper|Ablations|Study|Toy|Pretrain|Misc)/"
KEYS = r"(?<![\w.])(?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER|PRETRAIN)\.[A-Z0-9_.]+"
# Of pip, conda and git.
ANOTHERS = {"--no-build-isolation", "--no-cache-dir", "--no-deps", "--index-url"}
SHELL = blocks("bash")


def names(some: list[Block]) -> list[str]:
    return [block.name for block in some]


class _Found(BaseException):
    """Carries a parser out of a tool, past its exception handlers."""


@pytest.fixture(scope="module")
def parsers() -> dict[str, ArgumentParser]:
    """The parser of each command: `se-det NAME`, and the name of each script in tools/."""

    def stop(parser: ArgumentParser, *arguments: object) -> None:
        raise _Found(parser)

    found = {}
    monkeypatch = pytest.MonkeyPatch()
    for path in sorted((ROOT / "tools").glob("*.py")):
        main = runpy.run_path(str(path), run_name="tool")["main"]
        monkeypatch.setattr(ArgumentParser, "parse_args", stop)
        with pytest.raises(_Found) as caught:
            main()
        monkeypatch.undo()
        found[path.stem] = caught.value.args[0]
    (commands,) = (action for action in main_parser()._actions if isinstance(action, _SubParsersAction))
    return found | {f"se-det {name}": parser for name, parser in commands.choices.items()}


def tool_of(command: str) -> tuple[str, list[str]] | None:
    """The command that a line runs, and its arguments."""
    words = shlex.split(command, comments=True)
    for place, word in enumerate(words):
        if word == "se-det" or words[place - 1 : place + 1] == ["-m", "se_detection"]:
            return f"se-det {words[place + 1]}", words[place + 2 :]
        if re.fullmatch(r"tools/\w+\.py", word):
            return Path(word).stem, words[place + 1 :]
    return None


def check(tool: str, words: list[str], parsers: dict[str, ArgumentParser]) -> None:
    """Parses arguments as the tool does, and merges their config and overrides."""
    args = parsers[tool].parse_args(words)
    config_file, overrides = getattr(args, "config_file", None), getattr(args, "opts", [])
    if config_file and config_file.startswith(("output/", "narrow.yaml")):
        config_file = None  # written by a run, or shown on the page
    base = config_base() if tool in ("pretrain", "se-det pretrain") else None
    if config_file:
        config_file = find_config_file(config_file)
    if base is not None:
        read_config(config_file, base=base)
        config_file = f"configs/Pretrain/Recipe-{args.recipe}.yaml"
    if config_file:
        read_config(config_file, overrides, base=base)
    else:
        get_cfg().merge_from_list(overrides)
    if tool == "study":
        read_study(args.study)


@pytest.mark.parametrize("block", SHELL, ids=names(SHELL))
def test_commands_are_the_tools(block, parsers, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(block.text):
        if found := tool_of(command):
            check(*found, parsers)
            continue
        words = shlex.split(command, comments=True)
        if words[:2] == ["python", "-c"]:
            compile(words[2], block.name, "exec")
        for word in words:
            assert not re.match(FOLDERS, word) or Path(word).exists(), f"{block.name}: there is no {word}"


@pytest.mark.parametrize("goal", ["demo", "bench"])
def test_what_make_does_is_the_tools(goal, parsers, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    done = subprocess.run(["make", "--dry-run", goal], capture_output=True, text=True, check=True)
    found = [tool for command in commands(done.stdout) if (tool := tool_of(command))]
    assert found
    for tool in found:
        check(*tool, parsers)


def test_a_wrong_command_is_seen(parsers, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    config = ["--config-file", "configs/Toy/faster_rcnn_SE_R_18_FPN.yaml"]
    for tool in ("se-det train", "train_net"):
        check(tool, [*config, "SEED", "1"], parsers)
    for words in ([*config, "--no-such-flag", "1"], [*config, "SOLVER.NO_SUCH_KEY", "1"], ["--config-file", "none"]):
        with pytest.raises((SystemExit, ValueError)):
            check("se-det train", words, parsers)
    with pytest.raises(SystemExit):
        check("se-det export", ["--run", "a", "--output", "b", "--format", "caffe2"], parsers)


def followed(block: Block) -> bool:
    """Whether tests/docs/test_word_by_word.py runs it."""
    return any(block.page == ROOT / page and part in block.text for page, part in FOLLOWED)


def text_of_tests(tool: str) -> str:
    """The text of the files that run a tool."""
    files = [file for pattern in TESTS[tool] for file in ROOT.glob(pattern)]
    return "".join(path.read_text() for path in files)


@pytest.mark.parametrize("block", SHELL, ids=names(SHELL))
def test_a_block_is_run_by_a_test_or_says_what_it_needs(block) -> None:
    if block.needs_more or followed(block):
        return
    typed = {
        (found[0], word)
        for other in filter(followed, SHELL)
        for found in filter(None, map(tool_of, commands(other.text)))
        for word in found[1]
    }
    for command in commands(block.text):
        found = tool_of(command)
        if found is None:
            words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_0-9]+=", word)]
            assert words[0] in OTHERS, f"{block.name}: no test runs {words[0]}"
            assert "path/to" not in command, f"{block.name}: no test runs {command}"
            continue
        tool, words = found
        tested = text_of_tests(tool)
        for flag in (word for word in words if word.startswith("--")):
            written = {flag, re.sub("^--(train|val)-", "--{split}-", flag)}
            there = any(f'"{way}"' in tested for way in written) or (tool, flag) in PASSED_ON or (tool, flag) in typed
            assert there, f"{block.name}: {flag} is in none of {TESTS[tool]}"


def test_the_lists_of_tests_are_of_all_tools_and_files() -> None:
    assert set(TESTS) == {f"se-det {name}" for name in COMMANDS} | set(TOOLS)
    assert all(text_of_tests(tool) for tool in TESTS)
    assert all((ROOT / file).is_file() for file in OTHERS.values())
    for (tool, flag), test in PASSED_ON.items():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text()
        assert f'"{flag}"' not in text_of_tests(tool), f"{flag} is tested by now: take it out of PASSED_ON"


def options(parser: ArgumentParser) -> set[str]:
    """All flags, including those of its subcommands."""
    found = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            found |= set().union(*map(options, action.choices.values()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_and_keys_in_the_text_exist(page, parsers) -> None:
    keys = flatten(config_base())
    anybodys = set().union(*map(options, parsers.values()))
    for code in inline_code(page):
        for key in re.findall(KEYS, code):
            there = any(known == key or known.startswith(f"{key.rstrip('.')}.") for known in keys)
            assert there, f"{page.name}: no config key is {key}"
        tool = re.search(r"(?<!detectron2/)\btools/(\w+)\.py|se-det [a-z-]+", code)
        if tool:
            for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code):
                assert flag in options(parsers[tool[1] or tool[0]]), f"{page.name}: {tool[0]} has no {flag}"
        elif code.startswith("--"):
            assert code.split()[0] in anybodys | ANOTHERS, f"{page.name}: no tool has {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_the_text_exist(page) -> None:
    for word in (word for code in inline_code(page) for word in code.split()):
        word = word.split("::")[0].rstrip(".,;:)")
        if "NAME" in word or "<" in word or word.endswith("/.."):
            continue
        for path in braces(word):
            if re.match(FOLDERS, path):
                assert any(ROOT.glob(path.rstrip("/"))), f"{page.name}: there is no {path}"
            elif re.match(CONFIGS, path) or re.match(r"(se_r50|r50|Study|Recipe)[\w-]*\.yaml", path):
                found = [*(ROOT / "configs").rglob(path), *(ROOT / "configs").rglob(f"{path}.*")]
                assert found, f"{page.name}: there is no config {path}"


def anchors(page: Path) -> set[str]:
    """GitHub's, of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "MODEL_ZOO.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.exists(), f"{page.name}: there is no {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {linked.name} has no heading for #{anchor}"


def test_every_page_is_linked_from_the_first_one() -> None:
    first = (ROOT / "docs" / "README.md").read_text()
    pages = [page.name for page in PAGES if page.parent.name == "docs" and page.name != "README.md"]
    assert [page for page in pages if f"({page}" not in first] == []


PYTHON = blocks("python")


@pytest.mark.parametrize("block", PYTHON, ids=names(PYTHON))
def test_python_is_compiled_and_what_it_names_is_there(block) -> None:
    tree = ast.parse(block.text)
    compile(tree, block.name, "exec")
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
                top = alias.name.split(".")[0]
                modules[alias.asname or top] = importlib.import_module(alias.name if alias.asname else top)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                modules[alias.asname or alias.name] = getattr(importlib.import_module(node.module), alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = ast.unparse(node).split(".")
            if names[0] in modules and all(map(str.isidentifier, names)):
                found = modules[names[0]]
                for name in names[1:]:
                    found = getattr(found, name)


@pytest.mark.parametrize("block", data := blocks("yaml", "json"), ids=names(data))
def test_configs_and_json_can_be_read(block) -> None:
    if block.language == "json":
        assert json.loads(block.text)
    else:
        content = yaml.safe_load(block.text)
        content.pop("_BASE_", None)
        get_cfg().merge_from_other_cfg(CfgNode(content))


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
