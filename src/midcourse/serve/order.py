"""From the three wire forms to requests of the engine: the one place where they are understood and limited."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from midcourse.decode.methods import Method
from midcourse.decode.request import Request, agreed_template
from midcourse.integrations.grammar import json_grammar
from midcourse.lm.prompt import Message, Prompt, Template, prompt_ids
from midcourse.serve import wire
from midcourse.serve.errors import RequestError
from midcourse.serve.served import Asked, Served, short
from midcourse.serve.wire import ChatRequest, Choices, CompletionRequest, Guidance, ResponsesRequest, Sampling

# Settings of a method that a client may give, by the names of `midcourse.generate`.
_OF_METHOD = ("samples", "block_tokens", "reward_threshold", "entropy_threshold")
_LIMITS = ("kl_per_token", "kl_budget", "skip_tolerance", "always_offer_eos")


@dataclass(frozen=True)
class Order:
    """What a client ordered.

    Attributes:
        requests: of the engine, one for each choice.
        choices: how many there are of each prompt.
        stream: tell of every token.
        usage: end a stream with how many tokens there were.
        top_logprobs: how many candidates to tell of with each token; None to tell nothing of tokens.
        echo: begin the text with the prompt.
        max_tokens: what the client asked for; 0 for nothing but the prompt.
    """

    requests: tuple[Request, ...]
    choices: int = 1
    stream: bool = False
    usage: bool = False
    top_logprobs: int | None = None
    echo: bool = False
    max_tokens: int | None = None


def chat_order(asked: ChatRequest, served: Served) -> Order:
    """Return what a chat completion asks for."""
    schema = asked.response_format.schema_of_response if asked.response_format else None
    messages = messages_of(asked.messages)
    limit = asked.max_completion_tokens or asked.max_tokens
    requests = _requests(asked, served, [messages], asked.n or 1, limit, _stops(asked), schema)
    shown = (asked.top_logprobs or 0) if asked.logprobs else None
    return Order(requests, asked.n or 1, bool(asked.stream), _usage(asked), shown)


def completion_order(asked: CompletionRequest, served: Served) -> Order:
    """Return what a completion asks for."""
    requests = _requests(asked, served, _prompts(asked, served), asked.n or 1, asked.max_tokens or 1, _stops(asked))
    echo = bool(asked.echo)
    return Order(
        requests, asked.n or 1, bool(asked.stream), _usage(asked), asked.logprobs, echo, max_tokens=asked.max_tokens
    )


def responses_order(asked: ResponsesRequest, served: Served) -> Order:
    """Return what a response asks for: a chat completion in other words."""
    told = [message_of("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        messages = [*told, message_of("user", asked.input)]
    else:
        messages = [*told, *messages_of(asked.input)]
    form = asked.text.format if asked.text else None
    schema = None if form is None or form.type == "text" else form.schema_ or {"type": "object"}
    requests = _requests(asked, served, [messages], 1, asked.max_output_tokens, (), schema)
    shown = "message.output_text.logprobs" in (asked.include or ()) or asked.top_logprobs is not None
    return Order(requests, stream=bool(asked.stream), top_logprobs=(asked.top_logprobs or 0) if shown else None)


def messages_of(given: Sequence[wire.Message]) -> list[Message]:
    """Return a client's messages for a chat template."""
    return [message_of(one.role, one.text) for one in given]


def message_of(role: str, text: str) -> Message:
    """Return a message for a chat template, which knows no developers."""
    return {"role": "system" if role == "developer" else role, "content": text}


def _prompts(asked: CompletionRequest, served: Served) -> list[Prompt | tuple[int, ...]]:
    """Return the prompts of a completion: texts, or token ids as tuples."""
    given: Any = asked.prompt
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        given = [given]
    if isinstance(given[0], str):
        return list(given)
    size = len(served.lm.tokenizer)
    if strange := [one for ids in given for one in ids if not 0 <= one < size]:
        raise RequestError(f"the token id {strange[0]} is none of the model's {size}; send others", param="prompt")
    return [tuple(ids) for ids in given]


def _usage(asked: Choices) -> bool:
    return asked.stream_options is not None and asked.stream_options.include_usage


