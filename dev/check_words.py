#!/usr/bin/env python3
"""Finds unclear words and suggests plain ones: part of `make lint`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A pattern, and the plain word. The field's words are what people search for.
RULES = {
    r"pictures?": "image",
    r"trunks?": "backbone (bottom_up is the ResNet under an FPN)",
    r"arms?": "model, detector or variant",
    r"(goes|gone|went) on( with)?": "resumes, continues",
    r"mend(s|ed|ing)?": "fix",
    r"stumbl(e|es|ed|ing)": "fails on",
    r"(is|are|be) told|can(not|'t)? be told": "is reported; significant",
    r"left out|leaves? out|leaving out": "skipped, omitted",
    r"(the )?surest": "highest-scoring",
    r"can(not|'t) be had": "is not available, is not supported",
    r"(is|are) (?-i:none)( of)?": "is not one of",
    r"who(so)?ever|what(ever| else)": "the user, any, the other",
    r"(?<!there )is no (COCO|image|config|number|file|folder|run|detector|checkpoint)": "is not a ...",
    r"what (is|was|were|are) (found|there)": "detections, results",
    r"(is|are) there already": "already exists",
    r"anew": "again",
    r"(of )?one's own|person's own": "custom, your own",
    r"beside": "next to, in addition to",
}
WORDS = re.compile("|".join(rf"(?P<rule{number}>\b(?:{rule})\b)" for number, rule in enumerate(RULES)), re.IGNORECASE)
# Names that are fixed: flags, folders that a command writes, keys of files, and a figure, which is drawn.
FIXED = re.compile(
    r"--(pictures?|arms|allow-partial-trunk)\b|\bargs\.(pictures?|arms)\b|\bpictures?/|[\"'`](pictures?|arms?)[\"'`]"
    r"|`trunk\.pth`|\bARm\b|\{[{%].*?\bis none\b"
)
FILES = ("*.py", "*.md", "*.yaml", "*.yml", "*.toml", "*.jinja", "*.js", "*.css", "Makefile", "*.cff")


def words_to_replace(text: str) -> list[tuple[int, str, str]]:
    """The line, the word and what to write instead, for each word that a rule replaces."""
    advice = list(RULES.values())
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in WORDS.finditer(FIXED.sub("", line)):
            found.append((number, match[0], advice[int((match.lastgroup or "rule0").removeprefix("rule"))]))
    return found


def main() -> None:
    tracked = subprocess.run(["git", "ls-files", "--", *FILES], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [
        f"{path}:{number}: {word!r}: write {instead}"
        for path in tracked.stdout.splitlines()
        if path != "dev/check_words.py" and not path.startswith("docs/results/") and (ROOT / path).is_file()
        for number, word, instead in words_to_replace((ROOT / path).read_text(encoding="utf-8"))
    ]
    if lines:
        print(*lines, sep="\n")
        sys.exit(f"words to replace: {len(lines)}")


if __name__ == "__main__":
    main()
