"""What of the configs MONAI's parser evaluates, or takes from other files.

`python tests/support/expressions.py` writes the list anew; read what it adds before it is committed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
REVIEWED = Path(__file__).with_name("reviewed_expressions.txt")
HEAD = """\
# Every text of a shipped config that MONAI's parser evaluates ($) or takes from a file (%), by file and place.
# A reviewer looks for: no network, no file written or deleted, no command started, nothing of a user or a data set that
# becomes a part of the text that is evaluated, no file but the config itself. References (@) give values, and are data.
# Written by tests/support/expressions.py.
"""


def is_evaluated(text: str) -> bool:
    """Whether MONAI evaluates a value or key, or replaces it by what is in a file."""
    text = text.strip()
    return text.startswith(("$", "%")) or re.search(r"(?:^|[\s(\[,])%[\w./-]+::", text) is not None


def in_content(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Place and text of each, in what a file holds; keys too."""
    if isinstance(content, str) and is_evaluated(content):
        yield place, " ".join(content.split())
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(key, str) and is_evaluated(key):
                yield place, f"key {key}"
            yield from in_content(value, f"{place}::{key}".removeprefix("::"))
    if isinstance(content, list):
        for number, value in enumerate(content):
            yield from in_content(value, f"{place}::{number}".removeprefix("::"))


def documents() -> Iterator[tuple[str, Any]]:
    """Names and contents of the configs, and of what pages and notebooks show as YAML or JSON."""
    for file in sorted((ROOT / "configs").iterdir()):
        if file.suffix in (".yaml", ".yml", ".json"):
            yield f"configs/{file.name}", yaml.safe_load(file.read_text(encoding="utf-8"))
    for file in sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *ROOT.glob("tutorials/*.ipynb")]):
        text = file.read_text(encoding="utf-8").replace('\\n"', "").replace('\\"', '"')
        for block in re.findall(r"```(?:yaml|json)\n(.*?)```", text, re.S):
            yield file.relative_to(ROOT).as_posix(), yaml.safe_load(re.sub(r"^[ \t]*\.\.\.$", "", block, flags=re.M))


def found() -> list[str]:
    """The lines of the list."""
    return sorted({f"{name}: {place}: {text}" for name, content in documents() for place, text in in_content(content)})


def reviewed() -> list[str]:
    """The lines of the list as it stands."""
    lines = REVIEWED.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
    REVIEWED.write_text(HEAD + "\n".join(found()) + "\n", encoding="utf-8")
