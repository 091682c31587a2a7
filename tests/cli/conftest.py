"""A tiny model, rewards and data on disk, as a user has them: what the verbs are called with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from midcourse.rewards.calibration import Calibration
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import tiny_language_model


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "lm"
    lm = tiny_language_model("llama", dtype=torch.float32)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def reward_folder(lm_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    reward = RewardModel.create(lm_folder, template="raw", tune="head")
    torch.nn.init.normal_(reward.head.weight)
    folder = tmp_path_factory.mktemp("rewards") / "reward"
    reward.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def calibrated_folder(reward_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same reward with T = 2 for prefixes and 4 for finished texts."""
    reward = RewardModel.load(reward_folder)
    reward.info = replace(reward.info, calibration=Calibration(2.0, 4.0, (1.0, 0.5), -1.0).stored())
    folder = tmp_path_factory.mktemp("rewards") / "calibrated"
    reward.save(folder)
    return str(folder)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    found = [{"prompt": f"p{i}", "chosen": " good", "rejected": " poor text"} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture(scope="session")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As midcourse sample writes them."""
    path = tmp_path_factory.mktemp("data") / "rollouts.jsonl"
    found = [
        {"row": i // 2, "sample": i % 2, "prompt": f"p{i // 2}", "response": " good" if i % 2 else " poor text",
         "finished": True, "reward": float(i % 2), "seed": i}
        for i in range(24)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"text {i}"}) + "\n" for i in range(6)))
    return path


@pytest.fixture
def taste(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data_taste.py").write_text(
        "def length(text):\n    return len(text)\n\ndef broken(text):\n    raise KeyError('no such word')\n"
    )
