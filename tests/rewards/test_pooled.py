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
from midcourse.rewards.likelihood import TokenFigures, fast_detect_gpt, token_figures
from midcourse.rewards.named import load_reward
from midcourse.rewards.pooled import STATISTIC_NAMES, LinearHead, PooledReward, Reader, statistics_of
from midcourse.testing import assert_laws, tiny_language_model
from tests.pace import slow_except

TEXTS = ["The ferry was late.", "a", "We waited, and nobody minded at all.", "é" * 40]


@pytest.fixture
def lm():
    return tiny_language_model("llama", dtype=torch.float64)


def pooled(lm, layers=(1, 3), likelihoods=True) -> PooledReward:
    width = len(layers) * lm.model.config.hidden_size + likelihoods * len(STATISTIC_NAMES)
    random = np.random.default_rng(0)
    head = LinearHead(random.normal(size=width), random.uniform(0.5, 2, size=width), random.normal(size=width))
    info = RewardInfo(
        backbone=lm.name, backbone_fingerprint="", layers=3, tune="head", template="raw", objective="ordered",
        objective_settings={"reading": {"layers": list(layers), "likelihoods": likelihoods}}, eos_token_id=257,
        eos_token_ids=(257,), tokenizer=lm.tokens, head="pooled",
    )  # fmt: skip
    return PooledReward(Reader(lm, layers, likelihoods), info, head)


@torch.no_grad()
def test_features_are_those_of_a_plain_forward(lm):
    """Text by text, without padding: the mean state behind each layer, and the figures of all tokens but the first."""
    reward = pooled(lm)
    for text, have in zip(TEXTS, reward.features(TEXTS), strict=True):
        ids = torch.tensor([lm.tokenizer(text, add_special_tokens=False).input_ids])
        output = lm.model(ids, output_hidden_states=True)
        states = torch.cat([output.hidden_states[layer][0].mean(0) for layer in (1, 3)]).numpy()
        found = token_figures(lambda logits: logits, output.logits[0, :-1].clone(), ids[0, 1:])
        want = np.concatenate([states, statistics_of(TokenFigures(*found.double().numpy().T))])
        assert have == pytest.approx(want, abs=1e-5)


def test_statistics_by_hand():
    tokens = TokenFigures(*map(np.array, ([-1.0, -9.0], [1.0, 4.0], [2.0, 1.0], [0.5, 1.5])))
    found = dict(zip(STATISTIC_NAMES, statistics_of(tokens), strict=True))
    assert found == pytest.approx(
        {
            "log-probability": -5.0,
            "log-rank": -np.log(4) / 2,
            "entropy": -1.5,
            "log-probability less its expectation": (1.0 - 8.0) / 2,
            "spread of log-probability": 4.0,
            "spread of entropy": 0.5,
            "expected spread": 1.0,
            "likeliest": 0.5,
            "among ten likeliest": 1.0,
            "unlikely": 0.5,
            "curvature": fast_detect_gpt(tokens) / np.sqrt(2),
            "LRR": 10 / np.log(4),
        }
    )
    assert not statistics_of(TokenFigures(*[np.zeros(0)] * 4)).any()


def test_neighbours_and_batches_change_nothing(lm):
    reward = pooled(lm)
    alone = [reward.rate([Text("", text, True)])[0] for text in TEXTS]
    assert reward.rate([Text("", text, True) for text in TEXTS]) == pytest.approx(alone, abs=1e-5)
    assert reward.rate([Text("a prompt plays no part", TEXTS[0], False)])[0] == pytest.approx(alone[0], abs=1e-6)


def test_long_texts_are_read_in_windows(lm):
    """The tiny model reads 256 tokens at most: the states of both windows count by their tokens."""
    reward = pooled(lm, likelihoods=False)
    text = "".join(chr(97 + i % 26) for i in range(400))
    first, second, whole = reward.features([text[:256], text[256:], text])
    assert whole == pytest.approx((256 * first + 144 * second) / 400, abs=1e-6)


def test_a_text_without_tokens_has_features_too(lm):
    assert np.isfinite(pooled(lm).features(["", "a"])).all()


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
