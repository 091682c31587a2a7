"""What OpenAI's own client gets, beside what `midcourse.generate` writes."""

import json
import math
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from midcourse.decode.engine import generate
from midcourse.decode.methods import Method
from midcourse.decode.steps import Generation
from tests.serve.served import Running

HI = [{"role": "user", "content": "Hi"}]
WHOLE = Method(None, reward_weight=0.0, top_k=None)


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def offline(server: Running, prompt: Any, seed: int, rewards: dict[str, float] | None = None, **settings) -> Generation:
    """What is written without a server."""
    guides = [(server.served.rewards[name], weight) for name, weight in (rewards or {}).items()]
    settings = {"template": "chat", "max_new_tokens": 8, "method": "pargs" if guides else WHOLE, **settings}
    if len(guides) == 1 and settings["method"] == "pargs":  # its rewards are told as they are
        ((reward, weight),) = guides
        settings.setdefault("reward_weight", weight)
        guides = [(reward, 1.0)]
    elif guides:
        settings.setdefault("reward_weight", 1.0)
    (found,) = generate(server.served.lm, [prompt], guides or None, seed=seed, **settings)
    return found


GUIDANCE = [
    None,
    {"rewards": {"kind": 3.0}},
    {"rewards": {"trunk": 2.0}, "top_k": 5},
    {"rewards": {"kind": 1.0, "trunk": -2.0, "vowels": 4.0}},
    {"rewards": {"kind": 30.0}, "kl_per_token": 0.2},
    {"rewards": {"vowels": 9.0}, "method": "best-of-n", "samples": 3},
]


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_what_generate_writes(server, client, guidance, stream):
    extra = {"guidance": guidance} if guidance else {}
    common = {"model": "tiny", "messages": HI, "seed": 3, "max_tokens": 8, "n": 2, "extra_body": extra}
    told = {} if guidance and "samples" in guidance else {"logprobs": True, "top_logprobs": 3}
    rewards = (guidance or {}).get("rewards")
    settings = {key: value for key, value in (guidance or {}).items() if key != "rewards"}
    if settings.get("method") == "best-of-n":
        settings["reward_weight"] = None
    for place in range(2):
        want = offline(server, HI, 3 + place, rewards, **settings)
        if not stream:
            answer = client.chat.completions.create(**common, **told)
            choice = answer.choices[place]
            text, items, reason = choice.message.content, choice.logprobs, choice.finish_reason
            about = choice.model_extra["guidance"]
        else:
            chunks = [
                chunk.choices[0]
                for chunk in client.chat.completions.create(**common, **told, stream=True)
                if chunk.choices[0].index == place
            ]
            assert chunks[0].delta.role == "assistant"
            text = "".join(chunk.delta.content or "" for chunk in chunks)
            items = [item for chunk in chunks if chunk.logprobs for item in chunk.logprobs.content]
            reason, about = chunks[-1].finish_reason, chunks[-1].model_extra["guidance"]
        assert (text, reason) == (want.text, want.finish_reason)
        assert about["seed"] == 3 + place
        for name in ("reward", "guidance_kl", "total_kl"):
            assert about[name] == (
                None if (value := getattr(want, name)) is None else pytest.approx(value, rel=1e-5, abs=1e-5)
            )
        if told:
            items = items if stream else items.content
            assert "".join(item.model_extra["text"] for item in items) == want.text
            for item, step in zip(items, want.steps, strict=True):
                assert item.logprob == pytest.approx(step.logprob, abs=1e-5)
                extra = item.model_extra
                assert extra["base_logprob"] == pytest.approx(step.reference_logprob, abs=1e-5)
                assert extra["weight"] == pytest.approx(step.weight, abs=1e-5)
                assert (extra["reward"] is None) == (step.reward is None)
                assert len(item.top_logprobs) == 3
                likeliest = [one.logprob for one in item.top_logprobs]
                assert likeliest == sorted(likeliest, reverse=True) and item.logprob <= likeliest[0] + 1e-6


def test_candidates_have_the_shares_of_the_policy_that_drew_the_token(client):
    """Over ten candidates they add up to one, and the token that was drawn has its own."""
    body = {"guidance": {"rewards": {"kind": 4.0}}}
    answer = client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=6,
        seed=1,
        logprobs=True,
        top_logprobs=20,
        temperature=0.7,
        extra_body=body,
    )
    for item in answer.choices[0].logprobs.content:
        shares = {one.model_extra["token_id"]: math.exp(one.logprob) for one in item.top_logprobs}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert shares[item.model_extra["token_id"]] == pytest.approx(math.exp(item.logprob), abs=1e-6)


@pytest.mark.parametrize("guidance", [{"rewards": {"kind": 0.0}}, {"rewards": {"kind": 2.0}, "reward_weight": 0.0}, {}])
def test_at_weight_0_it_is_the_plain_model(server, client, guidance):
    answer = client.chat.completions.create(
        model="tiny", messages=HI, seed=5, max_tokens=8, extra_body={"guidance": guidance}
    )
    assert answer.choices[0].message.content == offline(server, HI, 5).text


