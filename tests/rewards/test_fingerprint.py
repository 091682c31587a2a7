"""Two rewards have one fingerprint only if they are of the same weights and read alike."""

import functools

import pytest
import torch

from midcourse.lm.weights import tensors_fingerprint
from midcourse.rewards.fingerprint import reward_fingerprint
from midcourse.rewards.gold import load_gold
from midcourse.rewards.text import FunctionReward, TextReward
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.testing import byte_tokenizer, tiny_language_model, tiny_reward, tiny_vocabulary_reward


def test_weights_decide_in_every_dtype():
    model = tiny_language_model(dtype=torch.float32).model
    same = tensors_fingerprint(model)
    assert tensors_fingerprint(tiny_language_model(dtype=torch.float32).model) == same
    assert tensors_fingerprint(model.to(torch.bfloat16)) == same
    assert tensors_fingerprint(tiny_language_model(seed=1).model) != same
    with torch.no_grad():
        list(model.parameters())[-1][0] += 1
    assert tensors_fingerprint(model) != same


def test_every_part_of_a_reward_counts():
    makers = {
        "scalar": tiny_reward,
        "other head": functools.partial(tiny_reward, seed=4),
        "other template": functools.partial(tiny_reward, template="chat"),
        "vocabulary": tiny_vocabulary_reward,
        "raw model": lambda: VocabularyReward(tiny_language_model().model, byte_tokenizer()),
        "outputs": lambda: VocabularyReward(tiny_language_model().model, byte_tokenizer(), normalised=False),
    }
    found = {name: reward_fingerprint(make()) for name, make in makers.items()}
    assert len(set(found.values())) == len(makers)
    assert found == {name: reward_fingerprint(make()) for name, make in makers.items()}
    assert reward_fingerprint(tiny_reward().bind(tiny_language_model())) == found["scalar"]


def scores(texts):
    return [0.0 for _ in texts]


class Callable:
    """Scores texts, without a name of its own."""

    def __call__(self, texts):
        return scores(texts)


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (FunctionReward(len), "builtins:len"),
        (FunctionReward.load("builtins:len"), "builtins:len"),
        (TextReward(scores), f"{__name__}:scores"),
        (TextReward(Callable()), f"{__name__}:Callable"),
        (TextReward(functools.partial(scores)), "functools:partial"),
        (FunctionReward(load_gold("builtins:len")), "midcourse.rewards.gold:builtins:len"),
    ],
)
def test_a_function_is_named(reward, name):
    assert reward_fingerprint(reward) == name


def test_golds_differ():
    assert reward_fingerprint(FunctionReward(load_gold("vader"))) != reward_fingerprint(
        FunctionReward(load_gold("profanity"))
    )
