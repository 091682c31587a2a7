"""For tests of rewards: tiny language models, rewards known by hand, and the laws that every reward has to keep.

    lm = tiny_language_model("llama")
    assert_laws(MyReward(), lm, ["The ferry was late, and", "A"], [" we loved it.", " no"])

Each `assert_...` function states one law and raises AssertionError if a reward breaks it. Tokens are compared
exactly, so run them on models in float64: in float32 two candidates may tie.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from midcourse.decode.engine import generate
from midcourse.decode.methods import Method
from midcourse.decode.steps import Generation
from midcourse.lm.contract import CausalModel, CausalRows
from midcourse.lm.language_model import LanguageModel, chat_fingerprint, tokenizer_fingerprint
from midcourse.lm.prompt import Prefix, Prompt, Template, prompt_ids, response_ids
from midcourse.reference import pargs
from midcourse.rewards.backbone import Tuning, with_adapter
from midcourse.rewards.contract import FollowedRows, Reward, RewardRows, Score, StateReader
from midcourse.rewards.info import RewardError, RewardInfo
from midcourse.rewards.scalar import RewardModel
from midcourse.rewards.trained_vocabulary import TrainedVocabularyReward
from midcourse.rewards.trunk import TrunkReward
from midcourse.rewards.vocabulary import VocabularyReward

Architecture: TypeAlias = Literal["llama", "qwen3", "gemma3", "gpt2", "mistral"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

BOS, EOS, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CONTEXT = 256
WINDOW = 6  # of the sliding-window layers: shorter than most test prompts

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Tiny models


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer whose token n is byte n (0 to 255); then BOS, EOS and PAD, with a ChatML-like chat template."""
    characters = _byte_characters()
    backend = Tokenizer(models.BPE(vocab={character: byte for byte, character in enumerate(characters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, chat_template=_CHAT_TEMPLATE
    )


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte in byte-level BPE: itself if it prints, else one from 256 on."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


def tiny_language_model(
    architecture: Architecture = "llama",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    layers: int = 3,
    more_eos: Sequence[int] = (),
    attention: str = "sdpa",
) -> LanguageModel:
    """Make a language model of random weights over bytes; it reads 256 tokens at most.

    Gemma-3 has sliding-window and full layers, Mistral a window in all of them.

    Args:
        more_eos: token ids that end a response besides the tokenizer's EOS.
    """
    tokenizer = byte_tokenizer()
    model = _random(AutoModelForCausalLM, tiny_config(architecture, layers), dtype, seed, attention)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, *more_eos],
        pad_token_id=tokenizer.pad_token_id,
    )
    return LanguageModel(model, tokenizer, f"tiny {architecture}")


def tiny_reward(
    architecture: Architecture = "llama",
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
    layers: int = 2,
    template: Template = "raw",
    tune: str = "head",
    more_eos: Sequence[int] = (),
    attention: str = "sdpa",
) -> RewardModel:
    """Make a scalar reward of random weights, for the models of `tiny_language_model`."""
    tokenizer = byte_tokenizer()
    backbone = _random(AutoModel, tiny_config(architecture, layers), dtype, seed, attention)
    info = RewardInfo(
        backbone=f"tiny {architecture}",
        backbone_fingerprint="",
        layers=layers,
        tune=tune,
        template=template,
        objective="prefix",
        eos_token_id=tokenizer.eos_token_id,
        eos_token_ids=tuple(sorted({tokenizer.eos_token_id, *more_eos})),
        tokenizer=tokenizer_fingerprint(tokenizer),
        chat_template=None if template == "raw" else chat_fingerprint(tokenizer),
    )
    reward = RewardModel(with_adapter(backbone, Tuning.parse(tune)), tokenizer, info)
    randomise(reward, seed + 1)
    return reward.eval()


def tiny_vocabulary_reward(
    architecture: Architecture = "llama",
    dtype: torch.dtype = torch.float64,
    seed: int = 3,
    layers: int = 2,
    template: Template = "raw",
    more_eos: Sequence[int] = (),
    normalised: bool = True,
) -> VocabularyReward:
    """Make a vocabulary reward of random weights, for the models of `tiny_language_model`."""
    lm = tiny_language_model(architecture, dtype, seed, layers, more_eos)
    return VocabularyReward(lm.model, lm.tokenizer, template=template, normalised=normalised, name=lm.name)


def tiny_trained_vocabulary_reward(
    architecture: Architecture = "llama",
    dtype: torch.dtype = torch.float64,
    seed: int = 5,
    layers: int = 2,
    template: Template = "raw",
    tune: str = "head",
    more_eos: Sequence[int] = (),
    objective: str = "farma",
) -> TrainedVocabularyReward:
    """Make a vocabulary reward as `midcourse train` does, of random weights, for the models of `tiny_language_model`.

    Args:
        objective: "autoregressive" makes the rewards log-probabilities.
    """
    like = tiny_reward(architecture, dtype, seed, layers, template, tune, more_eos)
    info = replace(like.info, objective=objective, head="vocabulary")
    reward = TrainedVocabularyReward(like.backbone, like.tokenizer, info)
    randomise(reward, seed + 1)
    if not reward.backbone.config.tie_word_embeddings:
        reward.output.data.copy_(like.backbone.get_input_embeddings().weight.flip(0))
    return reward.eval()


def tiny_trunk_reward(
    lm: LanguageModel, seed: int = 1, layers: int = 2, rank: int = 4, template: Template = "raw"
) -> TrunkReward:
    """Make a trunk reward of random weights on the states of a tiny language model after some of its layers."""
    config = copy.deepcopy(lm.model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    backbone = AutoModel.from_config(config, attn_implementation="sdpa", dtype=lm.model.dtype)
    backbone.load_state_dict(lm.model.base_model.state_dict(), strict=False)
    info = RewardInfo(
        backbone=lm.name,
        backbone_fingerprint="",
        layers=layers,
        tune="head",
        template=template,
        objective="prefix",
        eos_token_id=lm.tokenizer.eos_token_id,
        eos_token_ids=tuple(sorted(lm.eos_token_ids)),
        tokenizer=tokenizer_fingerprint(lm.tokenizer),
        chat_template=None if template == "raw" else chat_fingerprint(lm.tokenizer),
        head=f"trunk:{rank}",
        backbone_layers=lm.model.config.num_hidden_layers,
    )
    reward = TrunkReward(backbone, lm.tokenizer, info)
    randomise(reward, seed)
    return reward.eval()


def tiny_config(architecture: Architecture, layers: int) -> PretrainedConfig:
    """Return the configuration of a tiny model over bytes."""
    tokenizer = byte_tokenizer()
    ends: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "gpt2":
        return GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=CONTEXT, **ends)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        **ends,
    }
    if architecture == "gemma3":
        kinds = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)]
        return Gemma3TextConfig(sliding_window=WINDOW, layer_types=kinds, query_pre_attn_scalar=8, **sizes)
    if architecture == "mistral":
        return MistralConfig(sliding_window=WINDOW, **sizes)
    return {"llama": LlamaConfig, "qwen3": Qwen3Config}[architecture](**sizes)


