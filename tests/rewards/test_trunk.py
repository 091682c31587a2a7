"""Trunk rewards: the laws, no pass of their own, and only on the model whose states they know."""

import pytest
import torch

from midcourse.decode.engine import generate
from midcourse.lm.prompt import Prefix
from midcourse.rewards.info import RewardError
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trunk import TrunkHead, TrunkReward, normed
from midcourse.testing import (
    ARCHITECTURES,
    assert_equals_reference,
    assert_laws,
    assert_same_generation,
    randomise,
    tiny_language_model,
    tiny_trunk_reward,
)
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under"]
RESPONSES = [" we loved it.", " no", "x", " the bridge at noon"]
MORE_EOS = tuple(range(0, 256, 9))


@pytest.mark.parametrize("architecture", slow_except(["gemma3"], ARCHITECTURES))
@pytest.mark.parametrize("layers", [1, 3])
def test_trunk_reward_keeps_the_laws(architecture, layers):
    # 3 layers are all of the tiny model's: there the states come behind its final norm.
    lm = tiny_language_model(architecture, more_eos=[17])
    assert_laws(tiny_trunk_reward(lm, layers=layers), lm, PROMPTS, RESPONSES)


@pytest.mark.parametrize("architecture", slow_except(["gemma3"], ["llama", "gemma3"]))
def test_trunk_reward_equals_the_reference(architecture):
    lm = tiny_language_model(architecture)
    assert_equals_reference(tiny_trunk_reward(lm), lm, PROMPTS)


def test_head_by_hand():
    head = TrunkHead(2, 1, torch.device("cpu"), torch.float64)
    # One row for f, one for g.
    for name, values in (
        ("state", [[1.0, 0.0], [0.0, 0.0]]),
        ("token", [[0.0, 2.0], [0.0, 1.0]]),
        ("left", [[1.0, 1.0], [0.0, 1.0]]),
        ("right", [[3.0, 0.0], [0.0, 5.0]]),
    ):
        getattr(head, name).weight.data = torch.tensor(values, dtype=torch.float64)
    state, token = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([0.0, -5.0], dtype=torch.float64)
    # Root mean square 1: (0.6, 0.8) and (0, -1), each times the root of 2.
    root = 2**0.5
    f = 0.6 * root + 2 * -1 * root + (0.6 + 0.8) * root * 0.0
    g = -1 * root + (0.8 * root) * (5 * -1 * root)
    assert head(state, token).tolist() == pytest.approx([f, g], abs=1e-6)
    assert normed(state).pow(2).mean().item() == pytest.approx(1, abs=1e-6)


def test_rewards_are_what_the_next_token_decides_and_the_sum_of_what_all_have_won():
    reward = tiny_trunk_reward(tiny_language_model())
    prompt, response = [65, 66], [67, 68, 69]
    states = reward.backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0, 1:4]
    f, g = reward.of_next(states, torch.tensor(response)).T.tolist()
    (have,) = reward.score_ids([(prompt, response)])
    assert have.tolist() == pytest.approx([f[0] + g[0], f[1] + g[0] + g[1], f[2] + sum(g)], abs=1e-12)


def test_the_whole_vocabulary_at_once_is_every_token_by_itself():
    reward = tiny_trunk_reward(tiny_language_model(more_eos=[17, 40]))
    vocab = len(reward.embeddings)
    states = torch.randn(2, 3, reward.backbone.config.hidden_size, dtype=reward.backbone.dtype)
    want = reward.of_next(states[..., None, :], torch.arange(vocab).expand(2, 3, vocab)).sum(-1)
    end = reward.info.eos_token_id
    want[..., list(reward.info.all_eos)] = want[..., end : end + 1]
    assert torch.allclose(reward.vocabulary_rewards(states), want, atol=1e-12)


def test_untrained_head_rewards_nothing_and_can_learn():
    head = TrunkHead(8, 4, torch.device("cpu"), torch.float32)
    states, tokens = torch.randn(3, 8), torch.randn(3, 8)
    head(states, tokens).sum().backward()
    assert head(states, tokens).tolist() == [[0.0, 0.0]] * 3
    assert all(part.weight.grad.abs().sum() > 0 for part in (head.state, head.token, head.right))


def test_guiding_runs_no_layer_of_the_reward():
    lm = tiny_language_model(more_eos=MORE_EOS)
    reward = tiny_trunk_reward(lm)
    reward.bind(lm)  # which tries once whether both have the same states
    calls = []
    reward.backbone.register_forward_hook(lambda *_: calls.append(1))
    passes = []
    lm.model.register_forward_hook(lambda *_: passes.append(1))
    (row,) = generate(lm, ["A"], reward, max_new_tokens=8)
    assert not calls
    assert len(passes) == len(row.steps)


@pytest.mark.parametrize(
    "settings", [{}, {"method": "farma", "top_k": 60}, {"skip_tolerance": 0.2, "reward_weight": 0.05}]
)
def test_refilled_rows_change_nothing(settings):
    lm = tiny_language_model(more_eos=MORE_EOS)
    reward = tiny_trunk_reward(lm)
    prompts = [text * n for n, text in enumerate(PROMPTS * 2, 1)]
    rows = generate(lm, prompts, reward, batch_size=3, max_new_tokens=9, **settings)
    assert len({len(row.steps) for row in rows}) > 1 or "method" in settings
    for i, row in enumerate(rows):
        (alone,) = generate(lm, [prompts[i]], reward, seed=i, max_new_tokens=9, **settings)
        assert_same_generation(row, alone)
        response = [257 if step.token_id in lm.eos_token_ids else step.token_id for step in row.steps]
        (want,) = reward.score_ids([(list(prompts[i].encode()), response)])
        assert row.reward == pytest.approx(want[-1].item(), abs=1e-9)


def test_only_the_model_it_knows():
    lm, other = tiny_language_model(), tiny_language_model(seed=5)
    reward = tiny_trunk_reward(lm)
    with pytest.raises(
        RewardError, match="tiny llama, and tiny llama has other weights; train one with --backbone tiny llama"
    ):
        generate(other, ["A"], reward, max_new_tokens=2)


def test_what_has_no_states_is_refused():
    lm = tiny_language_model()
    reward = tiny_trunk_reward(lm)
    with pytest.raises(RewardError, match="which this call does not have"):
        reward.start([Prefix("A", [65])], 1, 1).candidate_rewards(torch.tensor([[1, 2]]))
    with pytest.raises(RewardError, match="trains its head alone, not last:1"):
        TrunkReward(reward.backbone, reward.tokenizer, reward.info.__class__(**{**vars(reward.info), "tune": "last:1"}))


def test_reload_is_bit_equal_and_small(model_folder, tmp_path):
    reward = TrunkReward.create(model_folder(), template="raw", tune="head", head="trunk:4", device="cpu").eval()
    randomise(reward, 1)
    reward.save(tmp_path / "reward")
    again = TrunkReward.load(tmp_path / "reward", device="cpu", dtype="float32")
    assert again.score(PROMPTS, RESPONSES) == reward.score(PROMPTS, RESPONSES)
    assert (tmp_path / "reward" / "reward.safetensors").stat().st_size < 4000
    with pytest.raises(RewardError, match=r"holds a reward with a trunk:4 head; load it with midcourse\.load_reward"):
        RewardModel.load(tmp_path / "reward")
