"""Trained vocabulary rewards: the laws, their equation by hand, where they start, and whom they guide."""

import json

import pytest
import torch

from midcourse.data.comparisons import Comparison
from midcourse.data.encoded import encode
from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trained_vocabulary import POSITIONS, TrainedVocabularyReward
from midcourse.rewards.vocabulary import PLACES, best_tokens
from midcourse.testing import (
    ARCHITECTURES,
    assert_equals_reference,
    assert_laws,
    assert_reload_is_bit_equal,
    randomise,
    tiny_language_model,
    tiny_reward,
    tiny_trained_vocabulary_reward,
)
from midcourse.train.scorer import Scorer
from tests.pace import slow_except

PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text", "under"]
RESPONSES = [" we loved it.", " no", "x", " the bridge at noon"]
FORMS = pytest.mark.parametrize("objective", ["farma", "autoregressive"])


@FORMS
@pytest.mark.parametrize("architecture", slow_except(["gemma3"], ARCHITECTURES))
def test_trained_vocabulary_reward_keeps_the_laws(architecture, objective):
    lm = tiny_language_model(architecture, more_eos=[17])
    reward = tiny_trained_vocabulary_reward(architecture, more_eos=[17], objective=objective)
    assert_laws(reward, lm, PROMPTS, RESPONSES)


@FORMS
@pytest.mark.parametrize("tune", slow_except(["lora:2"], ["last:1", "lora:2", "all"]))
def test_laws_hold_whatever_is_tuned(tune, objective):
    assert_laws(
        tiny_trained_vocabulary_reward(tune=tune, objective=objective), tiny_language_model(), PROMPTS, RESPONSES
    )


@FORMS
def test_trained_vocabulary_reward_equals_the_reference(objective):
    lm = tiny_language_model()
    assert_equals_reference(tiny_trained_vocabulary_reward(objective=objective), lm, PROMPTS)


@pytest.mark.parametrize("method", ["pargs", "farma", "genarm"])
def test_every_method_of_vocabulary_rewards(method):
    lm = tiny_language_model()
    reward = tiny_trained_vocabulary_reward(objective="autoregressive")
    for row in generate(lm, PROMPTS, reward, method=method, max_new_tokens=5):
        assert row.reward is not None


@FORMS
def test_rewards_by_hand(objective):
    """r(v | h) = e(v) . (W h) + s . h, or normalised, at every response token, from the state before it."""
    reward = tiny_trained_vocabulary_reward(objective=objective)
    prompt, response = [65, 66], [70, 3, 257]
    states = reward.backbone(input_ids=torch.tensor([prompt + response])).last_hidden_state[0]
    have = reward.score_ids([(prompt, response)])[0]
    for i, token in enumerate(response):
        h = states[len(prompt) + i - 1]
        every = reward.output @ (reward.head.project.weight @ h)
        rest = reward.head.state.weight[0] @ h if objective == "farma" else -every.logsumexp(0)
        want = every[token] + rest
        assert have[i].item() == pytest.approx(want.item(), abs=1e-12)


def test_output_embeddings_are_the_input_embeddings_where_the_model_ties_them():
    tied = tiny_trained_vocabulary_reward("gpt2")
    assert tied.outputs is tied.embeddings
    assert not hasattr(tied, "output")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_untrained_rewards_are_nothing_or_the_language_model(model_folder, architecture):
    """W and s start at zero; of an autoregressive reward W starts at the identity: it is the backbone's own policy."""
    folder = model_folder(architecture, dtype=torch.float32)
    lm = LanguageModel.load(folder, device="cpu")
    settings = {"template": "raw", "tune": "head", "head": "vocabulary", "device": "cpu"}
    nothing = TrainedVocabularyReward.create(folder, objective="prefix", **settings)
    assert nothing.score(PROMPTS, RESPONSES)[0].rewards == (0.0,) * (len(RESPONSES[0]) + 1)
    own = TrainedVocabularyReward.create(folder, objective="autoregressive", **settings)
    ids = torch.tensor([list(b"The ferry")])
    with torch.inference_mode():
        states = own.backbone(input_ids=ids).last_hidden_state
        want = lm.model(input_ids=ids).logits.log_softmax(-1)
        assert torch.allclose(own.vocabulary_rewards(states), want, atol=1e-5)