def randomise(model: nn.Module, seed: int) -> None:
    """Fill every weight that may be trained with random numbers, large enough that every part of a row matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(noise if parameter.ndim > 1 else parameter.cpu() + noise)


def _random(auto_class: Any, config: PretrainedConfig, dtype: torch.dtype, seed: int, attention: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        model = auto_class.from_config(config, attn_implementation=attention, dtype=dtype)
    randomise(model, seed)
    return model.eval()


# A reward known by hand


def position_sum(ids: Sequence[int]) -> float:
    """Return (1 id_1 + 2 id_2 + ... + n id_n) mod 17, divided by 8: easy by hand, and exact in float32."""
    return sum(i * token for i, token in enumerate(ids, 1)) % 17 / 8


class KnownReward(Reward):
    """A reward in plain Python: `value` of the token ids of prompt and response. It satisfies `Reward`.

    Args:
        value: token ids of a prefix -> its reward. Any EOS is the tokenizer's EOS there.
        more_eos: token ids that end a response besides the tokenizer's EOS.
    """

    speaks_for_vocabulary = True
    template: Template = "raw"

    def __init__(
        self,
        value: Callable[[Sequence[int]], float] = position_sum,
        tokenizer: PreTrainedTokenizerBase | None = None,
        template: Template = "raw",
        more_eos: Sequence[int] = (),
    ):
        self.value = value
        self.tokenizer = tokenizer or byte_tokenizer()
        self.template = template
        self.more_eos = frozenset(more_eos)

    @property
    def score_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the reward's own tokenizer."""
        return self.tokenizer

    def bind(self, lm: CausalModel) -> "KnownReward":
        """Return itself: it can guide any LM with its tokenizer."""
        if tokenizer_fingerprint(self.tokenizer) != lm.tokens:
            raise RewardError(f"this known reward reads other tokens than {lm.name} writes; give it that tokenizer")
        return self

    def start(self, prefixes: Sequence[Prefix], max_new_tokens: int, candidates: int) -> "KnownRows":
        """Remember the prefixes; see `Reward.start`."""
        return KnownRows(self, prefixes)

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Return the reward of every prefix of whole texts, each ended by EOS."""
        return [self._score(*texts) for texts in zip(prompts, responses, strict=True)]

    def _score(self, prompt: Prompt, response: str) -> Score:
        before = prompt_ids(self.tokenizer, prompt, self.template)
        ids = response_ids(self.tokenizer, response, finished=True)
        texts = tuple(self.tokenizer.decode([token]) for token in ids)
        return Score(tuple(ids), texts, tuple(self.value([*before, *ids[: i + 1]]) for i in range(len(ids))))

    def read(self, token: int) -> int:
        """Return the token, or the tokenizer's EOS for any EOS."""
        return self.tokenizer.eos_token_id if token in self.more_eos else token


