"""Guided decoding inside transformers' own `generate`.

guided                   generate(custom_generate=guided, guide=Guide(...)): midcourse's loop, all its settings
GuidedLogitsProcessor    generate(logits_processor=[...]): the guided scores only; generate draws from them
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import (
    BaseStreamer,
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from midcourse.decode.choice import kl_divergence
from midcourse.decode.engine import Engine
from midcourse.decode.methods import AnyMethod, Limits, Method, MethodError, check_limits
from midcourse.decode.methods import method as named_method
from midcourse.decode.policy import grouped, no_numbers
from midcourse.decode.request import as_guides, check_guides, check_room, settled
from midcourse.decode.steps import Failure, Guides, Row, Step
from midcourse.lm.caches import check_supported
from midcourse.lm.language_model import LanguageModel, LanguageModelRows
from midcourse.lm.prompt import Prefix, PromptError
from midcourse.lm.text import TextStream
from midcourse.rewards.contract import Reward, RewardRows, VocabularyRows, checked_rewards

# What shapes the distribution that generate draws from, and its value if nobody set it.
_SAMPLING = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "top_h": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_WARPERS = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TopHLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
)
_OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# What generate itself hands on for a row of token ids.
_TEXT_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
_FIRST_ROOM = 64  # tokens that a processor's caches have room for at first; they grow


@dataclass(frozen=True)
class Guide:
    """What guides a call of generate.

    Attributes:
        reward: a reward, or several as (reward, weight) pairs; None for method "plain".
        tokenizer: the language model's.
        method: a name from `METHODS`, or a `Method` of your own; block methods are for `midcourse.generate`.
        reward_weight, top_k, top_p, temperature: the method's settings (None: its own).
        kl_per_token, kl_budget: the most nats of guidance KL a token, or a response, may have.
        always_offer_eos: EOS is a candidate even if the LM does not rank it among the top k.
        seed: row i uses seed + i; None draws the seed from torch's global generator, so that `set_seed` reproduces.

    Examples:
        >>> guide = Guide(RewardModel.load("my-reward"), tokenizer, reward_weight=2.0)
        >>> model.generate(**inputs, custom_generate=guided, guide=guide, max_new_tokens=24)
    """

    reward: Reward | Guides | None
    tokenizer: PreTrainedTokenizerBase
    method: str | AnyMethod = "pargs"
    reward_weight: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    kl_per_token: float | None = None
    kl_budget: float | None = None
    always_offer_eos: bool = False
    seed: int | None = None

    @property
    def method_name(self) -> str:
        """Return the method's name for messages."""
        return self.method if isinstance(self.method, str) else type(self.method).__name__


