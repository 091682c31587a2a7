"""TRL's own trainer, with an advantage for every token."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from midcourse.integrations.trl import CHECKPOINTING
from midcourse.integrations.trl_grpo import TokenGRPOTrainer, in_shape
from midcourse.ppo.advantages import shaped

PROMPTS = ["The ferry", "A train was"]


def low_bytes(rollouts, mask):
    rewards = torch.zeros(mask.shape)
    for row, one in enumerate(rollouts):
        rewards[row, : len(one.response_ids)] = torch.tensor([1.0 if t < 64 else -1.0 for t in one.response_ids])
    return rewards


def trainer(folder: str, out: Path, **settings) -> TokenGRPOTrainer:
    arguments = GRPOConfig(
        output_dir=str(out),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        learning_rate=1e-2,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **{CHECKPOINTING: False},
        **settings,
    )
    return TokenGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        low_bytes,
        shaping=0.5,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": one} for one in PROMPTS * 16]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


@pytest.fixture
def lm_folder(model_folder) -> str:
    return model_folder(dtype=torch.float32, layers=2)


def test_tokens_have_advantages_of_their_own_and_the_model_learns_them(lm_folder, tmp_path):
    grpo = trainer(lm_folder, tmp_path / "out", max_steps=12)
    seen, loss = [], grpo._compute_loss
    grpo._compute_loss = lambda model, inputs: (seen.append(inputs), loss(model, inputs))[1]
    grpo.train()
    first = seen[0]
    mask, advantages = first["completion_mask"].bool(), first["advantages"]
    assert advantages.shape == mask.shape
    paid = torch.where(first["completion_ids"] < 64, 1.0, -1.0) * mask
    counts = mask.sum(1, keepdim=True)
    of_response = (advantages * mask).sum(1, keepdim=True) / counts
    # Within a response: half of what a token is paid beyond its response's mean.
    want = 0.5 * (paid - paid.sum(1, keepdim=True) / counts)
    assert torch.allclose(torch.where(mask, advantages - of_response, 0.0), torch.where(mask, want, 0.0), atol=1e-5)
    # Between them: TRL's own, in the group of the same prompt.
    totals = paid.sum(1)
    for prompt in first["prompt_ids"].unique(dim=0):
        group = (first["prompt_ids"] == prompt).all(1)
        scaled = (totals[group] - totals[group].mean()) / (totals[group].std() + 1e-4)
        assert torch.allclose(of_response[group, 0], scaled, atol=1e-4)
    rewards = [row["reward"] for row in grpo.state.log_history if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 1


def test_shaped_advantages_by_hand():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = in_shape([torch.tensor([3.0, 1.0]), torch.tensor([0.0, 0.0, 3.0])], mask)
    got = shaped(torch.tensor([1.0, -1.0]), rewards, mask, 0.5)
    assert got.tolist() == [[1.5, 0.5, 0.0], [-1.5, -1.5, 0.0]]
