"""Arguments of chat templates: told once, kept with whatever is saved; and templates that ask a clock."""

import json
from datetime import date
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from midcourse import LanguageModel, load_reward
from midcourse.lm.language_model import chat_fingerprint
from midcourse.lm.policy import load_policy
from midcourse.lm.prompt import PromptError, chat_template, prompt_ids, render, set_arguments
from midcourse.rewards.info import RewardError
from midcourse.testing import byte_tokenizer

THINKS = (
    "{% macro think() %}{% if mood is defined and mood is false %}[quiet]{% else %}[loud]{% endif %}{% endmacro %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ think() }}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now(\"%Y\") }}|" + THINKS
OPTIONAL = "{% if not day is defined %}{% set day = strftime_now('%Y') %}{% endif %}{{ day }}|" + THINKS


def tokenizer_with(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def rendered(tokenizer):
    return render(tokenizer, "Hi", "chat").text


def test_an_argument_reaches_every_part_of_the_template_and_is_saved_with_it(tmp_path):
    tokenizer = tokenizer_with(THINKS)
    assert rendered(tokenizer) == "user: Hi<|end|>assistant:[loud]".replace("<|end|>", tokenizer.eos_token)
    set_arguments(tokenizer, {"mood": False})
    assert rendered(tokenizer).endswith("assistant:[quiet]")
    once = chat_fingerprint(tokenizer)
    set_arguments(tokenizer, {"mood": False})  # what was saved with it is told it again
    assert chat_fingerprint(tokenizer) == once != chat_fingerprint(tokenizer_with(THINKS))
    tokenizer.save_pretrained(tmp_path)
    assert rendered(AutoTokenizer.from_pretrained(tmp_path)).endswith("[quiet]")


@pytest.mark.parametrize("value", ['a "quoted" \\ text\n', "ünï 😀", 3, 0.5, True])
def test_a_value_arrives_as_it_is(value):
    tokenizer = tokenizer_with("{{ mood }}|" + THINKS)
    set_arguments(tokenizer, {"mood": value})
    assert rendered(tokenizer).partition("|user")[0] == str(value)


def test_an_argument_that_the_template_does_not_have():
    with pytest.raises(PromptError, match="has no argument 'mod'; leave it out"):
        set_arguments(tokenizer_with(THINKS), {"mod": False})
    with pytest.raises(PromptError, match="has no chat template to give the template-argument mood to"):
        set_arguments(tokenizer_with(None), {"mood": False})


def test_of_several_templates_the_default_is_taken(tmp_path):
    tokenizer = tokenizer_with({"default": THINKS, "tool_use": "tools"})
    assert chat_template(tokenizer) == THINKS
    assert chat_fingerprint(tokenizer) == chat_fingerprint(tokenizer_with(THINKS))
    assert prompt_ids(tokenizer, "Hi", "chat") == prompt_ids(tokenizer_with(THINKS), "Hi", "chat")
    with pytest.raises(PromptError, match="has the chat templates 'tool_use' and none called 'default'"):
        prompt_ids(tokenizer_with({"tool_use": "tools"}), "Hi", "chat")


def test_a_clock_is_told_of_once_and_can_be_set(capsys):
    asked = tokenizer_with(DATED)
    assert str(date.today().year) in rendered(asked)
    rendered(asked)
    err = capsys.readouterr().err
    assert err.count("writes today's date") == 1 and f"--template-argument today={date.today()}" in err
    fixed = tokenizer_with(DATED)
    set_arguments(fixed, {"today": "2024-07-26"})
    assert rendered(fixed).startswith("26 Jul 2024|2024|user: Hi")
    assert capsys.readouterr().err == ""


def test_a_clock_that_is_not_asked_is_not_told_of(capsys):
    tokenizer = tokenizer_with(OPTIONAL)
    set_arguments(tokenizer, {"day": "some day"})
    assert rendered(tokenizer).startswith("some day|")
    assert capsys.readouterr().err == ""
    rendered(tokenizer_with(OPTIONAL))
    assert "writes today's date" in capsys.readouterr().err


def test_a_day_that_is_none_and_a_clock_that_cannot_be_set():
    with pytest.raises(PromptError, match="'tomorrow'; write a day as 2026-01-31"):
        set_arguments(tokenizer_with(DATED), {"today": "tomorrow"})
    with pytest.raises(PromptError, match="asks a clock in a way that no day can be set for"):
        set_arguments(tokenizer_with("{{ strftime_now(form) }}" + THINKS), {"today": "2024-07-26"})


# What is saved


@pytest.fixture
def model(model_folder):
    folder = model_folder()
    (Path(folder) / "chat_template.jinja").write_text(THINKS)
    return folder


@pytest.fixture
def comparisons(tmp_path):
    rows = [{"prompt": f"Say {i}", "chosen": f"yes {i}", "rejected": f"no {i * 7}"} for i in range(12)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_reward_keeps_the_arguments_of_its_training(midcourse, model, comparisons, tmp_path):
    out = tmp_path / "reward"
    told = ["--template-argument", "mood=false"]
    code, _, err = midcourse("train", comparisons, "--backbone", model, "--out", out, "--epochs", 1, *told)
    assert code == 0, err
    reward = load_reward(out)
    assert rendered(reward.tokenizer).endswith("[quiet]")
    guide = ["guide", "--lm", model, "--reward", out, "--prompt", "Hi", "--max-new-tokens", 3]
    code, _, err = midcourse(*guide)
    assert code == 2 and "chat template" in err
    code, _, err = midcourse(*guide, *told)
    assert code == 0, err
    with pytest.raises(RewardError, match="renders prompts as it was made to; leave the template-argument out"):
        load_reward(out, template_arguments={"mood": False})


def test_a_policy_keeps_the_arguments_of_its_training(midcourse, model, comparisons, tmp_path):
    told = ["--template-argument", "mood=false", "--epochs", 1]
    code, _, err = midcourse("dpo", comparisons, "--lm", model, "--out", tmp_path / "policy", *told)
    assert code == 0, err
    assert rendered(LanguageModel.load(str(tmp_path / "policy")).tokenizer).endswith("[quiet]")
    assert rendered(load_policy(str(tmp_path / "policy"), LanguageModel.load(model)).tokenizer).endswith("[loud]")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--template-argument", "mood"], "has no value; write enable_thinking=false"),
        (["--template-argument", "mood=[1]"], "is no text, number, true or false"),
        (["--template-argument", "mod=1"], "has no argument 'mod'; leave it out"),
        (["--template-argument", "mood=1", "--template", "raw"], "the template raw uses none"),
    ],
)
def test_arguments_that_cannot_be_used(midcourse, model, given, says):
    code, _, err = midcourse("guide", "--lm", model, "--prompt", "Hi", "--template", "chat", *given)
    assert code == 2 and says in " ".join(err.split())
