"""A tiny comparison: models on disk, prompts, and a study of them."""

import json
from pathlib import Path

import torch

from midcourse.compare.independence import of_reward
from midcourse.compare.study import GuidingReward, Study, Task
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.named import load_reward, shareable
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import tiny_language_model

PROMPTS = ["The ferry", "A", "abc def", "The night train was"]


def write_model(folder: Path, seed: int = 0) -> str:
    """A tiny language model in a folder."""
    lm = tiny_language_model("llama", dtype=torch.float64, seed=seed)
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def write_reward(folder: Path, backbone: str, head: str = "scalar", seed: int = 1, scale: float = 0.3) -> str:
    """A reward of random weights on a model in a folder."""
    from midcourse.rewards.named import kind_of_head

    objective = "farma" if head == "vocabulary" else "sequence"
    settings = {"template": "raw", "tune": "head", "objective": objective, "dtype": "float64"}
    reward = kind_of_head(head).create(backbone, head=head, **settings)
    generator = torch.Generator().manual_seed(seed)
    for parameter in reward.head.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(scale * noise)
    reward.save(folder)
    assert isinstance(reward, RewardModel)
    return str(folder)


def study_of(lm_folder: str, rewards: dict[str, str] | None = None, **settings) -> Study:
    """A study of the prompts above, in float64."""
    lm = LanguageModel.load(lm_folder, dtype="float64")
    guides = {}
    for name, source in (rewards or {}).items():
        share = lm if shareable(source, lm) else None
        guides[name] = GuidingReward(load_reward(source, dtype="float64", share_with=share), of_reward(source, name))
    tasks = [Task(prompt) for prompt in PROMPTS]
    chosen = {"tasks": tasks, "max_new_tokens": 6, "batch_size": 3, **settings}
    return Study(lm, weights_fingerprint(lm_folder), guides, chosen.pop("policies", {}), **chosen)


def read_rows(folder: Path, name: str = "results.jsonl") -> list[dict]:
    """The rows of a file of a comparison."""
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def by_key(rows: list[dict]) -> dict[str, dict]:
    """Rows by their keys, which have to be distinct."""
    found = {row["key"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def write_prompts(path: Path, rows: list[dict] | None = None) -> Path:
    """A file of prompts."""
    rows = rows or [{"prompt": prompt} for prompt in PROMPTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
