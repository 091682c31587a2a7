"""The reward of two checkpoints: its equation, the laws, the aligned model's policy, and foreign folders."""

import json

import pytest
import torch

from midcourse.decode.loop import generate
from midcourse.implicit_reward import ImplicitReward
from midcourse.language_model import LanguageModel
from midcourse.loading import load_reward
from midcourse.reward import RewardError
from midcourse.testing import assert_laws, tiny_language_model

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under"]
RESPONSES = [" we loved it.", " no", "x", " the bridge at noon"]


@pytest.fixture
def names(model_folder) -> tuple[str, str]:
    """(aligned, base) model folders."""
    return model_folder(name="aligned", seed=7), model_folder(name="base", seed=0)


@pytest.fixture
def reward(names) -> ImplicitReward:
    return ImplicitReward.create(*names, beta=0.5, device="cpu", dtype="float64")


def test_implicit_reward_keeps_the_laws(reward):
    assert_laws(reward, tiny_language_model(), PROMPTS, RESPONSES)


def test_rewards_by_hand(names, reward):
    """beta (log pi_aligned - log pi_base) of every token."""
    aligned, base = (LanguageModel.load(name, device="cpu", dtype="float64").model for name in names)
    (score,) = reward.score(["ab"], ["cd"])
    ids = torch.tensor([list(b"abcd")])
    with torch.inference_mode():
        ratio = aligned(ids).logits.log_softmax(-1) - base(ids).logits.log_softmax(-1)
    want = [0.5 * ratio[0, i, token].item() for i, token in ((1, 99), (2, 100), (3, 257))]
    assert score.rewards == pytest.approx(want, abs=1e-12)


def test_guiding_the_base_at_one_over_beta_is_the_aligned_model(names, reward):
    """GenARM's policy pi_base exp(r / beta) over the whole vocabulary is pi_aligned: same texts, same log-probabilities."""
    assert reward.info.reward_weight == 2.0
    aligned, base = (LanguageModel.load(name, device="cpu", dtype="float64") for name in names)
    have = generate(base, PROMPTS, reward, method="genarm", reward_weight=2.0, max_new_tokens=8)
    want = generate(aligned, PROMPTS, method="plain", top_k=None, max_new_tokens=8)
    for one, other in zip(have, want, strict=True):
        assert [s.token_id for s in one.steps] == [s.token_id for s in other.steps]
        assert [s.logprob for s in one.steps] == pytest.approx([s.logprob for s in other.steps], abs=1e-10)


def test_a_saved_one_is_two_names(names, reward, tmp_path):
    reward.save(tmp_path / "reward")
    assert [path.name for path in (tmp_path / "reward").iterdir()] == ["midcourse.json"]
    again = load_reward(tmp_path / "reward", device="cpu", dtype="float64")
    assert isinstance(again, ImplicitReward)
    assert again.score(PROMPTS, RESPONSES) == reward.score(PROMPTS, RESPONSES)


def test_other_weights_and_damaged_folders_are_refused(names, reward, model_folder, tmp_path):
    reward.save(tmp_path / "reward")
    model_folder(name="base", seed=3)  # the base is trained on
    with pytest.raises(RewardError, match="was made of other weights than .*base has now"):
        load_reward(tmp_path / "reward")
    path = tmp_path / "reward/midcourse.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "objective_settings": {"beta": 0.5}}))
    with pytest.raises(RewardError, match="holds no implicit reward"):
        load_reward(tmp_path / "reward")
    path.write_text(path.read_text()[:100])
    with pytest.raises(RewardError, match="is damaged"):
        load_reward(tmp_path / "reward")


def test_models_that_do_not_belong_together(names, tmp_path):
    lm = tiny_language_model()
    lm.tokenizer.add_tokens(["<new>"])
    lm.model.save_pretrained(tmp_path / "other")
    lm.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(RewardError, match="have different tokenizers"):
        ImplicitReward.create(names[0], str(tmp_path / "other"))
    with pytest.raises(RewardError, match="beta is 0; use a positive number"):
        ImplicitReward.create(*names, beta=0.0)