def guided(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch tokens"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    guide: Guide | None = None,
    guided_streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Int[Tensor, "batch longer"] | GenerateDecoderOnlyOutput:
    """Decode by midcourse's loop inside `generate`, which calls this with the prompts padded on the left.

    The tokens are those of `midcourse.generate` with the same seeds. Rules:

        - The method says whether and from what tokens are drawn. Temperature, top-k, top-p and the like given to
          `generate` are refused (give them to `Guide`); the model's own defaults of them have no effect, nor have
          their warpers in `logits_processor`.
        - Every other logits processor, of the configuration or the user, runs on the whole batch before the short
          list, as in `generate`; what it sets to -inf stays impossible.
        - Stopping criteria are asked row by row, with scores None.
        - A token that ends texts in this call only is read by the reward as the text it is.
        - Row i uses seed + i; `num_return_sequences` makes rows of their own (generate wants do_sample=True with it).
        - A callable never gets `streamer=`, `tokenizer=` (so no `stop_strings=`) or `assistant_model=`: generate
          drops them. Use `guided_streamer=` and `StopStringCriteria`.

    Args:
        guide: what guides.
        guided_streamer: gets the prompt, then each token, as `streamer=` does otherwise; for a single row.

    Returns:
        Prompts and responses (batch, longest), padded on the right; with `return_dict_in_generate` in an output whose
        other fields are None.

    Raises:
        MethodError, PromptError, RewardError, UnsupportedModelError: what cannot be guided, before any decoding.

    Examples:
        >>> model.generate(**inputs, custom_generate=guided, guide=Guide(reward, tokenizer), max_new_tokens=24)
    """
    if guide is None:
        raise MethodError("guided decoding needs to know what guides; give generate guide=Guide(reward, tokenizer)")
    check_supported(model.config)
    _check_call(generation_config, model_kwargs)
    if guided_streamer is not None and len(input_ids) > 1:
        raise MethodError(f"a streamer shows one row, not {len(input_ids)}; stream a single prompt")
    lm = _language_model(model, guide)
    method, guides, limits = _settled(guide, lm)
    _check_sampling(generation_config, model.generation_config, method, guide)
    max_new_tokens = generation_config.max_length - input_ids.shape[1]
    prefixes = _prefixes(guide.tokenizer, _prompts(input_ids, model_kwargs.get("attention_mask")))
    _check_rooms(lm, guides, prefixes, max_new_tokens)

    seed = int(torch.randint(2**31, ())) if guide.seed is None else guide.seed
    criteria = StoppingCriteriaList(
        [criterion for criterion in stopping_criteria if not _is_the_loops(criterion, generation_config)]
    )
    ends = _eos_token_ids(generation_config)
    limits = replace(limits, always_offer_eos=limits.always_offer_eos and bool(ends))
    asked = (max_new_tokens, method, guides, limits)
    rows = [
        Row.begin(i, prefix, seed + i, _Ending(guide.tokenizer, input_ids[i : i + 1], criteria), *asked)
        for i, prefix in enumerate(prefixes)
    ]
    called = _CalledModel(
        lm.model,
        lm.tokenizer,
        lm.name,
        ends=frozenset(ends),
        processors=LogitsProcessorList([one for one in logits_processor if not isinstance(one, _WARPERS)]),
        input_ids=input_ids,
        pad_token_id=next(i for i in (generation_config.pad_token_id, *ends, 0) if i is not None),
        rows=rows,
    )
    _write(called, guided_streamer)
    sequences = _sequences(input_ids, rows, called.pad_token_id)
    return GenerateDecoderOnlyOutput(sequences=sequences) if generation_config.return_dict_in_generate else sequences


class GuidedLogitsProcessor(LogitsProcessor):
    """Guided scores for plain `generate`: the log-probabilities of the method's policy, -inf off its short list.

    Whether the likeliest token is taken or one is drawn is generate's choice (`do_sample`), so a greedy method samples
    its guided scores under `do_sample=True`. What generate applies after this processor changes the policy further:
    its temperature multiplies the method's, its top-k (50 if nobody set it) cuts a longer short list, and KL limits
    hold for the policy as it leaves here. What earlier processors set to -inf stays impossible.

    The rows under the reward are kept between steps and only new tokens are read. A call whose ids do not continue
    those of the last one starts anew. Beam search moves rows between steps and is refused when that is first seen;
    assisted decoding starts anew at every check of its draft, so leave it out.

    Args:
        guide: what guides; its seed has to be None, since generate draws.
        model: the language model whose `generate` is called.
        attention_mask: of the prompts, to know their left padding; the processor is for these prompts then. Without
            it leading padding tokens are taken for padding, which is wrong for prompts that begin with that token.

    Examples:
        >>> processor = GuidedLogitsProcessor(Guide(reward, tokenizer), model)
        >>> model.generate(**inputs, logits_processor=[processor], do_sample=True, max_new_tokens=24)
    """

    def __init__(self, guide: Guide, model: PreTrainedModel, attention_mask: Int[Tensor, "batch tokens"] | None = None):
        if guide.seed is not None:
            raise MethodError(f"seed {guide.seed} has no effect where generate draws; leave it out and use set_seed")
        self.guide = guide
        self.attention_mask = attention_mask
        self._lm = _language_model(model, guide)
        self._method, self._guides, self._limits = _settled(guide, self._lm)
        offered = self._limits.always_offer_eos and bool(self._lm.eos_token_ids)
        self._limits = replace(self._limits, always_offer_eos=offered)
        self._seen: Tensor | None = None  # the last step's ids
        self._width = 0  # of the prompts
        self._rows: list[Row] = []
        self._guide_rows: list[RewardRows] = []

    @torch.no_grad()
    def __call__(
        self, input_ids: Int[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return guided log-probabilities of the next token, in the dtype of `scores`.

        Args:
            input_ids: prompts, padded on the left, and responses so far.
            scores: the language model's logits or log-probabilities, perhaps after other processors.

        Raises:
            MethodError: the rows changed places, or the reward does not fit the method.
            PromptError: a prompt is all padding, or the next token would not fit the context.
        """
        # generate keeps ids and scores where the prompts were, which may be another device than the model's.
        device = self._lm.model.device
        self._follow(input_ids.to(device))
        logprobs = scores.to(device).log_softmax(1)
        (group,) = grouped(self._rows, sorted(self._lm.eos_token_ids), device, logprobs.dtype)
        ranking = [rows for rows in self._guide_rows if isinstance(rows, VocabularyRows)]
        spoken: list[Tensor] = []
        if group.method.ranked_by == "sum":
            spoken = [
                checked_rewards(reward, "vocabulary_rewards", rows.vocabulary_rewards(), logprobs.shape)
                for reward, rows in zip(group.rewards, ranking, strict=True)
            ]
        candidates = group.offer(logprobs, spoken)
        base = group.base(candidates)
        rewards = [given.gather(1, candidates.token_ids) for given in spoken]
        if group.rewards and not spoken:
            ids = candidates.token_ids
            rewards = [
                checked_rewards(reward, "candidate_rewards", rows.candidate_rewards(ids), ids.shape)
                for reward, rows in zip(group.rewards, self._guide_rows, strict=True)
            ]
        policy, _ = group.policy(candidates, rewards, base, [False] * len(self._rows))
        if self._limits.kl_budget is not None:
            for row, spent in zip(self._rows, kl_divergence(policy, base).tolist(), strict=True):
                row.spent += spent
        # The larger if a token has two places: one of EOS's may be empty.
        guided = torch.full_like(logprobs, float("-inf"), dtype=policy.dtype)
        guided = guided.scatter_reduce(1, candidates.token_ids, policy, "amax")
        # A finished row may have no possible token left; generate ignores what it gets.
        impossible = (scores == float("-inf")).all(1, keepdim=True)
        for place, error in no_numbers(self._lm, group, candidates, rewards, policy, {}).items():
            if not bool(impossible[place]):
                raise error
        return torch.where(impossible, scores, guided.to(scores))

    def _follow(self, input_ids: Tensor) -> None:
        """Bring the reward's rows to these ids."""
        before = input_ids[:, :-1]
        if self._seen is None or before.shape != self._seen.shape:
            self._begin(input_ids)
        elif torch.equal(before, self._seen):
            new_tokens = input_ids.shape[1] - self._width + 1
            _check_rooms(self._lm, self._guides, [row.prefix for row in self._rows], new_tokens)
            for rows in self._guide_rows:
                rows.advance(input_ids[:, -1])
        elif bool((before[:, None] == self._seen).all(2).any(1).all()):
            raise MethodError(
                "the rows changed places between two steps, as in beam search, which guided decoding has not; "
                "use num_beams=1"
            )
        else:
            self._begin(input_ids)
        self._seen = input_ids.clone()

    def _begin(self, input_ids: Tensor) -> None:
        prefixes = _prefixes(self.guide.tokenizer, _prompts(input_ids, self._mask(input_ids)))
        _check_rooms(self._lm, self._guides, prefixes, 1)
        no_text = TextStream(self.guide.tokenizer)
        room = (self._method.top_k or 0) + (len(self._lm.eos_token_ids) if self._limits.always_offer_eos else 0)
        asked = (self._method, self._guides, self._limits)
        self._rows = [Row.begin(i, prefix, 0, no_text, 0, *asked) for i, prefix in enumerate(prefixes)]
        self._guide_rows = [reward.start(prefixes, _FIRST_ROOM, room) for reward, _ in self._guides]
        self._width = input_ids.shape[1]

    def _mask(self, input_ids: Tensor) -> Tensor | None:
        """Return which of the prompts' tokens are no padding; None if all are."""
        if self.attention_mask is not None:
            copies, rest = divmod(len(input_ids), len(self.attention_mask))
            if rest or self.attention_mask.shape[1] != input_ids.shape[1]:
                raise MethodError(
                    f"the attention mask is of {tuple(self.attention_mask.shape)} tokens, the prompts are "
                    f"{tuple(input_ids.shape)}; make a processor with the mask of these prompts"
                )
            return self.attention_mask.repeat_interleave(copies, 0).to(input_ids.device)
        pad = self.guide.tokenizer.pad_token_id
        return None if pad is None else (input_ids != pad).cumsum(1) > 0


@dataclass(frozen=True, eq=False, kw_only=True)
class _CalledModel(LanguageModel):
    """The model as one call of generate has it: with ends of texts and logits processors of its own.

    Attributes:
        input_ids: the call's prompts, padded on the left.
        rows: all rows of the call, in the order of the prompts.
    """

    ends: frozenset[int]
    processors: LogitsProcessorList
    input_ids: Tensor
    pad_token_id: int
    rows: list[Row]

    @cached_property
    def eos_token_ids(self) -> frozenset[int]:
        return self.ends

    def start(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, layers: Sequence[int] = ()
    ) -> "_ProcessedRows":
        return _ProcessedRows(self, prompts, max_new_tokens, layers)


class _ProcessedRows(LanguageModelRows):
    """Rows whose logits pass the call's processors, which see the whole batch as in generate: padded, none leaving.

    Some of them hold a number for each row of the batch, and most are defined on logits, not log-probabilities.

    Attributes:
        live: the rows that are not finished, by their place in the call.
        sequences: of all rows, as generate would hold them.
    """

    def __init__(
        self, lm: _CalledModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, layers: Sequence[int] = ()
    ):
        self.lm = lm
        self.live = list(range(len(prompts)))
        self.sequences = lm.input_ids
        super().__init__(lm.model, prompts, max_new_tokens, layers)

    def step(self, token_ids: Int[Tensor, " batch"]) -> None:
        count = max(len(row.steps) for row in self.lm.rows)
        newest = [row.steps[-1].token_id if len(row.steps) == count else self.lm.pad_token_id for row in self.lm.rows]
        self.sequences = torch.cat([self.sequences, self.sequences.new_tensor(newest)[:, None]], 1)
        super().step(token_ids)

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        self.live = [self.live[row] for row in rows]

    def _read(self, logits: Float[Tensor, "live vocab"]) -> Float[Tensor, "live vocab"]:
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        everyone = scores.new_zeros(len(self.lm.rows), scores.shape[1])
        everyone[self.live] = scores
        # Processors are made for the device of the prompts.
        everyone = self.lm.processors(self.sequences, everyone.to(self.sequences.device))
        scores = everyone[self.live].to(scores.device)
        for place, impossible in zip(self.live, (scores == float("-inf")).all(1).tolist(), strict=True):
            if impossible:
                raise MethodError(
                    f"the logits processors leave prompt {place + 1} no token at step "
                    f"{len(self.lm.rows[place].steps) + 1}; they have to leave at least one"
                )
        return scores.log_softmax(-1)


class _Ending(TextStream):
    """A stand-in for a row's text, which nobody reads here: it ends the row if a stopping criterion says so."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, token_ids: Tensor, criteria: StoppingCriteriaList):
        super().__init__(tokenizer)
        self.token_ids = token_ids
        self.criteria = criteria

    def push(self, token_id: int) -> str:
        if self.criteria:
            self.token_ids = torch.cat([self.token_ids, self.token_ids.new_tensor([[token_id]])], 1)
            self.stopped = bool(self.criteria(self.token_ids, None).all())
        return ""


def _write(called: _CalledModel, streamer: Any) -> None:
    """Write the rows of a call to their ends; the streamer, if there is one, gets the prompt and then each token."""
    if streamer is not None:
        streamer.put(called.input_ids.cpu())
    engine = Engine(called, len(called.rows))
    for row in called.rows:
        engine.put(row)
    while engine:
        for _, event in engine.step():
            if isinstance(event, Failure):
                raise event.error
            if streamer is not None and isinstance(event, Step):
                streamer.put(torch.tensor([event.token_id]))
    if streamer is not None:
        streamer.end()


def _language_model(model: PreTrainedModel, guide: Guide) -> LanguageModel:
    return LanguageModel(model, guide.tokenizer, model.name_or_path or "model")


def _check_rooms(lm: LanguageModel, guides: Guides, prefixes: Sequence[Prefix], new_tokens: int) -> None:
    for number, prefix in enumerate(prefixes, 1):
        check_room(lm, [reward for reward, _ in guides], prefix, new_tokens, number)


def _settled(guide: Guide, lm: LanguageModel) -> tuple[Method, Guides, Limits]:
    """Return the method with the guide's settings, the rewards as they read this model's tokens, and the limits."""
    method = named_method(guide.method) if isinstance(guide.method, str) else guide.method
    if not isinstance(method, Method):
        raise MethodError(
            f"method {guide.method_name} guides whole blocks, which generate cannot host; use midcourse.generate"
        )
    settings = {key: getattr(guide, key) for key in ("reward_weight", "top_k", "top_p", "temperature")}
    limits = Limits(guide.always_offer_eos, guide.kl_per_token, guide.kl_budget)
    method, guides = settled(guide.method, settings, as_guides(guide.reward))
    assert isinstance(method, Method)
    check_limits(method, guide.method_name, limits)
    check_guides(method, guide.method_name, guides)
    return method, [(reward.bind(lm), weight) for reward, weight in guides], limits


def _check_call(config: GenerationConfig, model_kwargs: dict[str, Any]) -> None:
    """Raise MethodError on what generate was asked for and guided decoding has not."""
    if config.num_beams is not None and config.num_beams > 1:
        raise MethodError(f"num_beams {config.num_beams} asks for beam search, which guided decoding has not; use 1")
    mode = config.get_generation_mode().value
    if mode not in ("sample", "greedy_search"):
        raise MethodError(
            f"generate was asked for {mode.replace('_', ' ')}, which guided decoding replaces; leave its settings out"
        )
    if strange := sorted(key for key in model_kwargs.keys() - _TEXT_INPUTS if model_kwargs[key] is not None):
        raise MethodError(f"guided decoding reads token ids only, not {', '.join(strange)}; leave them out")
    wanted = [name for name in _OUTPUTS if getattr(config, name)]
    if config.return_dict_in_generate and wanted:
        raise MethodError(f"guided decoding returns sequences only, no {wanted[0]}; leave it out")


def _check_sampling(config: GenerationConfig, default: GenerationConfig, method: Method, guide: Guide) -> None:
    """Raise MethodError on a sampling setting that was given to this call and would have no effect."""
    for name, unset in _SAMPLING.items():
        usual = getattr(default, name, None)
        if getattr(config, name, None) not in (None, unset if usual is None else usual):
            remedy = f"give it to Guide({name}=...)" if hasattr(guide, name) else "leave it out"
            raise MethodError(f"{name} {getattr(config, name)} of generate has no effect on guided decoding; {remedy}")
    if config.do_sample != bool(default.do_sample) and config.do_sample == method.greedy:
        habit = "takes the likeliest token" if method.greedy else "samples"
        raise MethodError(
            f"do_sample={config.do_sample} contradicts method {guide.method_name}, which {habit} here; "
            f"leave it out, or use {'pargs' if method.greedy else 'pargs-greedy'}"
        )


def _eos_token_ids(config: GenerationConfig) -> list[int]:
    """Return every token that ends a response in this call, in the given order."""
    given = config.eos_token_id
    if given is None:
        return []
    return torch.as_tensor(given).reshape(-1).tolist()


def _is_the_loops(criterion: StoppingCriteria, config: GenerationConfig) -> bool:
    """Return whether the loop ends rows by this criterion anyway, so that it need not be asked at every token."""
    if isinstance(criterion, MaxLengthCriteria):
        return criterion.max_length == config.max_length
    return isinstance(criterion, EosTokenCriteria) and set(criterion.eos_token_id.tolist()) <= {*_eos_token_ids(config)}


def _prompts(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """Return each row's token ids without its left padding."""
    if attention_mask is None:
        return input_ids.tolist()
    mask = attention_mask.bool()
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise PromptError("the attention mask hides tokens after a row's first; pad with padding_side='left'")
    rows = [ids[seen].tolist() for ids, seen in zip(input_ids, mask, strict=True)]
    if [] in rows:
        raise PromptError(f"row {rows.index([]) + 1} of input_ids is all padding; give every row a prompt")
    return rows


def _prefixes(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
    """Return the prompts with their texts, which rewards of texts read."""
    return [Prefix(tokenizer.decode(ids, skip_special_tokens=True), ids) for ids in prompts]


def _sequences(input_ids: Tensor, rows: Sequence[Row], pad_token_id: int) -> Tensor:
    """Return prompts and responses, padded on the right."""
    longest = max(len(row.steps) for row in rows)
    responses = [[step.token_id for step in row.steps] for row in rows]
    padded = [ids + [pad_token_id] * (longest - len(ids)) for ids in responses]
    return torch.cat([input_ids, input_ids.new_tensor(padded)], 1)
