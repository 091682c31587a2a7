"""What clients read: events of the engine in OpenAI's forms, whole or as streams.

What guides stands beside each token (`reward`, `weight`, `base_logprob`) and each choice (`guidance`), in fields of its
own, which OpenAI's clients pass on.
"""

import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from midcourse.decode.guidance import add_reward
from midcourse.decode.methods import Method
from midcourse.decode.request import Request
from midcourse.decode.steps import Generation, Step
from midcourse.serve.order import Order

Json = dict[str, Any]


# Tokens


def policy_logprobs(step: Step, request: Request) -> tuple[float, list[float | None]]:
    """Return the log-probabilities of a step's token and of its candidates under the policy that drew it.

    A greedy choice has that of the policy at temperature 1. None for a candidate whose share is not known: of methods
    that choose among blocks, and of several rewards that do not simply add up.
    """
    method = request.method
    plain = [candidate.logprob for candidate in step.candidates]
    temperature = method.temperature or 1.0
    guide = method.guide if isinstance(method, Method) else None
    guided: list[float | None] = list(plain)
    own = step.reference_logprob
    if guide is not None and step.reward is not None:
        if guide is not add_reward and len(request.guides) > 1:
            return step.logprob, [None] * len(plain)
        rewards = [candidate.reward for candidate in step.candidates]
        values = torch.tensor([[step.reference_logprob, *plain]], dtype=torch.float64)
        known = torch.tensor([[step.reward, *(0.0 if r is None else r for r in rewards)]], dtype=torch.float64)
        own, *found = guide(values, known, step.weight)[0].tolist()
        guided = [None if reward is None else value for reward, value in zip(rewards, found, strict=True)]
    if isinstance(method, Method) and method.greedy:
        whole = torch.tensor([value for value in guided if value is not None], dtype=torch.float64)
        norm = float(whole.logsumexp(0)) if guide is not None else 0.0
        return own - norm, [None if value is None else value - norm for value in guided]
    return step.logprob, [None if value is None else (value - own) / temperature + step.logprob for value in guided]


def token_item(step: Step, request: Request, top: int, tokenizer: PreTrainedTokenizerBase) -> Json:
    """Return a token as an item of `logprobs.content`, with its likeliest candidates."""
    own, others = policy_logprobs(step, request)
    listed = [
        {
            **_named(tokenizer, candidate.token_id),
            "logprob": _finite(logprob),
            "base_logprob": _finite(candidate.logprob),
            "reward": candidate.reward,
        }
        for candidate, logprob in zip(step.candidates, others, strict=True)
        if logprob is not None
    ]
    listed.sort(key=lambda one: -one["logprob"])
    return {
        **_named(tokenizer, step.token_id),
        "logprob": _finite(own),
        "top_logprobs": listed[:top],
        "text": step.text,
        "base_logprob": _finite(step.reference_logprob),
        "reward": step.reward,
        "weight": step.weight,
        "guidance_kl": step.guidance_kl,
    }


def _named(tokenizer: PreTrainedTokenizerBase, token_id: int) -> Json:
    """Return a token's text by itself, and its bytes if these are whole characters."""
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    whole = "\N{REPLACEMENT CHARACTER}" not in text
    return {"token": text, "bytes": list(text.encode()) if whole else None, "token_id": token_id}


def _finite(value: float) -> float:
    """Return a log-probability that JSON can hold, as OpenAI's does it: -9999 for what is impossible."""
    return value if math.isfinite(value) else -9999.0


def about_guidance(generation: Generation, request: Request) -> Json:
    """Return what guidance made of a response."""
    return {
        "reward": generation.reward,
        "guidance_kl": generation.guidance_kl,
        "total_kl": generation.total_kl,
        "seed": request.seed,
    }


