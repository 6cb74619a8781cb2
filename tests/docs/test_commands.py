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
from se_detection_cli.main import main_parser

from .pages import PAGES, ROOT, Block, blocks, braces, commands, inline_code, prose

FOLDERS = r"(\.ci|configs|dev|docs|examples|projects|se_detection|se_detection_cli|tests|tools)/"
CONFIGS = r"(COCO-\w+|Any-Network|CPU|Paper|Ablations|Study|Toy|Pretrain|Misc)/"
KEYS = r"(?<![\w.])(?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER|PRETRAIN)\.[A-Z0-9_.]+"
# Of pip, conda, git and Docker.
ANOTHERS = {"--no-build-isolation", "--no-cache-dir", "--no-deps", "--index-url", "--ipc", "--shm-size"}
SHELL = blocks("bash")


def names(some: list[Block]) -> list[str]:
    return [block.name for block in some]


@pytest.fixture(scope="module")
def parsers() -> dict[str, ArgumentParser]:
    """The parser of each command: `se-det NAME`, and the name of each script in tools/."""
    found: list[ArgumentParser] = []
    paths = sorted((ROOT / "tools").glob("*.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("se_detection_cli.main.parse_and_run", found.append)
        for path in paths:
            runpy.run_path(str(path), run_name="__main__")
    (commands,) = (action for action in main_parser()._actions if isinstance(action, _SubParsersAction))
    of_scripts = zip((path.stem for path in paths), found, strict=True)
    return {**dict(of_scripts), **{f"se-det {name}": parser for name, parser in commands.choices.items()}}


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


# Building each config takes time.
FAST = ("README.md", "YOUR_DATA.md", "LOOKING.md")
BY_SPEED = [pytest.param(block, marks=[] if block.page.name in FAST else pytest.mark.slow) for block in SHELL]


@pytest.mark.parametrize("block", BY_SPEED, ids=names(SHELL))
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


def test_what_make_does_is_the_tools(parsers, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    done = subprocess.run(["make", "--dry-run", "bench"], capture_output=True, text=True, check=True)
    demo = runpy.run_path("examples/demo.py")
    found = list(filter(None, map(tool_of, [*commands(done.stdout), demo["PLAIN"], demo["SE"], demo["COMPARE"]])))
    assert [tool for tool, _ in found] == ["benchmark", "se-det train", "se-det train", "se-det compare"]
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
    first = (ROOT / "README.md").read_text()
    pages = [page.name for page in PAGES if page.parent.name == "docs"]
    assert [page for page in pages if f"(docs/{page}" not in first] == []


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
