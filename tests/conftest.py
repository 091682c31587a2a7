"""Two cores are shared with others, and nothing here needs the network."""

import os

# Read by libraries when they are imported, here and in what tests start: two processes of two threads would wait for
# each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tests.chat_server import Server

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Let the checks of types be quick, before anything of midcourse is imported."""
    if config.getoption("--jaxtyping-packages"):
        from tests import quick_types

        quick_types.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that no process is left waiting for another at the end."""
    longest = ["test_demo.py", "test_documents.py"]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


@pytest.fixture
def shapes_checked(pytestconfig: pytest.Config) -> None:
    """For tests of what only `make test` looks at: types and shapes at every call."""
    if not pytestconfig.getoption("--jaxtyping-packages"):
        pytest.skip("types and shapes are not checked in this run")


@pytest.fixture
def types_unchecked(pytestconfig: pytest.Config) -> None:
    """For tests of values of a wrong type, which never arrive if the types of every call are checked."""
    if pytestconfig.getoption("--jaxtyping-packages"):
        pytest.skip("types are checked before the value is")


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., str]:
    """Writes a tiny language model to disk, as transformers does, and returns its folder: what a user names."""
    from midcourse.testing import tiny_language_model

    def write(architecture: str = "llama", name: str = "model", **settings) -> str:
        lm = tiny_language_model(architecture, **settings)
        lm.model.save_pretrained(tmp_path / name)
        lm.tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture
def midcourse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Call the command line; returns (exit code, standard output, standard error)."""

    from midcourse import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["midcourse", *map(str, arguments)])
        capsys.readouterr()  # what the test itself has printed
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator["Callable[..., Server]"]:
    """Starts a chat server with a function that replies to its requests."""
    from tests.chat_server import KEY, Server

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def start(reply: Callable[[dict[str, Any]], tuple[int, Any]]) -> "Server":
        servers.append(Server(reply))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