@dataclass
class Answer(ABC):
    """An answer on its way; what all forms have in common.

    Attributes:
        model: what the client called it.
    """

    model: str
    tokenizer: PreTrainedTokenizerBase
    order: Order
    name: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def whole(self, generations: Sequence[Generation]) -> Json:
        """Return the answer."""

    @abstractmethod
    def begin(self) -> Iterator[Json]:
        """Yield a stream's first parts."""

    @abstractmethod
    def token(self, place: int, step: Step) -> Iterator[Json]:
        """Yield what a token adds to a stream."""

    @abstractmethod
    def ended(self, place: int, generation: Generation) -> Iterator[Json]:
        """Yield what ends a choice."""

    @abstractmethod
    def last(self, generations: Sequence[Generation]) -> Iterator[Json]:
        """Yield what ends a stream."""

    def item(self, choice: int, step: Step) -> Json | None:
        """Return a token as it is told of; None if nobody asked for that."""
        top = self.order.top_logprobs
        return None if top is None else token_item(step, self.order.requests[choice], top, self.tokenizer)

    def items(self, choice: int, generation: Generation) -> list[Json]:
        """Return all tokens of a response as they are told of."""
        return [item for step in generation.steps if (item := self.item(choice, step)) is not None]

    def usage(self, generations: Sequence[Generation]) -> Json:
        """Return how many tokens were read and written; a prompt counts once for all its choices."""
        read = sum(one.prompt_tokens for one in generations[:: self.order.choices])
        written = sum(len(one.steps) for one in generations)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class ChatAnswer(Answer):
    """A chat completion."""

    def whole(self, generations: Sequence[Generation]) -> Json:
        """Return the answer."""
        choices = [self._choice(place, one) for place, one in enumerate(generations)]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage(generations)}

    def _choice(self, place: int, generation: Generation) -> Json:
        told = None if self.order.top_logprobs is None else {"content": self.items(place, generation), "refusal": None}
        return {
            "index": place,
            "message": {"role": "assistant", "content": generation.text, "refusal": None},
            "logprobs": told,
            "finish_reason": generation.finish_reason,
            "guidance": about_guidance(generation, self.order.requests[place]),
        }

    def begin(self) -> Iterator[Json]:
        """Yield a stream's first chunks."""
        for place in range(len(self.order.requests)):
            yield self._chunk(place, {"role": "assistant", "content": ""})

    def token(self, place: int, step: Step) -> Iterator[Json]:
        """Yield what a token adds to a stream."""
        item = self.item(place, step)
        if step.text or item is not None:
            told = None if item is None else {"content": [item], "refusal": None}
            yield self._chunk(place, {"content": step.text}, told)

    def ended(self, place: int, generation: Generation) -> Iterator[Json]:
        """Yield the last chunk of a choice."""
        chunk = self._chunk(place, {}, reason=generation.finish_reason)
        chunk["choices"][0]["guidance"] = about_guidance(generation, self.order.requests[place])
        yield chunk

    def last(self, generations: Sequence[Generation]) -> Iterator[Json]:
        """Yield what ends a stream."""
        if self.order.usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(generations)}

    def _chunk(self, place: int, delta: Json, told: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": place, "delta": delta, "logprobs": told, "finish_reason": reason}
        usage = {"usage": None} if self.order.usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, kind: str) -> Json:
        return {"id": f"chatcmpl-{self.name}", "object": kind, "created": self.created, "model": self.model}


