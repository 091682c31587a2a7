"""The laws on SmolLM2 itself, in float32, with a reward on its first four layers."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from midcourse.decode.engine import generate
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.scalar import RewardModel
from midcourse.testing import (
    KnownReward,
    assert_batch_independent,
    assert_cached_equals_whole,
    assert_cold_equals_greedy,
    assert_end_is_finished_text,
    assert_equals_reference,
    assert_future_invisible,
    assert_impossible_stays_impossible,
    assert_own_seed_decides,
    assert_reload_is_bit_equal,
    assert_zero_weight_is_plain,
    randomise,
)

pytestmark = pytest.mark.slow

PROMPTS = ["The ferry was late, and", "A", "Żółć: why is the sky blue \N{GRINNING FACE}"]
RESPONSES = [" we loved every minute of it.", " cat", ""]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel.load("smollm2", device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=["raw", "chat"])
def reward(request) -> RewardModel:
    made = RewardModel.create(
        "smollm2", template=request.param, layers=4, tune="head", device="cpu", dtype="float32"
    ).eval()
    randomise(made, 0)
    made.head.weight.data /= 10
    return made


def test_pad_is_eos_here(lm):
    # Which is why positions are read by length, never by looking for the pad id.
    assert lm.tokenizer.pad_token_id == lm.tokenizer.eos_token_id


def test_unguided_greedy_equals_transformers(lm):
    plain = generate(lm, PROMPTS, method="plain", temperature=0.0, max_new_tokens=12)
    constant = generate(lm, PROMPTS, KnownReward(lambda ids: 1.25, lm.tokenizer), temperature=0.0, max_new_tokens=12)
    for prompt, row, guided in zip(PROMPTS, plain, constant, strict=True):
        batch = lm.tokenizer(prompt, return_tensors="pt")
        want = lm.model.generate(**batch, do_sample=False, max_new_tokens=12)[0, batch["input_ids"].shape[1] :].tolist()
        assert [step.token_id for step in row.steps] == want
        assert [step.token_id for step in guided.steps] == want
        # What `generate` prints is what the tokenizer says, EOS aside.
        assert row.text == lm.tokenizer.decode(want, skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")


def test_unguided_samples_are_plain(lm, reward):
    assert_zero_weight_is_plain(reward, lm, PROMPTS)


def test_cached_and_batched_equal_whole(lm, reward):
    assert_cached_equals_whole(reward, lm, PROMPTS, RESPONSES, tolerance=TOLERANCE)
    assert_batch_independent(reward, lm, PROMPTS, RESPONSES, tolerance=TOLERANCE)
    assert_end_is_finished_text(reward, lm, PROMPTS, RESPONSES, tolerance=TOLERANCE)


def test_loop_equals_reference(lm, reward):
    assert_equals_reference(reward, lm, PROMPTS, max_new_tokens=8, tolerance=TOLERANCE)


def test_choices(lm, reward):
    assert_cold_equals_greedy(reward, lm, PROMPTS)
    assert_own_seed_decides(reward, lm, PROMPTS, tolerance=TOLERANCE)
    assert_impossible_stays_impossible(reward, lm, PROMPTS)


def test_later_tokens_and_padding_are_invisible(reward):
    assert_future_invisible(reward, PROMPTS, RESPONSES, tolerance=TOLERANCE)
    eos = reward.tokenizer.eos_token_id
    row, want = ([1, 2, 3], [4, 5]), reward.score_ids([([1, 2, 3], [4, 5])])[0]
    for mate in ([eos] * 9, [7] * 30):
        torch.testing.assert_close(reward.score_ids([row, ([1], mate)])[0], want, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(reward.score_ids([(row[0], [*row[1], *mate])])[0][:2], want, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("tune", ["head", "last:1", "lora:2", "all"])
def test_reload_is_bit_equal(tune, tmp_path):
    made = RewardModel.create("smollm2", template="chat", layers=4, tune=tune, device="cpu", dtype="float32").eval()
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    assert_reload_is_bit_equal(made, tmp_path / "reward", PROMPTS, RESPONSES)


def test_export_is_read_by_transformers_alone(reward, tmp_path):
    reward.export(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        if reward.template == "chat":
            message = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        texts.append(prompt + response + tokenizer.eos_token)
    with torch.inference_mode():
        have = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
    want = [score.rewards[-1] for score in reward.score(PROMPTS, RESPONSES)]
    assert have.tolist() == pytest.approx(want, abs=1e-5)
