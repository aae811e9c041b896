"""What mkdocstrings reads of the package: losses with all their options, and docstrings as Markdown.

An extension of griffe, which reads sources and so sees `**options` where a loss takes a dozen.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from api_text import Described, Option, blocks_of, entries_of, markdown_of

from monai_extra_losses.cli.loss_pages import loss_options_of

PAGES = Path(__file__).parents[1] / "docs" / "reference"
LOSSES = "monai_extra_losses.losses."
VARIADIC = {griffe.ParameterKind.var_positional, griffe.ParameterKind.var_keyword}
POSITIONAL = griffe.ParameterKind.positional_or_keyword
BASES = {"SegmentationLoss", "RegionLoss", "DistributionLoss", "DistanceLoss", "RegressionLoss"}


def documented() -> dict[str, str]:
    """Name -> path, of all that the pages of the reference ask for."""
    pages = (page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md")))
    return {path.rpartition(".")[2]: path for page in pages for path in re.findall(r"^::: (\S+)", page, re.M)}


class WholeLosses(griffe.Extension):
    """Gives every object of the package a docstring of Markdown, and every loss its whole signature."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **others: Any) -> None:
        """Follow the reading of a package."""
        if pkg.name != "monai_extra_losses":
            return
        links = documented()
        for found in list(_objects(pkg)):
            about = _description(found, links)
            if about.options is not None:
                _complete(found)
            if found.docstring is not None:
                found.docstring.value = markdown_of(found.docstring.value, about)
                # Markdown, and no sections that are still to be found
                found.docstring.parsed = [griffe.DocstringSectionText(found.docstring.value)]


def _objects(parent: griffe.Object) -> Iterator[Any]:
    for member in parent.members.values():
        if not member.is_alias:
            yield member
            yield from _objects(member)


def _description(found: Any, links: dict[str, str]) -> Described:
    name = found.name
    others = {known: path for known, path in links.items() if known != name}
    is_loss = found.is_class and found.path.startswith(LOSSES) and (name in links or name in BASES)
    options = list(_options(found)) if is_loss and name.endswith("Loss") else None
    return Described(
        codes={parameter: _code(parameter, *given) for parameter, given in _parameters(found).items()},
        options=options,
        formula=options is not None and name not in BASES,
        links=others,
        returned=str(found.returns or "") if found.is_function else "",
    )


def _parameters(found: Any) -> dict[str, tuple[str, str | None]]:
    """Name -> type and default, of a function, of a constructor, or of the fields of a class."""
    if found.is_class and "__init__" in found.members:
        found = found.members["__init__"]
    if found.is_function:
        return {
            p.name: (str(p.annotation or ""), None if p.default is None or p.kind in VARIADIC else str(p.default))
            for p in found.parameters
        }
    if found.is_class:
        fields = (member for member in found.members.values() if member.is_attribute)
        return {f.name: (str(f.annotation or ""), None if f.value is None else str(f.value)) for f in fields}
    return {}


def _code(name: str, annotation: str, default: str | None) -> str:
    return f"{name}{f': {annotation}' if annotation else ''}{'' if default is None else f' = {default}'}"


def _options(loss: griffe.Class) -> Iterator[Option]:
    """The options of a loss, with the types that they have in its constructor or where they are shared."""
    described = {
        name
        for title, text in blocks_of(loss.docstring.value if loss.docstring else "")
        for name, meaning in (entries_of(text) if title == "Args" else {}).items()
        if not re.fullmatch(r"see `\w+`\.?", meaning)
    }
    types = _shared_types(loss) | {name: annotation for name, (annotation, _) in _parameters(loss).items()}
    for option in loss_options_of(loss.name):
        code = _code(option.name, _plain_type(types.get(option.name, ""), loss), option.default)
        yield Option(code, option.meaning, own=option.own or option.name in described)


def _shared_types(loss: griffe.Class) -> dict[str, str]:
    shared = (found for found in _objects(loss.package["losses.options"]) if found.is_attribute)
    return {field.name: str(field.annotation) for field in shared if field.parent.name.endswith("Options")}


def _plain_type(annotation: str, loss: griffe.Class) -> str:
    """A type without the range that is part of it, and without names that only the package knows."""
    alias = loss.package["losses.options"].members.get(annotation)
    if alias is not None and alias.is_attribute:
        return _plain_type(str(alias.value), loss)
    if not annotation.startswith("Annotated["):
        return annotation
    node = ast.parse(annotation, mode="eval").body
    assert isinstance(node, ast.Subscript)
    assert isinstance(node.slice, ast.Tuple)
    return _plain_type(ast.unparse(node.slice.elts[0]), loss)


def _complete(loss: griffe.Class) -> None:
    """Give a loss a constructor with all its options in place of `**options`, and no base that is private."""
    positional = _by_position(loss)
    parameters = [
        griffe.Parameter(
            option.name,
            kind=POSITIONAL if option.name in positional else griffe.ParameterKind.keyword_only,
            default=option.default,
        )
        for option in loss_options_of(loss.name)
    ]
    loss.bases = [base for base in loss.bases if not str(base).startswith("_")]
    loss.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))


def _by_position(loss: Any) -> set[str]:
    """The options that may be given by their position."""
    if "in_order" in loss.members and loss.name not in BASES:
        return set(ast.literal_eval(str(loss.members["in_order"].value)).split())
    if "__init__" in loss.members:
        return {p.name for p in loss.members["__init__"].parameters if p.kind is POSITIONAL}
    return _by_position(loss.resolved_bases[0]) if loss.resolved_bases else set()