def test_a_models_name_may_say_what_guides(server, client):
    answer = client.chat.completions.create(model="tiny+kind=3+trunk=-1@pargs", messages=HI, seed=2, max_tokens=8)
    assert answer.model == "tiny+kind=3+trunk=-1@pargs"
    assert answer.choices[0].message.content == offline(server, HI, 2, {"kind": 3.0, "trunk": -1.0}).text
    assert [model.id for model in client.models.list()] == ["tiny", "tiny+kind", "tiny+trunk", "tiny+vowels"]
    assert client.models.retrieve("tiny+kind=2").id == "tiny+kind=2"
    with pytest.raises(NotFoundError, match="the model 'other' does not exist"):
        client.models.retrieve("other")


def test_usage_is_told_where_it_is_asked_for(client):
    ask = {"model": "tiny", "messages": HI, "max_tokens": 4, "n": 2, "stream": True, "seed": 0}
    chunks = list(client.chat.completions.create(**ask, stream_options={"include_usage": True}))
    *others, last = chunks
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in others)
    assert last.choices == [] and last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
    whole = client.chat.completions.create(**{**ask, "stream": False})
    assert whole.usage == last.usage
    for options in ({}, {"include_usage": False}):
        assert all(
            "usage" not in one.model_fields_set for one in client.chat.completions.create(**ask, stream_options=options)
        )


def test_stops_and_temperature_0(server, client):
    greedy = client.chat.completions.create(model="tiny", messages=HI, max_tokens=8, temperature=0, logprobs=True)
    want = offline(server, HI, 0, method=Method(None, greedy=True, reward_weight=0.0, top_k=None, temperature=0.0))
    assert greedy.choices[0].message.content == want.text
    first = greedy.choices[0].logprobs.content[0]
    assert first.logprob == pytest.approx(want.steps[0].reference_logprob, abs=1e-5)  # and not 0
    stop = want.text[2]
    stopped = client.chat.completions.create(model="tiny", messages=HI, max_tokens=8, temperature=0, stop=[stop])
    assert stopped.choices[0].message.content == want.text.partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_response_keeps_to_a_schema(client):
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema}}
    body = {"guidance": {"rewards": {"kind": 2.0}}}
    answer = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=40, seed=1, response_format=form, extra_body=body
    )
    assert json.loads(answer.choices[0].message.content)["mood"] in ("good", "bad")


def test_the_form_of_responses(server, client):
    want = offline(server, [{"role": "system", "content": "Be brief."}, *HI], 4, {"kind": 2.0})
    ask = {"model": "tiny", "input": "Hi", "instructions": "Be brief.", "max_output_tokens": 8}
    body = {"seed": 4, "guidance": {"rewards": {"kind": 2.0}}}
    answer = client.responses.create(**ask, include=["message.output_text.logprobs"], extra_body=body)
    assert answer.output_text == want.text
    assert answer.status == ("incomplete" if want.finish_reason == "length" else "completed")
    assert answer.usage.output_tokens == len(want.steps) == len(answer.output[0].content[0].logprobs)
    events = list(client.responses.create(**ask, stream=True, extra_body=body))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].response.output_text == want.text
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == want.text
    for refused in ({"previous_response_id": "r"}, {"store": True}):
        with pytest.raises(BadRequestError, match=f"{next(iter(refused))} is not supported; leave it out"):
            client.responses.create(**ask, **refused)


# Completions


def test_a_completion_is_what_generate_writes(server, client):
    body = {"guidance": {"rewards": {"kind": 2.0}}}
    answer = client.completions.create(
        model="tiny", prompt=["One", "Two"], n=2, max_tokens=6, seed=7, logprobs=2, extra_body=body
    )
    for choice, prompt, seed in zip(answer.choices, ["One", "One", "Two", "Two"], range(7, 11), strict=True):
        want = offline(server, prompt, seed, {"kind": 2.0}, template="raw", max_new_tokens=6)
        assert choice.text == want.text
        assert choice.logprobs.token_logprobs == pytest.approx([step.logprob for step in want.steps], abs=1e-5)
        assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == len(want.steps)
    streamed = client.completions.create(model="tiny", prompt="One", max_tokens=6, seed=7, stream=True, extra_body=body)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


def test_token_ids_are_read_as_they_are_and_echoed_with_their_probabilities(server, client):
    ids = [72, 105, 33]
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer.choices
    assert choice.text == "Hi!" and choice.logprobs.tokens == ["H", "i", "!"]
    import torch

    with torch.inference_mode():
        logprobs = server.served.lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    want = [logprobs[0, 105].item(), logprobs[1, 33].item()]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == pytest.approx(want, abs=1e-3)
    best = choice.logprobs.top_logprobs[1]
    assert max(best.values()) == pytest.approx(logprobs[0].max().item(), abs=1e-3)
