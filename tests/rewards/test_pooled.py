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
from midcourse.rewards.pooled import BURN_IN, Head, PooledReward, Reader, surprise_of
from midcourse.testing import assert_laws, tiny_language_model
from tests.pace import slow_except

TEXTS = [
    "The ferry was late.",
    "a",
    "We waited, and nobody minded at all, not even the captain, who had seen it all before and more.",
    "é" * 60,
]


@pytest.fixture
def lm():
    return tiny_language_model("llama", dtype=torch.float64)


def pooled(lm, layers=(1, 3), surprise=True) -> PooledReward:
    reader = Reader(lm, layers, surprise)
    width, random = reader.width, np.random.default_rng(0)
    directions, scatter = random.normal(size=(width, width)), random.uniform(0.5, 2, size=width)
    head = Head(random.normal(size=width), directions, scatter, random.normal(size=width), 30.0)
    reading = {"layers": list(layers), "surprise": surprise, "burn_in": BURN_IN}
    info = RewardInfo(
        backbone=lm.name, backbone_fingerprint="", layers=3, tune="head", template="raw", objective="ordered",
        objective_settings={"reading": reading}, eos_token_id=257, eos_token_ids=(257,),
        tokenizer=lm.tokens, head="pooled",
    )  # fmt: skip
    return PooledReward(reader, info, head)


@torch.no_grad()
def test_features_are_those_of_a_plain_forward(lm):
    """Text by text, without padding: the mean over the tokens that count of states by surprise."""
    reward = pooled(lm)
    for text, have in zip(TEXTS, reward.reader.means(TEXTS).features, strict=True):
        ids = torch.tensor([lm.tokenizer(text, add_special_tokens=False).input_ids])
        begin = max(min(BURN_IN, ids.shape[1] // 2), 1)
        output = lm.model(ids, output_hidden_states=True)
        states = torch.cat([output.hidden_states[layer][0, begin:] for layer in (1, 3)], 1).numpy()
        found = token_figures(lambda logits: logits, output.logits[0, begin - 1 : -1].clone(), ids[0, begin:])
        each = states * surprise_of(TokenFigures(*found.double().numpy().T))[:, None]
        assert have == pytest.approx(each.mean(0) if len(each) else np.zeros(reward.reader.width), abs=1e-5)
    assert {len(lm.tokenizer(text).input_ids) >= 2 * BURN_IN for text in TEXTS} == {True, False}  # long and short


def test_a_text_is_worth_the_mean_of_its_tokens(lm):
    reward = pooled(lm)
    for text, whole in zip(TEXTS, reward.rate([Text("", text, True) for text in TEXTS]), strict=True):
        score = reward.of_tokens(text)
        count = len(score.rewards)
        counted = score.rewards[max(min(BURN_IN, count // 2), 1) :]
        if text.isascii():
            assert "".join(score.texts) == text
        assert not any(score.rewards[: count - len(counted)])
        if counted:
            assert whole == pytest.approx(sum(counted), rel=1e-5)
            each = dict(reward.reader.read([text]))[0].features
            each = reward.of_features(each, np.full(len(each), len(counted)))
            assert counted == pytest.approx(each / len(each))


def test_surprise_by_hand():
    tokens = TokenFigures(np.array([-1.0, -9.0, 0.0]), *np.ones((3, 3)))
    assert surprise_of(tokens).tolist() == [1, 8, 0]


def test_neighbours_and_batches_change_nothing(lm):
    reward = pooled(lm)
    alone = [reward.rate([Text("", text, True)])[0] for text in TEXTS]
    assert reward.rate([Text("", text, True) for text in TEXTS]) == pytest.approx(alone, abs=1e-5)
    assert reward.rate([Text("a prompt plays no part", TEXTS[0], False)])[0] == pytest.approx(alone[0], abs=1e-6)


def test_long_texts_are_read_in_windows(lm):
    """The tiny model reads 256 tokens at most: the tokens of both windows count, but those that each begins with."""
    reward = pooled(lm, surprise=False)
    text = "".join(chr(97 + i % 26) for i in range(400))
    told: list[float] = []
    read = reward.rate_alone([text[:256], text[256:], text], told.append)
    assert read.windows == [1, 1, 2]
    assert sorted(told) == [0.5, 0.5, 1, 1]  # a long text is told of in parts
    first, second, whole = read.features
    n, m = 256 - BURN_IN, 144 - BURN_IN
    assert whole == pytest.approx((n * first + m * second) / (n + m), abs=1e-6)
    of_whole, of_rest = (dict(reward.reader.read([some]))[0] for some in (text, text[256:]))
    assert of_whole.places[n:].tolist() == (of_rest.places + 256).tolist()
    assert of_whole.features[n:] == pytest.approx(of_rest.features, abs=1e-5)


def test_beginnings_are_read_with_what_they_begin(lm, monkeypatch):
    """What is read of a text does not depend on others that begin with it, and costs nothing beside them."""
    reward = pooled(lm)
    whole = "".join(chr(97 + i * i % 26) for i in range(400))
    texts = [whole[:30], whole, "", whole[:90], "another", whole[:300], whole[:90], whole[256:270]]
    alone = [reward.reader.means([text]).features[0] for text in texts]
    rows = []
    monkeypatch.setattr(Reader, "_pass", lambda *asked, read=Reader._pass: rows.extend(asked[1]) or read(*asked))
    assert np.array(alone) == pytest.approx(reward.reader.means(texts).features, abs=1e-6)
    assert sorted(len(row) for row in rows) == [7, 144, 256]


def test_a_text_without_tokens_has_features_too(lm):
    means = pooled(lm).reader.means(["", "a", "ab", "é" * 60])
    assert np.isfinite(means.features).all()
    assert not means.features[0].any()
    assert means.tokens.tolist() == [0, 0, 1, 120 - BURN_IN]


@pytest.mark.parametrize("surprise", slow_except([True], [True, False]))
def test_a_pooled_reward_keeps_the_laws(lm, surprise):
    reward = pooled(lm, surprise=surprise).bind(lm)
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
    other.head.difference[0] += 1
    assert reward_fingerprint(other) != reward_fingerprint(reward)
    (tmp_path / "reward" / "reward.safetensors").write_bytes(b"cut")
    with pytest.raises(RewardError, match=r"reward.safetensors cannot be read"):
        load_reward(tmp_path / "reward")


def test_folders_of_other_rewards_are_refused(tmp_path):
    (tmp_path / "midcourse.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RewardError):
        PooledReward.load(tmp_path)
