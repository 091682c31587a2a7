"""The reward of two checkpoints: its equation, the laws, the aligned model's policy, and foreign folders."""

import json
from dataclasses import replace

import pytest
import torch

from midcourse.data.rollouts import Rollout
from midcourse.data.sample import rewards_of
from midcourse.decode.engine import generate
from midcourse.decode.methods import MethodError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prefix
from midcourse.rewards.contract import Reward
from midcourse.rewards.implicit import ImplicitReward
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.rewards.trained_vocabulary import TrainedVocabularyReward
from midcourse.rewards.vocabulary import VocabularyReward
from midcourse.testing import assert_laws, tiny_language_model, tiny_reward

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
    """pi_base exp(r / beta) over the whole vocabulary is pi_aligned: the same law, and the same greedy texts."""
    assert reward.info.reward_weight == 2.0
    aligned, base = (LanguageModel.load(name, device="cpu", dtype="float64") for name in names)
    ids = [list(prompt.encode()) for prompt in PROMPTS]
    with torch.inference_mode():
        rewards = reward.start([Prefix(p, i) for p, i in zip(PROMPTS, ids, strict=True)], 1, 1).vocabulary_rewards()
        have = (base.start(ids, 1).logprobs + 2.0 * rewards).log_softmax(-1)
        assert torch.allclose(have, aligned.start(ids, 1).logprobs, atol=1e-10)
    guided = generate(base, PROMPTS, reward, method="genarm", reward_weight=2.0, temperature=0.0, max_new_tokens=8)
    plain = generate(aligned, PROMPTS, method="plain", temperature=0.0, max_new_tokens=8)
    assert [row.text for row in guided] == [row.text for row in plain]


def test_a_saved_one_is_two_names(names, reward, tmp_path):
    reward.save(tmp_path / "reward")
    assert [path.name for path in (tmp_path / "reward").iterdir()] == ["midcourse.json"]
    again = load_reward(tmp_path / "reward", device="cpu", dtype="float64")
    assert isinstance(again, ImplicitReward)
    assert again.score(PROMPTS, RESPONSES) == reward.score(PROMPTS, RESPONSES)


def test_other_weights_and_damaged_folders_are_refused(names, reward, model_folder, tmp_path):
    reward.save(tmp_path / "reward")
    model_folder(name="base", seed=3)  # the base is trained on
    with pytest.raises(RewardError, match=r"was made of other weights than .*base has now"):
        load_reward(tmp_path / "reward")
    path = tmp_path / "reward/midcourse.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "objective_settings": {"beta": 0.5}}))
    with pytest.raises(RewardError, match="holds no implicit reward"):
        load_reward(tmp_path / "reward")
    path.write_text(json.dumps({**info, "objective_settings": {**info["objective_settings"], "beta": "a"}}))
    with pytest.raises(RewardError, match=r"midcourse.json is damaged \(beta is 'a'\); make the reward again"):
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
    with pytest.raises(RewardError, match=r"beta is 0\.0; use a positive number"):
        ImplicitReward.create(*names, beta=0.0)


# A text's reward is the sum of its tokens', wherever one number is asked for


@pytest.fixture
def kinds(names, reward) -> dict[str, Reward]:
    """Every kind of reward of tokens."""
    trained = TrainedVocabularyReward.create(
        names[0], template="raw", objective="autoregressive", tune="head", head="vocabulary", dtype="float64"
    )
    trained.info = replace(trained.info, objective_settings={"beta": 0.5})
    lm = VocabularyReward.load(names[0], template="raw", device="cpu", dtype="float64")
    return {"implicit": reward, "autoregressive": trained.eval(), "causal LM": lm}


@pytest.mark.parametrize("kind", ["implicit", "autoregressive", "causal LM"])
def test_labels_are_sums(kinds, kind):
    (score,) = kinds[kind].score(["ab"], ["cd"])
    assert score.additive
    assert score.whole == pytest.approx(sum(score.rewards)) != score.rewards[-1]
    ended, cut = rewards_of(kinds[kind], [Rollout("ab", "cd", True), Rollout("ab", "cd", False)])
    assert (ended, cut) == pytest.approx((sum(score.rewards), sum(score.rewards[:-1])))


@pytest.mark.parametrize("kind", ["implicit", "autoregressive", "causal LM"])
@pytest.mark.parametrize("method", ["genarm", "pargs", "best-of-n:3"])
def test_responses_are_reported_with_their_sums(kinds, kind, method):
    lm = tiny_language_model()
    rows = generate(lm, PROMPTS, kinds[kind], method=method, max_new_tokens=6, batch_size=3, keep_all="best" in method)
    for row in rows:
        for one in row.samples or [row]:
            (score,) = kinds[kind].score_ids([(list(row.prompt.encode()), [step.token_id for step in one.steps])])
            assert one.reward == pytest.approx(float(score.sum()), abs=1e-9)
        if row.samples:
            assert row.reward == max(one.reward for one in row.samples)


def test_sums_beside_other_rewards(reward):
    """Best-of-n adds a reward of prefixes to one of tokens; token by token there is no one number for both."""
    lm, scalar = tiny_language_model(), tiny_reward()
    both = [(scalar, 0.5), (reward, 2.0)]
    (row,) = generate(lm, ["ab"], both, method="best-of-n:4", max_new_tokens=5, keep_all=True)
    for one in row.samples:
        ids = [(list(b"ab"), [step.token_id for step in one.steps])]
        want = 0.5 * float(scalar.score_ids(ids)[0][-1]) + 2.0 * float(reward.score_ids(ids)[0].sum())
        assert one.reward == pytest.approx(want, abs=1e-6)
    assert generate(lm, ["ab"], both, max_new_tokens=5)[0].reward is None


@pytest.mark.parametrize("asked", [{"method": "cd-blockwise:2"}, {"method": "cards", "reward_threshold": 1.0}])
def test_blocks_are_not_judged_by_their_last_token(reward, asked):
    with pytest.raises(MethodError, match="this reward is of tokens; use best-of-n or genarm"):
        generate(tiny_language_model(), ["ab"], reward, max_new_tokens=4, **asked)
