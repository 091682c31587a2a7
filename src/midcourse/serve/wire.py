"""What clients may send: OpenAI's chat completions, completions and responses, each with what guides beside it.

Fields that nobody here knows are ignored, as other servers do; those of OpenAI's that would change the answer and
cannot be done are refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(max_length=2**20)]
Role = Annotated[str, Field(min_length=1, max_length=64)]
Seed = Annotated[int, Field(ge=0, lt=2**62)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class Wire(BaseModel):
    """What all forms have in common: values are of their very types, and numbers are finite."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Guidance(Wire):
    """What guides a response, as in `midcourse guide`."""

    model_config = ConfigDict(extra="forbid")

    rewards: dict[str, Weight] | list[str] = Field(
        default_factory=dict, description="Rewards by name with their weights, or names alone: at their own weights."
    )
    method: Annotated[str, Field(max_length=64)] | None = Field(
        default=None, description="See GET /v1/models; pargs by default."
    )
    reward_weight: Weight | None = Field(default=None, description="Multiplies all rewards.")
    top_k: Annotated[int, Field(ge=0, le=2**20)] | None = Field(
        default=None, description="Candidates per token; 0 for the whole vocabulary."
    )
    kl_per_token: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Nats that a token may be moved by."
    )
    kl_budget: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Nats that a response may be moved by."
    )
    skip_tolerance: Annotated[float, Field(ge=0, lt=1)] | None = None
    always_offer_eos: bool = False
    samples: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="Of best-of-n and cd-blockwise."
    )
    block_tokens: Annotated[int, Field(ge=1, le=1024)] | None = Field(default=None, description="Of cd-blockwise.")
    reward_threshold: float | None = Field(default=None, description="Of cards.")
    entropy_threshold: float | None = Field(default=None, description="Of cards.")


class StreamOptions(Wire):
    """What a stream holds besides."""

    include_usage: bool = False


class JsonSchema(Wire):
    """A schema that the response keeps to."""

    name: str = "response"
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Wire):
    """What a response has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema; give both, or none")
        return self

    @property
    def schema_of_response(self) -> dict[str, Any] | None:
        """Return the schema of a response; None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class Sampling(Wire):
    """How a response is drawn."""

    model: Annotated[str, Field(max_length=1000)] | None = Field(
        default=None, description='The model; with what guides as "MODEL+REWARD=WEIGHT@METHOD".'
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        default=None, description="0 takes the likeliest token."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = Field(
        default=None, description="Choice i uses seed + i; drawn by the server if it is not given."
    )
    stream: bool | None = False
    guidance: Guidance | None = None


class Choices(Sampling):
    """What chat completions and completions have in common."""

    n: Annotated[int, Field(ge=1, le=1024)] | None = 1
    stop: Annotated[str, Field(min_length=1, max_length=1000)] | Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)
    ] | None = None  # fmt: skip
    max_tokens: Count | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Choices":
        refuse(self, frequency_penalty=(0, None), presence_penalty=(0, None), logit_bias=({}, None))
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream; set stream to true, or leave stream_options out")
        return self


class Part(Wire):
    """A part of a message."""

    type: Annotated[str, Field(max_length=64)] = "text"
    text: Text | None = None

    @model_validator(mode="after")
    def _is_text(self) -> "Part":
        if self.type not in ("text", "input_text", "output_text") or self.text is None:
            raise ValueError(f"a part of type {self.type!r} cannot be read; send parts of text")
        return self


class Message(Wire):
    """A message of a conversation."""

    role: Role
    content: Text | list[Part]
    tool_calls: list[Any] | None = None

    @model_validator(mode="after")
    def _possible(self) -> "Message":
        refuse(self, tool_calls=([], None))
        return self

    @property
    def text(self) -> str:
        """Return its text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or "" for part in self.content)


class ChatRequest(Choices):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    store: bool | None = None

    @model_validator(mode="after")
    def _chat(self) -> "ChatRequest":
        refuse(self, tools=([], None), functions=([], None), store=(False, None))
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs; set logprobs to true, or leave top_logprobs out")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self


class CompletionRequest(Choices):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=256)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1, max_length=256)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _completion(self) -> "CompletionRequest":
        refuse(self, suffix=("", None))
        if self.best_of not in (None, self.n or 1):
            raise ValueError('best_of is not supported; guide with {"method": "best-of-n", "samples": ...} instead')
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which asks for no token; use 1 or more, or echo")
        if self.echo and self.stream:
            raise ValueError("echo and stream do not go together; leave one of them out")
        return self


class TextFormat(Wire):
    """What a response of /v1/responses has to be: its schema stands beside its type."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "response"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _whole(self) -> "TextFormat":
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError("schema goes with type json_schema; give both, or none")
        return self


class TextOptions(Wire):
    """Settings of a response's text."""

    format: TextFormat | None = None


class ResponsesRequest(Sampling):
    """POST /v1/responses, which keeps nothing: send the whole conversation."""

    input: Text | Annotated[list[Message], Field(min_length=1, max_length=4096)]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None
    text: TextOptions | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    store: bool | None = None
    tools: list[Any] | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _responses(self) -> "ResponsesRequest":
        refuse(
            self,
            previous_response_id=(None,),
            conversation=(None,),
            background=(False, None),
            store=(False, None),
            tools=([], None),
        )
        return self


class PoolingRequest(Wire):
    """POST /pooling: a reward for every token, in vLLM's shape (token_classify)."""

    model: Annotated[str, Field(max_length=1000)] = Field(description="The reward.")
    input: Text | Annotated[list[Text], Field(min_length=1)] | None = Field(default=None, description="Texts.")
    prompt: Text = Field(default="", description="What the texts of input continue.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="A conversation, whose last message is rewarded."
    )
    task: Literal["token_classify"] = "token_classify"

    @model_validator(mode="after")
    def _one_of_them(self) -> "PoolingRequest":
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self


class ScoreRequest(Wire):
    """POST /score: the reward of whole responses."""

    model: Annotated[str, Field(max_length=1000)] = Field(description="The reward.")
    prompt: Text | Annotated[list[Message], Field(min_length=1, max_length=4096)] = ""
    response: Text | Annotated[list[Text], Field(min_length=1)]
    finished: bool = Field(default=True, description="Whether the responses end; if not, they are beginnings.")


class DetectRequest(Wire):
    """POST /detect: whether a machine wrote texts, a person, or that this cannot be told."""

    text: Text | Annotated[list[Text], Field(min_length=1)]
    fpr: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    guarantee: Literal["average", "confidence"] = "average"
    group: Annotated[str, Field(max_length=1000)] | None = None


class TokenizeRequest(Wire):
    """POST /tokenize: the tokens of a prompt, in vLLM's shape."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


def refuse(request: BaseModel, **allowed: tuple[Any, ...]) -> None:
    """Raise ValueError if a field has another value than these, which could not be honoured."""
    for name, values in allowed.items():
        if getattr(request, name) not in values:
            raise ValueError(f"{name} is not supported; leave it out")
