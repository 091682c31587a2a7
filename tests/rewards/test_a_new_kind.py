"""What it takes to add a kind of reward: its own class and a line of `named.KINDS`. CONTRIBUTING shows this one."""

from pathlib import Path

import pytest
import torch

from midcourse.compare.run import compare
from midcourse.data.comparisons import Comparison
from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards import named
from midcourse.rewards.named import head_of, load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import assert_laws, assert_reload_is_bit_equal
from midcourse.train.settings import Settings
from midcourse.train.training import train
from tests.compare.compared import PROMPTS, by_key, read_rows, study_of, write_model

RESPONSES = [" we loved it", "", " no, never", " ab"]


class BoundedReward(RewardModel):
    """A scalar reward between -1 and 1."""

    KIND = "bounded"

    def read(self, hidden):
        """Return the head's number, bounded."""
        return super().read(hidden).tanh()


@pytest.fixture
def kind(monkeypatch):
    monkeypatch.setitem(named.KINDS, BoundedReward.KIND, BoundedReward)


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "lm")


@pytest.fixture
def reward(kind, lm_folder):
    make, head = head_of("bounded", lm_folder)
    made = make.create(lm_folder, head=head, template="raw", tune="head", objective="prefix", dtype="float64")
    torch.nn.init.normal_(made.head.weight, std=3.0, generator=torch.Generator().manual_seed(1))
    return made.eval()


def test_it_passes_every_law_and_is_saved(reward, lm_folder, tmp_path):
    lm = LanguageModel.load(lm_folder, dtype="float64")
    assert_laws(reward, lm, PROMPTS, RESPONSES)
    assert_reload_is_bit_equal(reward, tmp_path / "reward", PROMPTS, RESPONSES)


def test_it_is_found_by_name_guides_and_scores(reward, lm_folder, tmp_path):
    reward.save(tmp_path / "reward")
    found = load_reward(tmp_path / "reward", dtype="float64")
    assert isinstance(found, BoundedReward)
    lm = LanguageModel.load(lm_folder, dtype="float64")
    for row in generate(lm, PROMPTS, found, reward_weight=4.0, max_new_tokens=5):
        rewards = [candidate.reward for step in row.steps for candidate in step.candidates]
        assert -1 <= min(rewards) < max(rewards) <= 1
    (score,) = found.score(["The ferry"], [" we loved it"])
    plain = RewardModel(found.backbone, found.tokenizer, found.info)
    plain.head.load_state_dict(found.head.state_dict())
    (raw,) = plain.eval().score(["The ferry"], [" we loved it"])
    assert score.rewards == pytest.approx(torch.tensor(raw.rewards, dtype=torch.float64).tanh().tolist(), abs=1e-12)


def test_it_is_compared(reward, lm_folder, tmp_path):
    reward.save(tmp_path / "mine")
    study = study_of(lm_folder, {"mine": str(tmp_path / "mine")})
    compare(study, ["pargs"], tmp_path / "compared", sweep={"reward_weight": [2.0]})
    rows = by_key(read_rows(tmp_path / "compared"))
    guided = [row for row in rows.values() if row["reward"] == "mine"]
    assert len(guided) == len(PROMPTS) and all(-1 <= row["guide_reward"] <= 1 for row in guided)


def test_it_is_trained(reward, tmp_path):
    texts = [("we loved it", "we hated it"), ("a fine day", "a poor day"), ("so good", "so bad")]
    comparisons = [Comparison(f"{i}. The ferry,", *pair) for i in range(8) for pair in texts]
    before = reward.head.weight.detach().clone()
    metrics = train(reward, comparisons, Path(tmp_path / "trained"), Settings(epochs=1, batch_size=4, held_out=0.25))
    assert not torch.equal(before, reward.head.weight)
    assert metrics["pairs"] == 6
    assert isinstance(load_reward(tmp_path / "trained", dtype="float64"), BoundedReward)