@pytest.mark.parametrize("objective", ["sequence", "autoregressive"])
@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "all"])
@pytest.mark.parametrize("architecture", slow_except(["gpt2"], ["llama", "gpt2"]))
def test_saved_rewards_reload_to_equal_bits(model_folder, tmp_path, tune, architecture, objective):
    folder = model_folder(architecture, dtype=torch.float32)
    settings = {"template": "raw", "tune": tune, "head": "vocabulary", "objective": objective, "device": "cpu"}
    reward = TrainedVocabularyReward.create(folder, **settings).eval()
    randomise(reward, 1)
    assert_reload_is_bit_equal(reward, tmp_path / "reward", PROMPTS, RESPONSES)
    again = load_reward(tmp_path / "reward", device="cpu")
    assert isinstance(again, TrainedVocabularyReward)
    assert again.score(PROMPTS, RESPONSES) == reward.score(PROMPTS, RESPONSES)
    with pytest.raises(RewardError, match=r"a vocabulary head; load it with midcourse\.load_reward"):
        RewardModel.load(tmp_path / "reward")
    info = json.loads((tmp_path / "reward/midcourse.json").read_text())
    (tmp_path / "reward/midcourse.json").write_text(json.dumps({**info, "head": "crystal"}))
    with pytest.raises(RewardError, match="head 'crystal' is unknown to this release"):
        load_reward(tmp_path / "reward")


@FORMS
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "all"])
def test_rewards_in_training_are_those_of_scoring(architecture, tune, objective, tmp_path, monkeypatch):
    """Through frozen states or whole forwards, and whatever the prompt's length, training reads the same rewards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    reward = tiny_trained_vocabulary_reward(architecture, tune=tune, objective=objective)
    rows = encode(reward, [Comparison("ab", "cde", "f" * 12), Comparison("a" * 9, "cde", "gh")], max_tokens=32).rows
    want = reward.score_ids([(row.prompt, row.response) for row in rows])
    for have, wanted in zip(Scorer(reward, [rows]).score(0), want, strict=True):
        assert torch.allclose(have, wanted, atol=1e-6)


@FORMS
def test_best_tokens_are_those_of_the_whole_vocabulary(objective):
    reward = tiny_trained_vocabulary_reward(more_eos=[17, 40], objective=objective)
    reward.output.data[257] *= 50  # the end of the text is often the best
    states = torch.randn(PLACES + 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    best = best_tokens(reward, states)
    assert set(best.tolist()) & {17, 40, 257} == {257}  # of all ends the one that training writes
    assert torch.allclose(reward.next_rewards(states, best), reward.vocabulary_rewards(states).amax(1))


def test_normaliser_in_parts_has_the_gradient_of_the_whole():
    reward = tiny_trained_vocabulary_reward(objective="autoregressive")
    states = torch.randn(POSITIONS + 9, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(len(states))
    found = []
    for rewards in (
        reward.next_rewards(states, tokens),
        reward.vocabulary_rewards(states).gather(1, tokens[:, None])[:, 0],
    ):
        reward.head.zero_grad()
        rewards.square().sum().backward()
        found.append((rewards.detach(), reward.head.project.weight.grad.clone()))
    assert torch.allclose(found[0][0], found[1][0])
    assert torch.allclose(found[0][1], found[1][1])


def test_refusals():
    lm = tiny_language_model()
    reward = tiny_trained_vocabulary_reward()
    other = LanguageModel(lm.model, tiny_reward("gpt2").tokenizer, "other")
    other.tokenizer.add_tokens(["<new>"])
    with pytest.raises(RewardError, match="rewards the tokens of its own vocabulary, other writes others"):
        generate(other, ["A"], reward, max_new_tokens=2)
    with pytest.raises(RewardError, match="no form that transformers reads"):
        reward.export("anywhere")
