"""Sequence classifiers that are decoders: how they read prompts, as transformers does and as exports were trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from midcourse.data.comparisons import Comparison
from midcourse.data.formats import DataError
from midcourse.evaluate.reward_bench import Benchmark, read_benchmark, reward_bench
from midcourse.files import write_text
from midcourse.lm.prompt import PromptError, prompt_ids, response_ids
from midcourse.rewards.classifier import ClassifierReward
from midcourse.rewards.contract import Text
from midcourse.rewards.info import RewardError
from midcourse.rewards.named import load_reward
from midcourse.testing import (
    CONTEXT,
    assert_laws,
    byte_tokenizer,
    randomise,
    tiny_config,
    tiny_language_model,
    tiny_reward,
)
from tests.pace import slow_except

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"}]
PROMPTS = ["Name a river.", "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Well?\n\nAssistant:", MESSAGES]
RESPONSES = ["The Elbe.", "", " no"]
TEXTS = [Text(prompt, response, True) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
NEWLINE = byte_tokenizer().chat_template  # ChatML's: a newline stands behind EOS
NO_NEWLINE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}" + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + NO_NEWLINE


def foreign(folder: Path, template: str | None = NEWLINE, **settings: Any) -> ClassifierReward:
    """A reward model of somebody else's, in float64."""
    config, tokenizer = tiny_config("llama", layers=2), byte_tokenizer()
    config.num_labels = 1
    tokenizer.chat_template = template
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float64)
    randomise(model, 3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reward = load_reward(folder, device="cpu", dtype="float64", **settings)
    assert isinstance(reward, ClassifierReward)
    return reward


def by_transformers(folder: Path, texts: list[Text]) -> list[float]:
    """Rewards as RewardBench computes them: the rendered conversations, tokenised and padded, in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    turns = [MESSAGES if text.prompt is MESSAGES else [{"role": "user", "content": text.prompt}] for text in texts]
    whole = [[*turn, {"role": "assistant", "content": t.response}] for turn, t in zip(turns, texts, strict=True)]
    rendered = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in whole]
    batch = tokenizer(rendered, padding=True, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()


def shown(reward: ClassifierReward, text: Text) -> str:
    return reward.tokenizer.decode(reward.encode(text)[0])


# Somebody else's


@pytest.mark.parametrize("template", [NEWLINE, NO_NEWLINE])
def test_finished_texts_are_read_as_transformers_reads_them(template, tmp_path):
    reward = foreign(tmp_path, template)
    texts = [TEXTS[0], TEXTS[2]]
    assert reward.ask(texts) == pytest.approx(by_transformers(tmp_path, texts), abs=1e-6)
    assert (reward.reading, reward.template) == ("chat", None)


def test_what_is_read(tmp_path):
    reward = foreign(tmp_path)
    asked = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n"
    assert shown(reward, Text("Name a river.", "The E", False)) == f"{asked}The E"
    assert shown(reward, Text("Name a river.", "The Elbe.", True)) == f"{asked}The Elbe.<|im_end|>\n"
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Well?")]
    before = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    assert shown(reward, Text(PROMPTS[1], "No", True)) == f"{before}<|im_start|>assistant\nNo<|im_end|>\n"
    assert shown(reward, Text(MESSAGES, "No", False)).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_raw_overrules_and_mixed_goes_by_the_prompt(tmp_path):
    raw = foreign(tmp_path / "raw", template=NEWLINE)
    raw = ClassifierReward(raw.model, raw.tokenizer, template="raw")
    assert shown(raw, TEXTS[0]) == "Name a river.The Elbe.<|im_end|>"
    assert shown(raw, Text("Name a river.", "The E", False)) == "Name a river.The E"
    assert shown(raw, TEXTS[2]) == "Be brief.\n\nWhere is it? no<|im_end|>"
    mixed = ClassifierReward(raw.model, raw.tokenizer, template="mixed")
    assert shown(mixed, TEXTS[0]) == shown(raw, TEXTS[0])
    assert shown(mixed, TEXTS[2]) == shown(ClassifierReward(raw.model, raw.tokenizer), TEXTS[2])


def test_without_a_chat_template_there_is_one_reading(tmp_path):
    for template in (None, "raw", "chat"):
        reward = foreign(tmp_path, None)
        reward = ClassifierReward(reward.model, reward.tokenizer, template=template)
        assert shown(reward, TEXTS[0]) == "Name a river.The Elbe.<|im_end|>"


def test_load_reward_passes_the_template_on(tmp_path):
    foreign(tmp_path)
    assert load_reward(tmp_path, template="raw").reading == "raw"
    assert load_reward(tmp_path, template="chat").reading == "chat"


def test_a_long_conversation_loses_its_beginning(tmp_path):
    reward = foreign(tmp_path).within(60)
    text = Text("x" * 60, "yes", True)
    ids, _ = reward.encode(text)
    assert len(ids) == 60
    assert shown(reward, text).endswith("x<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n")
    assert reward.lost(text) == len(foreign(tmp_path).encode(text)[0]) - 60
    with pytest.raises(RewardError, match=r"a response has \d+ tokens of"):
        reward.encode(Text("x", "y" * 60, True))


def test_roles_that_the_template_refuses(tmp_path):
    reward = foreign(tmp_path, STRICT)
    want = r"refuses messages of the roles system, user \(no system role\); leave out or join"
    with pytest.raises(PromptError, match=want) as caught:
        reward.ask([Text(MESSAGES, "no", True)])
    assert "\n" not in str(caught.value)
    pair = {"prompt": MESSAGES, "chosen": "b", "rejected": "c"}
    write_text(tmp_path / "pairs.jsonl", json.dumps(pair))
    with pytest.raises(
        DataError, match=r"line 1, field prompt: the chat template .* refuses messages of the roles system"
    ):
        read_benchmark([tmp_path / "pairs.jsonl"], reward=reward)


@pytest.mark.parametrize("template", slow_except([NEWLINE], [NEWLINE, NO_NEWLINE]))
def test_laws_of_a_chat_classifier(template, tmp_path):
    reward = foreign(tmp_path, template)
    lm = tiny_language_model()
    assert_laws(reward.bind(lm), lm, ["Name a river.", "A"], [" The Elbe.", " no"])


# Our own, exported


def exported(folder: Path, template: str, chat_template: str = NEWLINE):
    reward = tiny_reward(template=template)
    reward.tokenizer.chat_template = chat_template
    reward.export(folder)
    back = load_reward(folder, device="cpu", dtype="float64")
    assert isinstance(back, ClassifierReward)
    return reward, back


@pytest.mark.parametrize("chat_template", [NEWLINE, NO_NEWLINE])
@pytest.mark.parametrize("template", ["chat", "raw", "mixed"])
def test_an_exported_reward_reads_as_it_was_trained(template, chat_template, tmp_path):
    reward, back = exported(tmp_path, template, chat_template)
    prompts = [prompt for prompt in PROMPTS if template != "raw" or isinstance(prompt, str)]
    scores = reward.score(prompts, responses := ["The Elbe.", " no", "x"][: len(prompts)])
    found = back.bind(tiny_language_model()).score(prompts, responses)
    for score, other in zip(scores, found, strict=True):
        assert other.token_ids == score.token_ids  # every prefix, the finished text last
        assert other.rewards == pytest.approx(score.rewards, abs=1e-5)
    for asked in ("raw", "chat", "mixed"):  # it knows its own
        assert load_reward(tmp_path, template=asked, dtype="float64").ask(TEXTS[:1]) == back.ask(TEXTS[:1])


def test_an_exported_chat_reward_read_by_others(tmp_path):
    texts = [TEXTS[0], TEXTS[2]]
    reward, back = exported(tmp_path / "ends with EOS", "chat", NO_NEWLINE)
    own = [score.whole for score in reward.score([t.prompt for t in texts], [t.response for t in texts])]
    assert by_transformers(tmp_path / "ends with EOS", texts) == pytest.approx(own, abs=1e-6)
    assert back.ask(texts) == pytest.approx(own, abs=1e-6)
    # Behind EOS a newline: transformers reads the reward there, the reward of the text is that at EOS.
    reward, back = exported(tmp_path / "goes on", "chat", NEWLINE)
    before = prompt_ids(reward.tokenizer, texts[0].prompt, "chat")
    after = [*response_ids(reward.tokenizer, texts[0].response, finished=True), ord("\n")]
    at_eos, behind = reward.score_ids([(before, after)])[0][-2:].tolist()
    assert by_transformers(tmp_path / "goes on", texts)[0] == pytest.approx(behind, abs=1e-6)
    assert back.ask(texts)[0] == pytest.approx(at_eos, abs=1e-6)


def test_an_unknown_template_in_the_configuration(tmp_path):
    exported(tmp_path, "chat")
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"midcourse_template": "chat"', '"midcourse_template": "chess"'))
    with pytest.raises(RewardError, match=r"records the template 'chess' in its config\.json; write one of: chat, raw"):
        load_reward(tmp_path)


def test_reward_bench_of_an_exported_chat_reward_is_the_rewards(tmp_path):
    reward, back = exported(tmp_path, "chat")
    comparisons = [Comparison("Name one.", "The Elbe.", "No idea."), Comparison(MESSAGES, "Here.", "Who knows?")]
    bench = Benchmark(comparisons, ["a", "a"])
    want, found = reward_bench(reward, bench), reward_bench(back, bench, tokenizer=reward.tokenizer)
    assert found["shares"] == want["shares"]
    assert back.room == CONTEXT


def test_a_separator_of_a_decoder_is_no_reading_of_pairs(tmp_path):
    """Its chat template says how the model was trained."""
    plain = foreign(tmp_path)
    plain.tokenizer.sep_token = plain.tokenizer.eos_token
    reward = ClassifierReward(plain.model, plain.tokenizer)
    text = Text("Name a river.", " The Elbe.", finished=True)
    assert reward.reading == "chat" and reward.rate([text]) == plain.rate([text])


def test_a_model_that_reads_its_padding_reads_texts_of_one_length_together(tmp_path, monkeypatch):
    reward = foreign(tmp_path)
    forward = reward.model.forward

    def padded(input_ids, attention_mask):
        found = forward(input_ids=input_ids, attention_mask=attention_mask)
        found.logits = found.logits + (1 - attention_mask).sum(1, keepdim=True)
        return found

    texts = [Text("Hi", " a" * n, finished=True) for n in (1, 5, 3, 5)]
    want = reward.rate(texts)
    monkeypatch.setattr(reward.model, "forward", padded)
    again = ClassifierReward(reward.model, reward.tokenizer)
    assert again.rate(texts) == pytest.approx(want, abs=1e-9)
