"""What is written and what is paid: reward t belongs to emitted token t, whatever kind of reward pays."""

import pytest
import torch

from midcourse.data.formats import DataError
from midcourse.data.prompts import read_prompts
from midcourse.ppo.policy import Policy, Tokens
from midcourse.ppo.rollouts import Payment, Rollout, spans_of, turns, write
from midcourse.ppo.settings import PPOError, PPOSettings
from midcourse.rewards.info import RewardError
from midcourse.rewards.text import FunctionReward
from midcourse.testing import (
    byte_tokenizer,
    tiny_language_model,
    tiny_reward,
    tiny_trunk_reward,
    tiny_vocabulary_reward,
)
from tests.rewards.test_text import bpe_language_model

EOS = byte_tokenizer().eos_token_id
LM = tiny_language_model()
PROMPTS = ["The ferry", "A", "One more"]
SETTINGS = PPOSettings(rollouts=12, batch_size=6, max_new_tokens=5)


def rollout(text: str, finished: bool = True, number: int = 0, lm=LM) -> Rollout:
    ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"] + [lm.tokenizer.eos_token_id] * finished
    return Rollout(
        number, number, "The ferry", tuple(lm.tokenizer("The ferry")["input_ids"]), tuple(ids), text, finished
    )


def paid(rollouts, reward, lm=LM, **how) -> torch.Tensor:
    return Payment(lm, reward, **how)(rollouts, Tokens.of([one.row for one in rollouts], torch.device("cpu")).mask)


ROLLOUTS = [rollout(" was late", number=0), rollout(" went", finished=False, number=1), rollout("", number=2)]


# Writing


