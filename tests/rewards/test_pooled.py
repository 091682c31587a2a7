import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.contract import Text
from midcourse.rewards.fingerprint import reward_fingerprint
from midcourse.rewards.info import RewardError, RewardInfo
from midcourse.rewards.likelihood import TokenFigures, token_figures
from midcourse.rewards.named import load_reward
from midcourse.rewards.pooled import BURN_IN, LIKELIHOODS, LinearHead, PooledReward, Reader, likelihoods_of
from midcourse.testing import assert_laws, tiny_language_model
from tests.pace import slow_except

TEXTS = ["The ferry was late.", "a", "We waited, and nobody minded at all, not even the captain.", "é" * 40]


@pytest.fixture
def lm():
    return tiny_language_model("llama", dtype=torch.float64)


def pooled(lm, layers=(1, 3), likelihoods=True) -> PooledReward:
    reader = Reader(lm, layers, likelihoods)
    width, random = reader.width, np.random.default_rng(0)
    head = LinearHead(random.normal(size=width), random.uniform(0.5, 2, size=width), random.normal(size=width))
    reading = {"layers": list(layers), "likelihoods": likelihoods, "burn_in": BURN_IN}
    info = RewardInfo(
        backbone=lm.name, backbone_fingerprint="", layers=3, tune="head", template="raw", objective="ordered",
        objective_settings={"reading": reading}, eos_token_id=257, eos_token_ids=(257,),
        tokenizer=lm.tokens, head="pooled",
    )  # fmt: skip
    return PooledReward(reader, info, head)


@torch.no_grad()
def test_features_are_those_of_a_plain_forward(lm):
    """Text by text, without padding: the mean over the tokens that count of states and numbers of likelihood."""
    reward = pooled(lm)
    for text, have in zip(TEXTS, reward.features(TEXTS), strict=True):
        ids = torch.tensor([lm.tokenizer(text, add_special_tokens=False).input_ids])
        begin = BURN_IN if ids.shape[1] >= 2 * BURN_IN else 1
        output = lm.model(ids, output_hidden_states=True)
        states = torch.cat([output.hidden_states[layer][0, begin:] for layer in (1, 3)], 1).numpy()
        found = token_figures(lambda logits: logits, output.logits[0, begin - 1 : -1].clone(), ids[0, begin:])
        each = np.concatenate([states, likelihoods_of(TokenFigures(*found.double().numpy().T))], 1)
        assert have == pytest.approx(each.mean(0) if len(each) else np.zeros(reward.reader.width), abs=1e-5)
    assert {len(lm.tokenizer(text).input_ids) >= 2 * BURN_IN for text in TEXTS} == {True, False}


def test_a_text_is_worth_the_mean_of_its_tokens(lm):
    reward = pooled(lm)
    for text, whole in zip(TEXTS, reward.rate([Text("", text, True) for text in TEXTS]), strict=True):
        score = reward.of_tokens(text)
        count = len(score.rewards)
        counted = score.rewards[BURN_IN if count >= 2 * BURN_IN else 1 :]
        if text.isascii():
            assert "".join(score.texts) == text
        assert not any(score.rewards[: count - len(counted)])
        if counted:
            assert whole == pytest.approx(sum(counted), rel=1e-5)
            each = reward.of_features(dict(reward.reader.read([text]))[0].features)
            assert counted == pytest.approx(each / len(each))


