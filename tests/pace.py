"""Which parameters of a test run in `make check`; the others are slow."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_except(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return parameters for a test of `values`: those not in `quick` carry the mark `slow`."""
    values = list(values)
    assert all(value in values for value in quick), "a quick value is not among the values"
    return [value if value in quick else _slow(value) for value in values]


def _slow(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
