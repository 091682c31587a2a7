"""Rewards and verdicts of texts that clients send, in vLLM's shapes where it has them.

What is here runs on the worker's thread.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from midcourse.lm.prompt import Prompt, render
from midcourse.rewards.contract import Reward, Score
from midcourse.serve.errors import RequestError
from midcourse.serve.order import messages_of
from midcourse.serve.served import Served, short
from midcourse.serve.wire import DetectRequest, Message, PoolingRequest, TokenizeRequest

Json = dict[str, Any]


def reward_named(served: Served, name: str) -> Reward:
    """Return the reward of that name; RequestError if there is none."""
    found = served.rewards.get(name)
    if found is None:
        known = ", ".join(served.rewards) or "none"
        raise RequestError(
            f"the reward {short(name)} does not exist here; use one of: {known}", param="model", status=404
        )
    return found


def texts_of(served: Served, given: str | Sequence[str], param: str) -> list[str]:
    """Return the texts of a request; RequestError if they are too many."""
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) > served.bounds.texts:
        raise RequestError(f"{len(texts)} texts are more than the {served.bounds.texts} of a request", param=param)
    return texts


def conversation(messages: Sequence[Message]) -> tuple[Prompt, str]:
    """Return the messages before the last, and the text of that, which has to be the assistant's."""
    *before, last = messages
    if last.role != "assistant":
        raise RequestError("the last message is not the assistant's, whose tokens are rewarded", param="messages")
    return messages_of(before) or "", last.text


def pooled(served: Served, asked: PoolingRequest) -> list[tuple[Prompt, str]]:
    """Return what a request for rewards of tokens asks about: (prompt, response) pairs."""
    reward_named(served, asked.model)
    if asked.messages is not None:
        return [conversation(asked.messages)]
    return [(asked.prompt, text) for text in texts_of(served, asked.input or "", "input")]


def token_rewards(served: Served, name: str, prompt: Prompt, response: str) -> Json:
    """Return the reward of every prefix of a response, and the tokens."""
    score = scored(served, name, prompt, response)
    kept = score.without_end()
    return {"object": "pooling", "data": [[reward] for reward in kept.prefixes], "tokens": list(kept.texts)}


def whole_reward(served: Served, name: str, prompt: Prompt, response: str, finished: bool) -> Json:
    """Return the reward of a response, and how probably it is preferred to one with the mean reward."""
    score = scored(served, name, prompt, response)
    kept = score if finished else score.without_end()
    calibration = reward_named(served, name).calibration
    chances = calibration.against_mean(kept.prefixes, finished=finished) if calibration and kept.prefixes else [None]
    return {
        "object": "score",
        "score": score.of_response(finished),
        "probability": chances[-1],
        "tokens": len(kept.rewards),
    }


def scored(served: Served, name: str, prompt: Prompt, response: str) -> Score:
    """Return a reward's score of a response."""
    (score,) = reward_named(served, name).score([prompt], [response])
    return score


def verdict(served: Served, asked: DetectRequest, text: str) -> Json:
    """Return the detector's verdict on a text."""
    if served.detector is None:
        raise RequestError("this server has no detector; start it with --detector shipped", status=404)
    (found,) = served.detector.score([text], fpr=asked.fpr, guarantee=asked.guarantee, group=asked.group)
    return asdict(found)


def tokenized(served: Served, asked: TokenizeRequest) -> Json:
    """Return the tokens of a prompt."""
    if asked.messages is not None:
        prompt: Prompt = messages_of(asked.messages)
    else:
        prompt = asked.prompt or ""
    ids = render(served.lm.tokenizer, prompt, "chat" if asked.messages is not None else "raw").token_ids
    strings = served.lm.tokenizer.convert_ids_to_tokens(ids)
    return {"count": len(ids), "max_model_len": served.lm.context_length, "tokens": ids, "token_strs": strings}
