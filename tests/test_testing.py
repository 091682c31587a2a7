"""The tiny models, the reward known by hand, and the laws: good rewards pass, each kind of bad one is caught."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from midcourse.decode.engine import generate
from midcourse.lm.prompt import Prefix
from midcourse.rewards.contract import Reward, RewardRows
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import (
    ARCHITECTURES,
    KnownReward,
    KnownRows,
    assert_batch_independent,
    assert_cached_equals_whole,
    assert_cold_equals_greedy,
    assert_end_is_finished_text,
    assert_equals_reference,
    assert_future_invisible,
    assert_laws,
    assert_own_seed_decides,
    assert_reload_is_bit_equal,
    assert_same_generation,
    byte_tokenizer,
    position_sum,
    randomise,
    tiny_language_model,
    tiny_reward,
)
from tests.pace import slow_except

FP64, FP32 = torch.float64, torch.float32
PROMPTS = ["The ferry was late, and", "A", "żółć: a longer text \N{GRINNING FACE}"]
RESPONSES = [" we loved it.", " no", "?"]
# Frequent letters as ends: with random weights the real EOS is rarely drawn.
MORE_EOS = (65, 66, 200)


@pytest.mark.parametrize("architecture", slow_except(["gemma3"], ARCHITECTURES))
@pytest.mark.parametrize(("dtype", "tolerance"), [(FP64, 1e-10), (FP32, 1e-4)])
def test_scalar_reward_keeps_the_laws(architecture, dtype, tolerance):
    lm = tiny_language_model(architecture, dtype, more_eos=MORE_EOS)
    reward = tiny_reward(architecture, dtype, more_eos=MORE_EOS)
    assert_laws(reward, lm, PROMPTS, RESPONSES, tolerance=tolerance)


@pytest.mark.parametrize("architecture", slow_except(["llama", "gemma3"], ARCHITECTURES))
def test_loop_equals_reference(architecture):
    assert_equals_reference(tiny_reward(architecture), tiny_language_model(architecture), PROMPTS)


def test_loop_equals_reference_at_other_settings():
    lm, reward = tiny_language_model(more_eos=MORE_EOS), tiny_reward(more_eos=MORE_EOS)
    assert_equals_reference(reward, lm, PROMPTS, temperature=0.5, reward_weight=-1.5, max_new_tokens=12)


@pytest.mark.parametrize(("attention", "dtype", "tolerance"), [("sdpa", FP64, 1e-10), ("eager", FP32, 1e-4)])
def test_reward_of_another_architecture_keeps_the_laws(attention, dtype, tolerance):
    lm = tiny_language_model("gpt2", dtype, more_eos=MORE_EOS, attention=attention)
    reward = tiny_reward("gemma3", dtype, more_eos=MORE_EOS, attention=attention, layers=3, template="chat")
    assert_laws(reward, lm, PROMPTS, RESPONSES, tolerance=tolerance)


def test_known_reward_keeps_the_laws():
    assert_laws(KnownReward(more_eos=MORE_EOS), tiny_language_model(more_eos=MORE_EOS), PROMPTS, RESPONSES)


def test_known_reward_by_hand():
    # "ab" is 97 98, EOS is 257: 97 mod 17 = 12; 97 + 2 x 98 = 293 mod 17 = 4; 293 + 3 x 257 = 1064 mod 17 = 10.
    assert position_sum([97]) == 12 / 8
    (score,) = KnownReward().score(["a"], ["b"])
    assert score.token_ids == (98, 257)
    assert score.texts == ("b", "<|im_end|>")
    assert score.rewards == (4 / 8, 10 / 8)


def test_both_rewards_satisfy_the_protocols():
    for reward in (KnownReward(), tiny_reward()):
        assert isinstance(reward, Reward)
        assert isinstance(reward.start([Prefix("", [1, 2])], 1, 1), RewardRows)


def test_byte_tokenizer_is_bytes():
    tokenizer = byte_tokenizer()
    text = "".join(map(chr, range(1, 400))) + "\N{GRINNING FACE}\r\n  "
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert len(tokenizer) == 259
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|pad|>"]) == [256, 257, 258]


def test_byte_tokenizer_chat():
    messages = [{"role": "user", "content": "Hi"}]
    text = byte_tokenizer().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiny_models_depend_on_their_seed_only(architecture):
    prompts = [list(b"abc")]
    state = torch.random.get_rng_state()
    one, same, other = (tiny_language_model(architecture, seed=seed).start(prompts, 1).logprobs for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.1)
    assert torch.equal(torch.random.get_rng_state(), state)


# Every law can fail: a reward that breaks it is caught.


class Broken(KnownReward):
    """A known reward whose rows answer in another way."""

    def __init__(self, rows: type[KnownRows]):
        super().__init__()
        self.rows = rows

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> KnownRows:
        return self.rows(self, prefixes)


class StaysBehind(KnownRows):
    def advance(self, token_ids: Tensor) -> None:
        super().advance(torch.zeros_like(token_ids))


class SeesMates(KnownRows):
    def candidate_rewards(self, token_ids: Tensor) -> Tensor:
        return super().candidate_rewards(token_ids) + len(self.rows)


class ForgetsOrder(KnownRows):
    def select(self, rows: Sequence[int]) -> None:
        super().select(rows[::-1])


class HatesEnds(KnownRows):
    def candidate_rewards(self, token_ids: Tensor) -> Tensor:
        return super().candidate_rewards(token_ids).masked_fill(token_ids == self.reward.tokenizer.eos_token_id, -9)


@pytest.mark.parametrize(
    ("rows", "law", "words"),
    [
        (StaysBehind, assert_cached_equals_whole, "cached and whole"),
        (SeesMates, assert_batch_independent, "in a batch and alone"),
        (ForgetsOrder, assert_batch_independent, "in a batch and alone"),
        (HatesEnds, assert_end_is_finished_text, "EOS and finished text"),
    ],
)
def test_broken_rewards_are_caught(rows, law, words):
    with pytest.raises(AssertionError, match=words):
        law(Broken(rows), tiny_language_model(), PROMPTS, RESPONSES)


def test_reward_that_sees_mates_is_caught_in_samples():
    class Chases(KnownRows):
        def candidate_rewards(self, token_ids: Tensor) -> Tensor:
            super().candidate_rewards(token_ids)
            return (token_ids == token_ids[0, -1]).float() * 50

    with pytest.raises(AssertionError):
        assert_own_seed_decides(Broken(Chases), tiny_language_model(), PROMPTS)


def test_reward_that_sees_the_future_is_caught():
    class Prophet(KnownReward):
        def _score(self, prompt, response):
            score = super()._score(prompt, response)
            return type(score)(score.token_ids, score.texts, tuple(r + len(response) for r in score.rewards))

    with pytest.raises(AssertionError, match="seen early"):
        assert_future_invisible(Prophet(), PROMPTS, RESPONSES)


def test_reward_that_changes_its_mind_is_caught():
    class Moody(KnownRows):
        calls = 0

        def candidate_rewards(self, token_ids: Tensor) -> Tensor:
            Moody.calls += 1
            return super().candidate_rewards(token_ids) * 10 * (-1) ** (Moody.calls // 8)

    with pytest.raises(AssertionError, match="not the greedy choice"):
        assert_cold_equals_greedy(Broken(Moody), tiny_language_model(), PROMPTS)


def test_fast_rewards_that_differ_from_the_plain_ones_are_caught():
    class Hasty(RewardModel):
        def start(self, prefixes, max_new_tokens, candidates):
            cut = [prefix._replace(prompt_ids=prefix.prompt_ids[-3:]) for prefix in prefixes]
            return super().start(cut, max_new_tokens, candidates)

    reward = tiny_reward()
    reward.__class__ = Hasty
    with pytest.raises(AssertionError):
        assert_equals_reference(reward, tiny_language_model(), PROMPTS)


def test_reward_that_is_not_saved_whole_is_caught(model_folder, tmp_path):
    class Forgetful(RewardModel):
        def trained_state(self):
            return {name: torch.zeros_like(tensor) for name, tensor in super().trained_state().items()}

    reward = RewardModel.create(model_folder(), template="raw", tune="head", device="cpu").eval()
    assert_reload_is_bit_equal(reward, tmp_path / "reward", PROMPTS, RESPONSES)
    randomise(reward, 1)
    reward.__class__ = Forgetful
    with pytest.raises(AssertionError, match="gives other rewards"):
        assert_reload_is_bit_equal(reward, tmp_path / "reward", PROMPTS, RESPONSES)


def test_unequal_generations_are_told_apart():
    lm, reward = tiny_language_model(), tiny_reward()
    one, other = (generate(lm, ["A"], reward, max_new_tokens=4, reward_weight=w)[0] for w in (2.0, 2.5))
    with pytest.raises(AssertionError):
        assert_same_generation(one, other)
