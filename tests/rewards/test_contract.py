"""Rewards that are no finite numbers: refused by every kind, with the model and the row."""

import math
from collections.abc import Callable

import pytest
import torch

from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Reward
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import (
    tiny_language_model,
    tiny_reward,
    tiny_trained_vocabulary_reward,
    tiny_trunk_reward,
    tiny_vocabulary_reward,
)

PROMPTS, RESPONSES = ["a", "b"], ["xy", "xyz"]
Z = ord("z")


def spoil(model: torch.nn.Module, value: float) -> None:
    """Put a number in the weights that the token z alone brings into play."""
    with torch.no_grad():
        model.get_input_embeddings().weight[Z] = value


def scalar(value: float) -> Reward:
    reward = tiny_reward()
    spoil(reward.backbone, value)
    return reward


def trunk(value: float) -> Reward:
    lm = tiny_language_model()
    reward = tiny_trunk_reward(lm)
    spoil(reward.backbone, value)
    return reward


def trained_vocabulary(value: float) -> Reward:
    reward = tiny_trained_vocabulary_reward()
    spoil(reward.backbone, value)
    return reward


def vocabulary(value: float) -> Reward:
    reward = tiny_vocabulary_reward()
    spoil(reward.model, value)
    return reward


def retokenised(value: float) -> Reward:
    reward, lm = scalar(value), tiny_language_model()
    lm.tokenizer.add_tokens(["xyz!"])
    return reward.bind(lm)


KINDS: dict[str, tuple[Callable[[float], Reward], str]] = {
    "scalar": (scalar, "the reward on tiny llama"),
    "trunk": (trunk, "the reward on tiny llama"),
    "trained vocabulary": (trained_vocabulary, "the reward on tiny llama"),
    "vocabulary": (vocabulary, "tiny llama"),
    "retokenised": (retokenised, "the reward on tiny llama"),
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_no_numbers_are_refused_with_the_row(kind, value):
    make, name = KINDS[kind]
    reward = make(value)
    assert all(map(math.isfinite, reward.score(PROMPTS[:1], RESPONSES[:1])[0].rewards))
    with pytest.raises(RewardError) as caught:
        reward.score(PROMPTS, RESPONSES)
    # Retokenised, every prefix is a row of its own, of which the last token is rewarded.
    row = "'z' after the prompt 'bxy'" if kind == "retokenised" else "'xyz<|im_end|>' after the prompt 'b'"
    assert str(caught.value).startswith(f"the reward is nan, no finite number: {name} gives it to the response {row}; ")
    assert "\n" not in str(caught.value)


def test_the_sentence_names_prompt_and_response():
    with pytest.raises(RewardError) as caught:
        scalar(math.nan).score(["Name a river."], ["a z and more"])
    assert str(caught.value) == (
        "the reward is nan, no finite number: the reward on tiny llama gives it to the response "
        "'a z and more<|im_end|>' after the prompt 'Name a river.'; restore the weights, train it again, or try "
        "--dtype float32"
    )


def test_a_loaded_reward_is_named_by_its_folder(model_folder, tmp_path):
    RewardModel.create(model_folder(), template="raw", tune="all").save(tmp_path / "mine")
    reward = load_reward(tmp_path / "mine")
    spoil(reward.backbone, math.nan)
    with pytest.raises(RewardError, match=rf"is nan.*{tmp_path}/mine gives it to the response 'z.*' after"):
        reward.score(["a"], ["z"])


def test_an_implicit_reward_says_which_of_its_models_it_is(model_folder):
    reward = ImplicitReward.create(model_folder(name="aligned", seed=1), model_folder(name="base"))
    spoil(reward.base.model, math.nan)
    with pytest.raises(RewardError, match=r"/base gives it to the response 'xyz.*' after the prompt 'b'"):
        reward.score(PROMPTS, RESPONSES)


def test_an_impossible_token_is_no_reward():
    """A log-probability of -inf cannot be compared or summed either."""
    reward = tiny_vocabulary_reward()
    read = reward.read
    reward.read = lambda logits: read(logits).index_fill(-1, torch.tensor([Z]), -math.inf)
    with pytest.raises(RewardError, match=r"the reward is -inf, .* to the response 'xyz<.*' after the prompt 'b'"):
        reward.score(PROMPTS, RESPONSES)


def test_a_classifier_is_refused_too(tmp_path):
    tiny_reward().export(tmp_path)
    reward = load_reward(tmp_path, dtype="float64")
    assert isinstance(reward, ClassifierReward)
    spoil(reward.model, math.nan)
    with pytest.raises(RewardError, match=r"returned nan for the text 'xyz'; restore its weights, or try"):
        reward.bind(tiny_language_model()).score(PROMPTS, RESPONSES)
