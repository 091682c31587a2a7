"""Models on disk that the tests of comparisons share."""

import pytest

from tests.compare.compared import write_model, write_reward


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("compared") / "lm")


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with the same tokens and other weights."""
    return write_model(tmp_path_factory.mktemp("compared") / "other", seed=9)


@pytest.fixture(scope="session")
def rewards(lm_folder: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A reward of each kind on the language model."""
    folder = tmp_path_factory.mktemp("compared")
    kinds = {"kind": "scalar", "every": "vocabulary", "trunk": "trunk:4"}
    return {name: write_reward(folder / name, lm_folder, head) for name, head in kinds.items()}
