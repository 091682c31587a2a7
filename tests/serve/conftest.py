"""A server for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.serve.served import Running, running, tiny_served


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server with tiny models."""
    with running(tiny_served()) as found:
        yield found