def test_every_prompt_has_its_turn_and_groups_share_one():
    alone = [prompt for _, prompt in turns(3, PPOSettings(), range(9))]
    assert [sorted(alone[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3
    assert len({tuple(alone[i : i + 3]) for i in (0, 3, 6)}) > 1, "the order is drawn anew"
    grouped = turns(3, PPOSettings(group_size=2, batch_size=2), range(6))
    assert [turn for turn, _ in grouped] == [0, 0, 1, 1, 2, 2]
    assert [prompt for _, prompt in grouped][::2] == [prompt for _, prompt in grouped][1::2] == alone[:3]


def test_what_is_written_depends_on_its_number_alone():
    whole = write(LM, PROMPTS, range(6), SETTINGS, "raw")
    parts = [*write(LM, PROMPTS, range(2), SETTINGS, "raw"), *write(LM, PROMPTS, range(2, 6), SETTINGS, "raw")]
    assert whole == parts
    assert len({one.response_ids for one in whole}) == 6
    other = write(LM, PROMPTS, range(6), PPOSettings(max_new_tokens=5, seed=1), "raw")
    assert [one.response_ids for one in whole] != [one.response_ids for one in other]


def test_eos_is_among_the_tokens_of_a_finished_response():
    lm = tiny_language_model(more_eos=range(32, 80))
    many = write(lm, PROMPTS, range(24), PPOSettings(batch_size=24, max_new_tokens=4), "raw")
    ended = [one for one in many if one.finished]
    assert ended and all(one.response_ids[-1] in lm.eos_token_ids for one in ended)
    assert not any(lm.eos_token_ids.intersection(one.response_ids[:-1]) for one in many)
    assert {len(one.response_ids) for one in many if not one.finished} == {4}


# Rewards


def test_a_function_pays_token_by_token():
    def capitals(rollouts, mask):
        rewards = torch.full(mask.shape, 7.0)  # beyond a response it says what it likes
        for row, one in enumerate(rollouts):
            rewards[row, : len(one.response_ids)] = torch.tensor([float(token) for token in one.response_ids])
        return rewards

    got = paid(ROLLOUTS, capitals, scale=2.0)
    for row, one in zip(got, ROLLOUTS, strict=True):
        assert row.tolist() == [2.0 * token for token in one.response_ids] + [0.0] * (len(row) - len(one.response_ids))


def test_a_reward_of_tokens_pays_each_its_own_and_eos_too():
    reward = tiny_vocabulary_reward()
    assert reward.additive
    want = reward.score_ids([one.row for one in ROLLOUTS])
    got = paid(ROLLOUTS, reward)
    for row, own in zip(got, want, strict=True):
        assert row[: len(own)].tolist() == pytest.approx(own.tolist(), rel=1e-5)
    assert got[0, len(ROLLOUTS[0].response_ids) - 1] != 0 and got[2, 0] != 0, "EOS has a reward"


def test_a_reward_of_prefixes_pays_what_a_prefix_gains():
    reward = tiny_reward()
    prefixes = reward.score_ids([one.row for one in ROLLOUTS])
    got = paid(ROLLOUTS, reward)
    assert got[0, 0].item() == pytest.approx(prefixes[0][0].item(), rel=1e-5)
    assert got[0, 3].item() == pytest.approx((prefixes[0][3] - prefixes[0][2]).item(), rel=1e-4)
    assert got.sum(1).tolist() == pytest.approx([row[-1].item() for row in prefixes], rel=1e-4)


def late(text: str) -> float:
    """1 once the text holds "late", and a little for every letter."""
    return ("late" in text) + 0.01 * len(text)


def test_a_reward_of_texts_pays_the_token_that_changes_it():
    got = paid(ROLLOUTS, FunctionReward(late))
    assert got[0].tolist() == pytest.approx([0.01] * 8 + [1.01, 0.0], abs=1e-6)  # bytes of " was late", then EOS
    assert got.sum(1).tolist() == pytest.approx([late(one.text) for one in ROLLOUTS], abs=1e-6)


@pytest.mark.parametrize("kind", ["function", "prefix", "tokens"])
def test_densities_pay_the_same_in_all(kind):
    reward = {"function": FunctionReward(late), "prefix": tiny_reward(), "tokens": tiny_vocabulary_reward()}[kind]
    got = {density: paid(ROLLOUTS, reward, density=density) for density in ("tokens", "end", "uniform", "shuffled")}
    whole = got["tokens"].sum(1)
    for density, rewards in got.items():
        assert rewards.sum(1).tolist() == pytest.approx(whole.tolist(), abs=1e-4), density
    count = len(ROLLOUTS[0].response_ids)
    assert (got["end"][0] != 0).nonzero().flatten().tolist() == [count - 1]
    assert got["uniform"][0].tolist() == pytest.approx([whole[0].item() / count] * count, abs=1e-5)
    assert sorted(got["shuffled"][0].tolist()) == sorted(got["tokens"][0].tolist())
    assert got["shuffled"][0].tolist() != got["tokens"][0].tolist()
    again = paid(ROLLOUTS, reward, density="shuffled")
    assert torch.equal(again, got["shuffled"]) and not torch.equal(
        paid(ROLLOUTS, reward, density="shuffled", seed=1), again
    )


def test_a_second_reward_and_the_cost_of_being_cut_are_paid_at_the_end():
    plain = paid(ROLLOUTS, FunctionReward(late))
    extra = paid(ROLLOUTS, FunctionReward(late), at_end=FunctionReward(len), end_scale=0.5, missing_eos=3.0) - plain
    assert extra[0].tolist() == pytest.approx([0.0] * 9 + [0.5 * len(" was late")], abs=1e-6)
    assert extra[1].tolist()[: len(" went")] == pytest.approx([0, 0, 0, 0, 0.5 * len(" went") - 3], abs=1e-6)
    assert extra[2, 0] == 0


@pytest.mark.parametrize(
    ("text", "finished"),
    [(" the ferry was late", True), (" the ferry was late", False), ("żółć 👍🏽", True), ("żółć", False), ("", True)],
)
def test_rewards_of_another_tokenizer_are_laid_on_and_keep_their_sum(text, finished):
    lm = bpe_language_model("llama")
    rows = [rollout(text, finished, lm=lm)]
    bytes_reward = tiny_reward("llama")
    got = paid(rows, bytes_reward, lm=lm)
    whole = paid(rows, bytes_reward, lm=lm, density="end")
    assert got.shape == whole.shape == (1, len(rows[0].response_ids))
    assert got.sum().item() == pytest.approx(whole.sum().item(), abs=1e-5)


def test_a_text_that_is_tokenised_anew_pays_the_tokens_that_were_emitted():
    lm = bpe_language_model("llama")
    merged = lm.tokenizer("the", add_special_tokens=False)["input_ids"]
    apart = [lm.tokenizer.convert_tokens_to_ids(letter) for letter in "the"]
    assert len(merged) < len(apart)
    row = Rollout(0, 0, "A", (1,), (*apart, lm.tokenizer.eos_token_id), "the", True)
    got = paid([row], FunctionReward(len), lm=lm)
    assert got.shape == (1, 4)
    assert got[0].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0])


def test_characters_of_tokens():
    ids = byte_tokenizer()("aé")["input_ids"] + [EOS]
    assert spans_of(byte_tokenizer(), ids) == [(0, 1), (1, 1), (1, 2), (2, 2)]


# Refusals


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda rollouts, mask: torch.zeros(3, 2), r"have shape \(3, 2\), the responses \(3, 10\)"),
        (lambda rollouts, mask: torch.zeros(mask.shape[0]), r"have shape \(3,\)"),
        (lambda rollouts, mask: [[0.0]], "have type list"),
        (lambda rollouts, mask: torch.full(mask.shape, float("nan")), "token 1 of response 1 is nan"),
        (lambda rollouts, mask: torch.full(mask.shape, float("inf")), "is inf"),
    ],
)
def test_rewards_that_fit_no_response_are_refused(answer, why):
    with pytest.raises(PPOError, match=why):
        paid(ROLLOUTS, answer)


