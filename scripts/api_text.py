"""Docstrings of the package as Markdown: what the reference of the documentation shows of them."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

SECTIONS = ("Args", "Attributes", "Shapes", "Returns", "Raises", "Example")
ENTRY = r"([\w*][\w., *]*): (.*(?:\n(?: .*)?)*)"
ADDRESSES = {"arXiv:": "https://arxiv.org/abs/", "doi:": "https://doi.org/"}


@dataclass(frozen=True)
class Option:
    """An option of a class, or an argument of a function.

    Args:
        code: its name, type and default, as a signature has them.
        meaning: what is said of it.
        own: it is none of those that most losses have.
    """

    code: str
    meaning: str
    own: bool = True


@dataclass(frozen=True)
class Described:
    """What is known of a documented object beside its docstring.

    Args:
        codes: name -> its name, type and default, of each argument.
        options: of a loss, in place of those that its docstring has; None for anything else.
        formula: the second paragraph is one.
        links: name -> path of what the reference has.
        returned: type of the result of a function; empty where there is none.
    """

    codes: Mapping[str, str] = field(default_factory=dict)
    options: Iterable[Option] | None = None
    formula: bool = False
    links: Mapping[str, str] = field(default_factory=dict)
    returned: str = ""


def markdown_of(docstring: str, about: Described) -> str:
    """A docstring as Markdown.

    Args:
        docstring: as Python has it.
        about: the object that it is of.
    """
    parts: list[str] = []
    returns = f"**Returns** `{about.returned}`"
    for number, (title, text) in enumerate(blocks_of(docstring)):
        if title == "Args":
            parts += _options(text, about)
        elif title == "Example":
            parts += ["**Example**", f"```pycon\n{text}\n```"]
        elif title is not None:
            listed = title != "Returns" and re.match(ENTRY, text)
            parts += [returns if title == "Returns" else f"**{title}**"]
            parts += [_listed(entries_of(text, apart=title != "Shapes"), about) if listed else _plain(text, about)]
        elif number == 1 and about.formula:
            parts.append(f"```text\n{text}\n```")
        else:
            parts.append(_reference(text, about) if text.startswith("Reference:") else _plain(text, about))
    if about.returned not in ("", "None") and returns not in parts:
        parts.append(returns)
    return "\n\n".join(parts)


def blocks_of(docstring: str) -> Iterator[tuple[str | None, str]]:
    """Title and text of each section, and None and text of each paragraph."""
    for chunk in re.split(r"\n\n(?=\S)", inspect.cleandoc(docstring)):
        head, _, body = chunk.partition("\n")
        title = head.removesuffix(":")
        if head.endswith(":") and title in SECTIONS:
            yield title, inspect.cleandoc(f"\n{body}")
        else:
            yield None, chunk


def entries_of(section: str, *, apart: bool = True) -> dict[str, str]:
    """Name -> meaning, of a section; names that are described together are told apart, or not."""
    entries: dict[str, str] = {}
    for names, meaning in re.findall(f"^{ENTRY}", section, re.M):
        entries |= dict.fromkeys(names.split(", ") if apart else [names], " ".join(meaning.split()))
    return entries


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is; code between backticks stays code."""
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"([*_\[\]{}])", r"\\\1", piece).replace("<", "&lt;") for piece in pieces[::2]]
    return "".join(pieces)


def _plain(text: str, about: Described) -> str:
    return _linked(escaped(text), about.links)


def with_addresses(text: str) -> str:
    """Text with the numbers of papers as links."""
    return re.sub(
        r"(arXiv:|doi:)(\S+?)(?=[;,.)]*(?:\s|$))",
        lambda match: f"[{match[0]}]({ADDRESSES[match[1]]}{match[2].replace(chr(92), '')})",
        text,
    )


def _linked(text: str, links: Mapping[str, str]) -> str:
    """Text with the names that the reference has, and the numbers of papers, as links."""

    def link(match: re.Match[str]) -> str:
        return f"[{match[0]}][{links[match[1]]}]" if match[1] in links else match[0]

    return with_addresses(re.sub(r"`([\w.]+?)`", link, text))


def _reference(text: str, about: Described) -> str:
    return f"**Reference**\n\n{_plain(text.removeprefix('Reference:').strip(), about)}"


def _listed(entries: Mapping[str, str], about: Described) -> str:
    return "\n".join(f"- `{name}`: {_plain(meaning, about)}" for name, meaning in entries.items())


def _options(section: str, about: Described) -> Iterator[str]:
    """The options of a loss, those that it shares folded up; or the arguments as the docstring has them."""
    entries = entries_of(section)
    options = about.options
    if options is None:
        options = [
            Option(name.removesuffix(name.lstrip("*")) + about.codes.get(name.lstrip("*"), name.lstrip("*")), meaning)
            for name, meaning in entries.items()
        ]
    lists = {
        own: "\n".join(f"- `{o.code}`: {_plain(o.meaning, about)}" for o in options if o.own is own)
        for own in (True, False)
    }
    if lists[True]:
        yield "**Options**" if about.options is not None else "**Arguments**"
        yield lists[True]
    if lists[False]:
        yield (
            '<details class="abstract" markdown="1"><summary>Options that it shares with other losses</summary>\n\n'
            f"{lists[False]}\n\n</details>"
        )
    others = entries.get("**options")
    if others is not None and about.options is not None:
        yield _plain(f"`**options`: {others}", about)