class CompletionAnswer(Answer):
    """A completion, whose tokens are told of in columns.

    Attributes:
        echoed: of each prompt, if its tokens are to be told of: their columns.
    """

    echoed: Sequence[Json] = ()

    def whole(self, generations: Sequence[Generation]) -> Json:
        """Return the answer."""
        choices = [self._choice(place, one) for place, one in enumerate(generations)]
        return {**self._head(), "choices": choices, "usage": self.usage(generations)}

    def _choice(self, place: int, generation: Generation) -> Json:
        nothing = self.order.max_tokens == 0
        items = [] if nothing else self.items(place, generation)
        text, told = "" if nothing else generation.text, None
        before = str(generation.prompt) if self.order.echo else ""
        if self.order.top_logprobs is not None:
            told = self._columns(items, len(before))
            if self.order.echo:
                echoed = self.echoed[place // self.order.choices]
                told = {name: [*echoed[name], *column] for name, column in told.items()}
        return {
            "index": place,
            "text": before + text,
            "logprobs": told,
            "finish_reason": "length" if nothing else generation.finish_reason,
            "guidance": about_guidance(generation, self.order.requests[place]),
        }

    def begin(self) -> Iterator[Json]:
        """Yield a stream's first chunks: none."""
        yield from ()

    def token(self, place: int, step: Step) -> Iterator[Json]:
        """Yield what a token adds to a stream."""
        item = self.item(place, step)
        if step.text or item is not None:
            yield self._chunk(place, step.text, None if item is None else self._columns([item], 0))

    def ended(self, place: int, generation: Generation) -> Iterator[Json]:
        """Yield the last chunk of a choice."""
        chunk = self._chunk(place, "", reason=generation.finish_reason)
        chunk["choices"][0]["guidance"] = about_guidance(generation, self.order.requests[place])
        yield chunk

    def last(self, generations: Sequence[Generation]) -> Iterator[Json]:
        """Yield what ends a stream."""
        if self.order.usage:
            yield {**self._head(), "choices": [], "usage": self.usage(generations)}

    def _chunk(self, place: int, text: str, told: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": place, "text": text, "logprobs": told, "finish_reason": reason}
        usage = {"usage": None} if self.order.usage else {}
        return {**self._head(), "choices": [choice], **usage}

    def _columns(self, items: Sequence[Json], offset: int) -> Json:
        """Return tokens in columns; of candidates of one text the likeliest counts."""
        offsets = [offset]
        for item in items:
            offsets.append(offsets[-1] + len(item["text"]))
        return {
            "tokens": [item["token"] for item in items],
            "token_logprobs": [item["logprob"] for item in items],
            "top_logprobs": [
                {one["token"]: one["logprob"] for one in reversed(item["top_logprobs"])} for item in items
            ],
            "text_offset": offsets[: len(items)],
            **{name: [item[name] for item in items] for name in ("base_logprob", "reward", "weight")},
            "items": list(items),
        }

    def _head(self) -> Json:
        return {"id": f"cmpl-{self.name}", "object": "text_completion", "created": self.created, "model": self.model}


class ResponsesAnswer(Answer):
    """A response of /v1/responses: one message of one part, in numbered events if it is streamed."""

    number = -1
    written = ""

    def whole(self, generations: Sequence[Generation]) -> Json:
        """Return the answer."""
        (generation,) = generations
        return self._response(generation)

    def begin(self) -> Iterator[Json]:
        """Yield a stream's first events."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response(None))
        yield self._event("response.output_item.added", output_index=0, item=self._message(None))
        yield self._event("response.content_part.added", **self._place, part=self._part("", []))

    def token(self, place: int, step: Step) -> Iterator[Json]:
        """Yield what a token adds to a stream."""
        item = self.item(place, step)
        if step.text or item is not None:
            told = [] if item is None else [item]
            yield self._event("response.output_text.delta", **self._place, delta=step.text, logprobs=told)

    def ended(self, place: int, generation: Generation) -> Iterator[Json]:
        """Yield the events that end a message."""
        items = self.items(place, generation)
        yield self._event("response.output_text.done", **self._place, text=generation.text, logprobs=items)
        part = self._part(generation.text, items)
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=self._message(generation))

    def last(self, generations: Sequence[Generation]) -> Iterator[Json]:
        """Yield what ends a stream."""
        response = self.whole(generations)
        yield self._event(f"response.{response['status']}", response=response)

    @property
    def _place(self) -> Json:
        return {"item_id": f"msg_{self.name}", "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **content: Any) -> Json:
        self.number += 1
        return {"type": kind, "sequence_number": self.number, **content}

    def _part(self, text: str, items: list[Json]) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": items}

    def _message(self, generation: Generation | None) -> Json:
        parts = [] if generation is None else [self._part(generation.text, self.items(0, generation))]
        status = "in_progress" if generation is None else _status(generation)
        return {"id": f"msg_{self.name}", "type": "message", "role": "assistant", "status": status, "content": parts}

    def _response(self, generation: Generation | None) -> Json:
        request = self.order.requests[0]
        cut = generation is not None and generation.finish_reason == "length"
        usage, guidance = None, None
        if generation is not None:
            read, written = generation.prompt_tokens, len(generation.steps)
            usage = {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": written,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + written,
            }
            guidance = about_guidance(generation, request)
        return {
            "id": f"resp_{self.name}",
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if generation is None else _status(generation),
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": None,
            "max_output_tokens": request.max_new_tokens,
            "model": self.model,
            "output": [] if generation is None else [self._message(generation)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.method.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": request.method.top_p,
            "truncation": "disabled",
            "usage": usage,
            "metadata": {},
            "guidance": guidance,
        }


def _status(generation: Generation) -> str:
    return "incomplete" if generation.finish_reason == "length" else "completed"