def test_what_only_padding_would_make_of_a_reward_is_not_looked_at():
    got = paid(ROLLOUTS, lambda rollouts, mask: torch.where(mask, 1.0, float("nan")))
    assert got.sum(1).tolist() == [len(one.response_ids) for one in ROLLOUTS]


def test_a_reward_for_another_chat_template_is_refused():
    other = tiny_language_model()
    other.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(RewardError, match="chat template"):
        paid(ROLLOUTS, tiny_reward(template="chat"), lm=other)


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty; add prompts to it"):
        read_prompts(tmp_path / "prompts.jsonl")


def test_a_reward_on_the_models_states_pays_by_the_model_as_it_was():
    lm = tiny_language_model()
    payment = Payment(lm, tiny_trunk_reward(lm))
    mask = Tokens.of([one.row for one in ROLLOUTS], torch.device("cpu")).mask
    before = payment(ROLLOUTS, mask)
    policy = Policy(lm, PPOSettings(tune="lora:2"))
    with torch.no_grad():
        for weight in policy.trained().values():
            weight += 0.1
    assert torch.equal(payment(ROLLOUTS, mask), before)


def test_a_function_that_fails_is_a_sentence():
    def shout(rollouts, mask):
        raise KeyError("loud")

    with pytest.raises(PPOError, match=r"token function .*shout failed \(KeyError: 'loud'\); it takes \(rollouts"):
        paid(ROLLOUTS, shout)


def test_a_function_may_compute_with_gradients_and_change_its_mask():
    weight = torch.ones((), requires_grad=True)

    def ones(rollouts, mask):
        mask[:] = False
        with torch.enable_grad():
            return weight * torch.ones(mask.shape)

    found = paid(ROLLOUTS, ones)
    assert not found.requires_grad
    assert found.sum() == sum(len(one.response_ids) for one in ROLLOUTS)
