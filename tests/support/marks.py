"""Marks of parameters."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> list[Any]:
    """Values of a parameter that `make test-all` alone runs."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def slow_but(quick: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Values of a parameter, or rows (tuples) of several: those in `quick` are, the others wait for `make test-all`."""
    quick, values = list(quick), list(values)
    assert all(value in values for value in quick), "a value that is not there"
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return [
        pytest.param(*row, marks=[] if value in quick else [pytest.mark.slow])
        for row, value in zip(rows, values, strict=True)
    ]