def test_likelihoods_by_hand():
    tokens = TokenFigures(*map(np.array, ([-1.0, -9.0], [1.0, 4.0], [2.0, 0.25], [0.5, 4.0])))
    first, second = (dict(zip(LIKELIHOODS, row, strict=True)) for row in likelihoods_of(tokens))
    assert first == pytest.approx(
        {
            "log-probability": -1, "log-rank": 0, "entropy": 2, "surplus": 1, "spread": np.sqrt(0.5),
            "curvature": 1 / np.sqrt(0.5), "log-probability squared": 1, "log-rank squared": 0, "entropy squared": 4,
            "surplus squared": 1, "variance": 0.5, "likeliest": 1, "among 2": 1, "among 5": 1, "among 10": 1,
            "among 100": 1, "among 1000": 1, "log-probability below -4": 0, "below -8": 0, "below -12": 0,
            "entropy below 0.5": 0, "below 2": 0, "above 5": 0,
        }
    )  # fmt: skip
    assert second == pytest.approx(
        {
            "log-probability": -9, "log-rank": np.log(4), "entropy": 0.25, "surplus": -8.75, "spread": 2,
            "curvature": -4.375, "log-probability squared": 81, "log-rank squared": np.log(4) ** 2,
            "entropy squared": 0.0625, "surplus squared": 8.75**2, "variance": 4, "likeliest": 0, "among 2": 0,
            "among 5": 1, "among 10": 1, "among 100": 1, "among 1000": 1, "log-probability below -4": 1,
            "below -8": 1, "below -12": 0, "entropy below 0.5": 1, "below 2": 1, "above 5": 0,
        }
    )  # fmt: skip


def test_neighbours_and_batches_change_nothing(lm):
    reward = pooled(lm)
    alone = [reward.rate([Text("", text, True)])[0] for text in TEXTS]
    assert reward.rate([Text("", text, True) for text in TEXTS]) == pytest.approx(alone, abs=1e-5)
    assert reward.rate([Text("a prompt plays no part", TEXTS[0], False)])[0] == pytest.approx(alone[0], abs=1e-6)


def test_long_texts_are_read_in_windows(lm):
    """The tiny model reads 256 tokens at most: the tokens of both windows count, but those that each begins with."""
    reward = pooled(lm, likelihoods=False)
    text = "".join(chr(97 + i % 26) for i in range(400))
    first, second, whole = reward.features([text[:256], text[256:], text])
    n, m = 256 - BURN_IN, 144 - BURN_IN
    assert whole == pytest.approx((n * first + m * second) / (n + m), abs=1e-6)
    rewards = np.array(reward.of_tokens(text).rewards) * (n + m)
    assert rewards[256:] == pytest.approx(np.array(reward.of_tokens(text[256:]).rewards) * m, abs=1e-5)


def test_a_text_without_tokens_has_features_too(lm):
    assert np.isfinite(pooled(lm).features(["", "a"])).all()
    assert not pooled(lm).features([""]).any()


@pytest.mark.parametrize("likelihoods", slow_except([True], [True, False]))
def test_a_pooled_reward_keeps_the_laws(lm, likelihoods):
    reward = pooled(lm, likelihoods=likelihoods).bind(lm)
    assert_laws(reward, lm, ["A", "The ferry"], [" was late", " is here."], tolerance=1e-4)
    assert generate(lm, ["A"], reward, max_new_tokens=3)[0].reward is not None


def test_saved_rewards_load_by_name(model_folder, tmp_path):
    folder = model_folder()
    lm = LanguageModel.load(folder, dtype="float64")
    reward = pooled(lm)
    reward.info = replace(reward.info, backbone=folder, backbone_fingerprint=weights_fingerprint(folder))
    reward.save(tmp_path / "reward")
    loaded = load_reward(tmp_path / "reward", dtype="float64")
    assert isinstance(loaded, PooledReward)
    texts = [Text("", text, True) for text in TEXTS]
    assert loaded.rate(texts) == pytest.approx(reward.rate(texts), rel=1e-5)
    assert load_reward(tmp_path / "reward", share_with=lm).models[0] is lm.model
    assert reward_fingerprint(loaded) == reward_fingerprint(load_reward(tmp_path / "reward", dtype="float64"))
    other = pooled(lm)
    other.head.weight[0] += 1
    assert reward_fingerprint(other) != reward_fingerprint(reward)
    (tmp_path / "reward" / "reward.safetensors").write_bytes(b"cut")
    with pytest.raises(RewardError, match=r"reward.safetensors cannot be read"):
        load_reward(tmp_path / "reward")


def test_folders_of_other_rewards_are_refused(tmp_path):
    (tmp_path / "midcourse.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RewardError):
        PooledReward.load(tmp_path)