def _stops(asked: Choices) -> tuple[str, ...]:
    return (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())


def _requests(
    asked: Sampling,
    served: Served,
    prompts: Sequence[Prompt | tuple[int, ...]],
    choices: int,
    limit: int | None,
    stop: tuple[str, ...],
    schema: dict[str, Any] | None = None,
) -> tuple[Request, ...]:
    """Return the requests for some prompts, so many for each; choice i has the seed `seed` + i."""
    bounds = served.bounds
    if choices * len(prompts) > bounds.choices:
        count = choices * len(prompts)
        raise RequestError(f"{count} responses are more than the {bounds.choices} that are written at once", param="n")
    if limit is not None and limit > bounds.max_new_tokens:
        raise RequestError(
            f"{limit} tokens are more than the {bounds.max_new_tokens} that this server writes; ask for fewer",
            param="max_tokens",
        )
    grammar = None if schema is None else json_grammar(served.lm.tokenizer, schema, served.lm.eos_token_ids)
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    settings = _settings(asked, served)
    made: list[Request] = []
    for prompt in prompts:
        template = _template(prompt, settings["reward"])
        text, ids = (served.lm.tokenizer.decode(prompt), prompt) if isinstance(prompt, tuple) else (prompt, None)
        length = len(ids or prompt_ids(served.lm.tokenizer, text, template))
        room = served.lm.context_length - length
        if room < (limit or 1):
            raise RequestError(
                f"the prompt has {length} tokens, which with {limit or 1} new ones exceed the model's context of "
                f"{served.lm.context_length}; shorten it or ask for fewer",
                param="prompt" if template == "raw" else "messages",
            )
        made += [
            Request.of(
                text,
                **settings,
                template=template,
                prompt_ids=ids,
                max_new_tokens=limit or min(bounds.max_new_tokens, room),
                stop=stop,
                seed=seed + len(made) + place,
                logits_processor=grammar,
            )
            for place in range(choices)
        ]
    return tuple(made)


def _template(prompt: Prompt | tuple[int, ...], guides: Any) -> Template:
    """Return how a prompt is rendered: messages by the chat template, texts as they stand."""
    wanted: Template = "raw" if isinstance(prompt, str | tuple) else "chat"
    for reward, _ in guides or ():
        if reward.template not in (None, "mixed", wanted):
            other = "/v1/completions" if reward.template == "raw" else "/v1/chat/completions"
            raise RequestError(
                f"a reward here was trained with template {reward.template!r}; ask for it at {other}", param="guidance"
            )
    return agreed_template(guides or (), wanted)


def _settings(asked: Sampling, served: Served) -> dict[str, Any]:
    """Return the settings of `Request.of` that say what guides, and how tokens are drawn."""
    guidance = asked.guidance or Guidance()
    named = served.parse(asked.model)
    own = guidance.rewards if isinstance(guidance.rewards, dict) else dict.fromkeys(guidance.rewards)
    if named.rewards and own:
        raise RequestError(
            f"the model {short(asked.model or '')} and guidance both name rewards; leave them out of one",
            param="guidance.rewards",
        )
    if named.method and guidance.method:
        raise RequestError("the model and guidance both name a method; leave one of them out", param="guidance.method")
    which = Asked(named.rewards or own, named.method or guidance.method)
    name, method, guides, weight = served.guides(which, guidance.reward_weight)
    drawn = {"temperature": asked.temperature, "top_p": asked.top_p}
    if weight == 0 or (guides and all(own == 0 for _, own in guides)) or (not guides and name in (None, "plain")):
        # The model itself: its whole vocabulary, unless something else is asked for.
        return {"reward": None, "method": Method(None, reward_weight=0.0, top_k=guidance.top_k or None), **drawn}
    of_method = {setting: getattr(guidance, setting) for setting in _OF_METHOD}
    limits = {setting: getattr(guidance, setting) for setting in _LIMITS}
    return {
        "reward": guides,
        "method": replace(method, top_k=None) if guidance.top_k == 0 else name,
        "reward_weight": weight,
        "top_k": guidance.top_k or None,
        **drawn,
        **of_method,
        **limits,
    }
