"""Formulas of the documentation: LaTeX in a fence `math` becomes MathML, which browsers draw without a network."""

from typing import Any

from latex2mathml.converter import convert


def display(source: str, language: str, class_name: str, options: dict[str, Any], md: Any, **others: Any) -> str:
    """A formula on a line of its own; the signature is what pymdownx.superfences calls.

    Args:
        source: the formula in LaTeX.
        language, class_name, options, md, **others: not needed.
    """
    return f'<div class="formula">{convert(source.strip(), display="block")}</div>'