class KnownRows:
    """Rows under a `KnownReward`: lists of token ids. They speak for the whole vocabulary too."""

    def __init__(self, reward: KnownReward, prefixes: Sequence[Prefix]):
        self.reward = reward
        self.rows = [[*prefix.prompt_ids, *map(reward.read, prefix.response_ids)] for prefix in prefixes]

    def candidate_rewards(self, token_ids: Int[Tensor, "batch candidates"]) -> Float[Tensor, "batch candidates"]:
        values = [
            [self.reward.value([*row, self.reward.read(token)]) for token in tokens]
            for row, tokens in zip(self.rows, token_ids.tolist(), strict=True)
        ]
        return torch.tensor(values, dtype=torch.float32, device=token_ids.device)

    def vocabulary_rewards(self) -> Float[Tensor, "batch vocab"]:
        return self.candidate_rewards(torch.arange(len(self.reward.tokenizer)).expand(len(self.rows), -1))

    def prefix_rewards(self) -> Float[Tensor, " batch"]:
        return torch.tensor([self.reward.value(row) for row in self.rows], dtype=torch.float32)

    def advance(self, token_ids: Int[Tensor, " batch"]) -> None:
        for row, token in zip(self.rows, token_ids.tolist(), strict=True):
            row.append(self.reward.read(token))

    def rewind(self, counts: Sequence[int]) -> None:
        self.rows = [row[: len(row) - count] for row, count in zip(self.rows, counts, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        self.rows = [list(self.rows[row]) for row in rows]

    def replace(self, places: Sequence[int], other: Any) -> None:
        for place, row in zip(places, other.rows, strict=True):
            self.rows[place] = row


# The laws. Their numbers are those of the project's design.


def assert_laws(
    reward: Reward,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    tolerance: float = 1e-10,
) -> None:
    """Hold a reward to every law. Give prompts and responses of different lengths, at least two of each.

    Args:
        tolerance: of rewards and log-probabilities; 1e-10 in float64, 1e-4 in float32.
    """
    assert_zero_weight_is_plain(reward, lm, prompts)
    assert_cached_equals_whole(reward, lm, prompts, responses, tolerance=tolerance)
    assert_batch_independent(reward, lm, prompts, responses, tolerance=tolerance)
    assert_cold_equals_greedy(reward, lm, prompts)
    assert_own_seed_decides(reward, lm, prompts, tolerance=tolerance)
    assert_impossible_stays_impossible(reward, lm, prompts)
    assert_end_is_finished_text(reward, lm, prompts, responses, tolerance=tolerance)
    assert_future_invisible(reward, prompts, responses, tolerance=tolerance)


def assert_zero_weight_is_plain(reward: Reward, lm: LanguageModel, prompts: Sequence[Prompt]) -> None:
    """Law 1: weight 0 equals plain decoding, sampled and greedy."""
    for temperature in (1.0, 0.0):
        settings: dict[str, Any] = {"temperature": temperature, "template": reward.template, "max_new_tokens": 8}
        guided = generate(lm, prompts, reward, reward_weight=0.0, **settings)
        plain = generate(lm, prompts, method="plain", **settings)
        assert guided == plain, f"weight 0 is not plain decoding at temperature {temperature}"


def assert_cached_equals_whole(
    reward: Reward,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    tolerance: float = 1e-10,
) -> None:
    """Law 2: rewards read step by step, among other candidates, equal those of the whole text at every position."""
    for prompt, score in zip(prompts, reward.score(prompts, responses), strict=True):
        (stepwise,) = _walk(reward, lm, [_prefix(reward, lm, prompt)], [score.token_ids])
        _assert_close(stepwise, score.rewards, tolerance, f"cached and whole rewards after {prompt!r}")


def assert_batch_independent(
    reward: Reward,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    tolerance: float = 1e-10,
) -> None:
    """Law 2: batched equals one by one, in any order, while rows of different length end and leave."""
    starts = [_prefix(reward, lm, prompt) for prompt in prompts]
    scores = reward.score(prompts, responses)
    tokens = [score.token_ids for score in scores]
    together = _walk(reward, lm, starts, tokens)
    backwards = _walk(reward, lm, starts[::-1], tokens[::-1])[::-1]
    for i, prompt in enumerate(prompts):
        (alone,) = _walk(reward, lm, [starts[i]], [tokens[i]])
        _assert_close(together[i], alone, tolerance, f"rewards in a batch and alone after {prompt!r}")
        _assert_close(backwards[i], alone, tolerance, f"rewards in a reversed batch and alone after {prompt!r}")
        (scored,) = reward.score([prompt], [responses[i]])
        _assert_close(scores[i].rewards, scored.rewards, tolerance, f"scores in a batch and alone after {prompt!r}")


def assert_cold_equals_greedy(
    reward: Reward, lm: LanguageModel, prompts: Sequence[Prompt], *, reward_weight: float = 2.0
) -> None:
    """Law 3: temperature 1e-6 and 0 equal the greedy choice; with one candidate it is the LM's own greedy choice."""
    settings = {"reward_weight": reward_weight, "max_new_tokens": 8}
    greedy = _tokens(generate(lm, prompts, reward, method="pargs-greedy", **settings))
    for temperature in (0.0, 1e-6):
        cold = _tokens(generate(lm, prompts, reward, temperature=temperature, **settings))
        assert cold == greedy, f"sampling at temperature {temperature} is not the greedy choice"
    plain = generate(lm, prompts, method="plain", temperature=0.0, template=reward.template, max_new_tokens=8)
    one = generate(lm, prompts, reward, top_k=1, **settings)
    assert _tokens(one) == _tokens(plain), "with one candidate the reward still changed the choice"


def assert_own_seed_decides(
    reward: Reward, lm: LanguageModel, prompts: Sequence[Prompt], *, tolerance: float = 1e-10
) -> None:
    """Law 4: a row's sample depends on its own seed only, not on its place or on who shares its batch."""
    seeds = [7 * i + 3 for i in range(len(prompts))]
    together = generate(lm, prompts, reward, seed=seeds, max_new_tokens=8)
    backwards = generate(lm, prompts[::-1], reward, seed=seeds[::-1], max_new_tokens=8)[::-1]
    for i, prompt in enumerate(prompts):
        (alone,) = generate(lm, [prompt], reward, seed=[seeds[i]], max_new_tokens=8)
        for other in (together[i], backwards[i]):
            assert_same_generation(other, alone, tolerance=tolerance)


def assert_impossible_stays_impossible(reward: Reward, lm: LanguageModel, prompts: Sequence[Prompt]) -> None:
    """Law 5: a candidate masked to -inf by a logits processor stays impossible whatever its reward."""
    settings = {"max_new_tokens": 8, "seed": 5}
    banned = sorted({tokens[0] for tokens in _tokens(generate(lm, prompts, reward, **settings))})

    def ban(ids: Tensor, logprobs: Tensor) -> Tensor:
        return logprobs.index_fill(1, torch.tensor(banned, device=logprobs.device), float("-inf"))

    for row in generate(lm, prompts, reward, logits_processor=ban, **settings):
        for step in row.steps:
            assert step.token_id not in banned, f"token {step.token_id} was masked and drawn all the same"


@torch.inference_mode()
def assert_end_is_finished_text(
    reward: Reward,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    *,
    tolerance: float = 1e-10,
) -> None:
    """Law 6: every EOS of the LM is a candidate whose reward is that of the finished text."""
    ends = sorted(lm.eos_token_ids)
    for prompt, score in zip(prompts, reward.score(prompts, responses), strict=True):
        prefix = _prefix(reward, lm, prompt)._replace(response_ids=score.token_ids[:-1])
        candidates = torch.tensor([ends], device=lm.model.device)
        rows = reward.start([prefix], 1, len(ends))
        _followed(reward, rows, lm, [prefix], 1)
        rewards = rows.candidate_rewards(candidates)[0].tolist()
        _assert_close(rewards, [score.rewards[-1]] * len(ends), tolerance, f"EOS and finished text after {prompt!r}")


def assert_future_invisible(
    reward: Reward, prompts: Sequence[Prompt], responses: Sequence[str], *, tolerance: float = 1e-10
) -> None:
    """Law 7: the reward at a position never depends on later tokens."""
    longer = reward.score(prompts, [response + " and so on" for response in responses])
    for prompt, short, long in zip(prompts, reward.score(prompts, responses), longer, strict=True):
        shared = next(
            (i for i, (a, b) in enumerate(zip(short.token_ids, long.token_ids, strict=False)) if a != b),
            len(short.token_ids),
        )
        _assert_close(short.rewards[:shared], long.rewards[:shared], tolerance, f"rewards seen early after {prompt!r}")


def assert_reload_is_bit_equal(
    reward: RewardModel, folder: Path, prompts: Sequence[Prompt], responses: Sequence[str]
) -> None:
    """Law 10: a saved reward reloads to bit-equal rewards, from safetensors, JSON and text only."""
    reward.save(folder)
    dtype = str(reward.backbone.dtype).removeprefix("torch.")
    loaded = type(reward).load(folder, device=str(reward.device), dtype=dtype)
    assert loaded.score(prompts, responses) == reward.score(prompts, responses), f"{folder} gives other rewards"
    files = [path for path in folder.rglob("*") if path.is_file()]
    strange = [path.name for path in files if path.suffix not in (".json", ".safetensors", ".jinja", ".md")]
    assert not strange, f"{folder} holds files of other formats than safetensors, JSON and text: {strange}"


def assert_equals_reference(
    reward: RewardModel,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    reward_weight: float = 2.0,
    temperature: float = 1.0,
    max_new_tokens: int = 8,
    tolerance: float = 1e-10,
) -> None:
    """Law 2: the loop equals `midcourse.reference` in every figure, sampled and greedy."""
    settings: dict[str, Any] = {"reward_weight": reward_weight, "max_new_tokens": max_new_tokens}
    for greedy in (False, True):
        warm: dict[str, Any] = {} if greedy else {"temperature": temperature}
        method = replace(Method(), greedy=greedy)
        rows = generate(lm, prompts, reward, method=method, seed=11, **settings, **warm)
        for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            want = pargs(lm, reward, prompt, seed=11 + i, greedy=greedy, **settings, **warm)
            assert [step.token_id for step in row.steps] == [step.token_id for step in want], f"tokens after {prompt!r}"
            for name in ("logprob", "reference_logprob", "reward", "guidance_kl", "total_kl"):
                have = [getattr(step, name) for step in row.steps]
                _assert_close(have, [getattr(step, name) for step in want], tolerance, f"{name} after {prompt!r}")


@torch.inference_mode()
def assert_language_model_laws(
    lm: CausalModel, prompts: Sequence[Sequence[int]], layers: Sequence[int], *, tolerance: float = 1e-10
) -> None:
    """Hold a model to the laws of `lm.contract`: what rows say depends on their own tokens only.

    Args:
        prompts: token ids of at least three prompts of different lengths.
        layers: whose states are compared too.
        tolerance: of log-probabilities and states; 1e-10 in float64, 1e-4 in float32.
    """
    tokens = [sorted(lm.eos_token_ids)[0], *prompts[0][:2]]
    alone = [_rows_after(lm, [prompt], tokens, layers) for prompt in prompts]
    together = _rows_after(lm, prompts, tokens, layers)
    everywhere = list(range(len(prompts)))

    def assert_rows(rows: CausalRows, which: Sequence[int], what: str) -> None:
        assert list(rows.lengths) == [len(prompts[row]) + len(tokens) for row in which], f"lengths {what}"
        for place, row in enumerate(which):
            _assert_close(rows.logprobs[place].tolist(), alone[row].logprobs[0].tolist(), tolerance, f"logprobs {what}")
            for layer in layers:
                for name in ("states", "previous"):
                    have, want = (getattr(one, name)[layer] for one in (rows, alone[row]))
                    _assert_close(have[place].tolist(), want[0].tolist(), tolerance, f"{name} {what}")

    assert_rows(together, everywhere, "in a batch and alone")
    begun = lm.start([[*prompt, *tokens] for prompt in prompts], 4, layers)
    assert_rows(begun, everywhere, "read at once and step by step")
    _assert_siblings(lm, prompts, tokens, layers, tolerance)
    moved = [2, 0, 0]
    together.select(moved)
    assert_rows(together, moved, "after rows have moved")
    together.replace([1], alone[1])
    assert_rows(together, [2, 1, 0], "after one was replaced")
    before = together.logprobs.clone()
    states = {layer: one.clone() for layer, one in together.states.items()}
    together.step(torch.tensor(tokens, device=lm.device))
    together.rewind([1] * 3, before, states)
    more = torch.tensor(tokens[::-1], device=lm.device)
    together.step(more)
    for place, row in enumerate((2, 1, 0)):
        want = lm.start([[*prompts[row], *tokens, int(more[place])]], 4, layers)
        _assert_close(
            together.logprobs[place].tolist(), want.logprobs[0].tolist(), tolerance, "logprobs after going back"
        )
        for layer in layers:
            for name in ("states", "previous"):
                mine, theirs = (getattr(one, name)[layer] for one in (together, want))
                _assert_close(mine[place].tolist(), theirs[0].tolist(), tolerance, f"{name} after going back")


def _rows_after(
    lm: CausalModel, prompts: Sequence[Sequence[int]], tokens: Sequence[int], layers: Sequence[int]
) -> CausalRows:
    """Return rows started at some prompts and stepped by the same tokens."""
    rows = lm.start(prompts, len(tokens) + 4, layers)
    for token in tokens:
        rows.step(torch.tensor([token] * len(prompts), device=lm.device))
    return rows


def _assert_siblings(
    lm: CausalModel,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[int],
    layers: Sequence[int],
    tolerance: float,
) -> None:
    """Check that alternative next tokens have the states of single steps, and leave the rows as they were."""
    rows = lm.start(prompts, len(tokens) + 4, layers)
    before = rows.logprobs.clone()
    for layer in layers:
        states = rows.siblings(torch.tensor([list(tokens)] * len(prompts), device=lm.device), layer)
        for j, token in enumerate(tokens):
            stepped = lm.start(prompts, len(tokens) + 4, layers)
            stepped.step(torch.tensor([token] * len(prompts), device=lm.device))
            for have, want in zip(states[:, j].tolist(), stepped.states[layer].tolist(), strict=True):
                _assert_close(have, want, tolerance, f"siblings and single steps at layer {layer}")
    assert torch.equal(rows.logprobs, before), "asking for siblings has moved the rows"
    rows.step(torch.tensor([tokens[0]] * len(prompts), device=lm.device))
    want = lm.start([[*prompt, tokens[0]] for prompt in prompts], 4).logprobs
    for have, wanted in zip(rows.logprobs.tolist(), want.tolist(), strict=True):
        _assert_close(have, wanted, tolerance, "logprobs after siblings")


def assert_same_generation(have: Generation, want: Generation, *, tolerance: float = 1e-10) -> None:
    """Check that two generations agree: tokens, texts and reasons exactly, figures to `tolerance`."""
    assert have.finish_reason == want.finish_reason
    assert have.text == want.text
    assert [step.token_id for step in have.steps] == [step.token_id for step in want.steps], have.prompt
    for name in ("logprob", "reference_logprob", "reward", "guidance_kl", "total_kl"):
        a, b = ([getattr(step, name) for step in row.steps] for row in (have, want))
        assert [x is None for x in a] == [x is None for x in b], f"{name} after {have.prompt!r}"
        known_a, known_b = ([x for x in row if x is not None] for row in (a, b))
        _assert_close(known_a, known_b, tolerance, f"{name} after {have.prompt!r}")


@torch.inference_mode()
def _walk(
    reward: Reward, lm: LanguageModel, prefixes: Sequence[Prefix], responses: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Read the rewards of given responses step by step, beside two other candidates; rows that end leave the batch."""
    longest = max(len(response) for response in responses)
    rows = reward.start(prefixes, longest, 3)
    lm_rows, followed = _followed(reward, rows, lm, prefixes, longest)
    here = list(range(len(prefixes)))
    by_row: list[list[float]] = [[] for _ in prefixes]
    device = lm.model.device
    for t in range(longest):
        places = torch.tensor([(t + i) % 3 for i in here], device=device)
        candidates = torch.tensor([[responses[i][0], responses[i][t], responses[i][-1]] for i in here], device=device)
        for row, place in enumerate(places.tolist()):
            candidates[row, [1, place]] = candidates[row, [place, 1]]
        rewards = rows.candidate_rewards(candidates).gather(1, places[:, None])[:, 0].tolist()
        for i, value in zip(here, rewards, strict=True):
            by_row[i].append(value)
        kept = [row for row, i in enumerate(here) if t + 1 < len(responses[i])]
        if not kept:
            break
        if len(kept) < len(here):
            here = [here[row] for row in kept]
            rows.select(kept)
            if lm_rows is not None and followed is not None:
                lm_rows.select(kept)
                followed.places[:] = range(len(kept))
        tokens = torch.tensor([responses[i][t] for i in here], device=device)
        rows.advance(tokens)
        if lm_rows is not None:
            lm_rows.step(tokens)
    return by_row


def _followed(
    reward: Reward, rows: RewardRows, lm: LanguageModel, prefixes: Sequence[Prefix], max_new_tokens: int
) -> tuple[CausalRows, FollowedRows] | tuple[None, None]:
    """Return the language model's rows that a reward's rows go along with, if they read its states."""
    if reward.layer is None:
        return None, None
    lm_rows = lm.start([prefix.token_ids for prefix in prefixes], max_new_tokens, [reward.layer])
    followed = FollowedRows(lm_rows, list(range(len(prefixes))))
    assert isinstance(rows, StateReader), "a reward with a layer starts rows that follow the language model's"
    rows.follow(followed)
    return lm_rows, followed


def _prefix(reward: Reward, lm: LanguageModel, prompt: Prompt) -> Prefix:
    return Prefix(prompt, prompt_ids(lm.tokenizer, prompt, reward.template or "raw"))


def _tokens(generations: Sequence[Generation]) -> list[list[int]]:
    return [[step.token_id for step in row.steps] for row in generations]


def _assert_close(have: Sequence[float], want: Sequence[float], tolerance: float, what: str) -> None:
    assert len(have) == len(want), f"{what}: {len(have)} and {len(want)} numbers"
    close = all(abs(a - b) <= tolerance for a, b in zip(have, want, strict=True))  # False for nan
    assert close, f"{what} differ: {list(have)} and {list(want)}"
