"""The published methods as named settings, each of which a call may override."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from midcourse.decode.guidance import Guidance, add_clamped, add_log_sigmoid, add_reward
from midcourse.errors import MidcourseError

# torch takes seconds to import, and whoever lists the methods needs none of it.
if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

LogitsProcessor: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class MethodError(MidcourseError):
    """A method name or a setting that does not exist or makes no sense."""


@dataclass(frozen=True)
class Method:
    """A method that guides every token: its equation and its paper's settings.

    Attributes:
        guide: the equation; None decodes the LM alone.
        greedy: take the likeliest guided candidate instead of sampling.
        reward_weight: w, the multiplier of the reward.
        top_k: candidates short-listed; None for the whole vocabulary.
        temperature: T of softmax(guided / T).
        top_p: of the short list only the likeliest candidates that hold this much probability under the LM.
        ranked_by: what short-lists: the LM, or the sum of LM and reward, which takes a reward of the whole vocabulary.
        soft_value: the reward estimates (1/w) log E exp(w R) at one w, and is exact at no other.
        source: where the method and its settings come from.
    """

    guide: Guidance | None = add_reward
    greedy: bool = False
    reward_weight: float = 1.0
    top_k: int | None = 10
    temperature: float = 1.0
    top_p: float = 1.0
    ranked_by: Literal["lm", "sum"] = "lm"
    soft_value: bool = False
    source: str = ""

    @property
    def policy_temperature(self) -> float:
        """Return the base and guided policies' temperature; a greedy choice has none, and its base is taken at 1."""
        return 1.0 if self.greedy else self.temperature


@dataclass(frozen=True)
class BestOfN:
    """Sample n responses from the LM and keep the one of the highest full-sequence reward.

    KL(best of n || LM) <= log n - (n - 1) / n, the bound reported (Beirami et al., 2024, arXiv 2401.01879).

    Attributes:
        samples: n.
        top_k, temperature, top_p: of sampling the LM.
    """

    samples: int = 16
    top_k: int | None = 10
    temperature: float = 1.0
    top_p: float = 1.0
    source: str = "best of n, as in Stiennon et al., Learning to summarize from human feedback (2020), arXiv 2009.01325"


@dataclass(frozen=True)
class Blockwise:
    """Blockwise controlled decoding: sample K blocks of M tokens, keep the one of the highest value, and repeat.

    Attributes:
        samples: K. The paper compares K = 6 with best of 50.
        block_tokens: M.
        top_k, temperature, top_p: of sampling the LM.
    """

    samples: int = 6
    block_tokens: int = 16
    top_k: int | None = 10
    temperature: float = 1.0
    top_p: float = 1.0
    source: str = "Mudgal et al., Controlled Decoding from Language Models (2024), arXiv 2310.17022, section 4.2; K = 6"


@dataclass(frozen=True)
class Cards:
    """Cascade reward sampling: segments end where the LM is unsure, and are accepted by their reward or drawn again.

    A segment is accepted with probability min(1, exp((r - tau) / T)), r the reward of the text so far and tau rising
    from (1 - alpha) r(prompt) + alpha r* to r* over the response; after `retries` rejections the best is taken. It
    compares rewards of texts of different length, so it needs a reward that is comparable across lengths: one trained
    on full sequences, not on equal-length prefixes, which leave a free constant for each length.

    Attributes:
        reward_threshold: r*, on the reward's own scale; there is no default that suits every reward.
        entropy_threshold: a segment ends before a token whose distribution under the LM has this entropy, in nats.
        least_tokens, segment_tokens: tokens of the shortest and of the longest segment.
        start_share: alpha.
        retries: rejections of a segment before the best of its trials is taken.
        top_k, temperature, top_p: of sampling the LM; the temperature is the acceptance's too, as in the authors' code.
    """

    reward_threshold: float | None = None
    entropy_threshold: float = 3.0
    least_tokens: int = 4
    segment_tokens: int = 64
    start_share: float = 0.5
    retries: int = 20
    top_k: int | None = 40
    temperature: float = 0.7
    top_p: float = 1.0
    source: str = (
        "Li et al., Cascade Reward Sampling for Efficient Decoding-Time Alignment (2025), arXiv 2406.16306; "
        "entropy 3, alpha 0.5, T = 0.7, 20 retries in the authors' code"
    )


@dataclass(frozen=True)
class Limits:
    """What holds for every method that guides tokens.

    Attributes:
        always_offer_eos: EOS is a candidate even if it is not short-listed.
        kl_per_token: the most nats of guidance KL a step may have.
        kl_budget: the most nats of guidance KL a response may have.
        skip_tolerance: a step whose choice no reward within the range seen so far could change by more than this in
            total variation is drawn from the LM, and its token read by the reward later; None reads every token.
        logits_processor: called with token ids (1, tokens) and log-probabilities (1, vocab) before the short list.
    """

    always_offer_eos: bool = False
    kl_per_token: float | None = None
    kl_budget: float | None = None
    skip_tolerance: float | None = None
    logits_processor: LogitsProcessor | None = None


BlockMethod: TypeAlias = BestOfN | Blockwise | Cards
AnyMethod: TypeAlias = Method | BlockMethod

_PARGS = "Rashid et al., A Critical Look At Tokenwise Reward-Guided Text Generation (2024), arXiv 2406.07780"
_ARGS = "Khanov et al., ARGS: Alignment as Reward-Guided Search (2024), arXiv 2402.01694, algorithm 1; w = 1.5, k = 10"
_CD = "Mudgal et al., Controlled Decoding from Language Models (2024), arXiv 2310.17022, theorem 2.1"
_RAD = "Deng and Raffel, Reward-Augmented Decoding (2023), arXiv 2310.09520; k = 20, beta = 10 in the authors' code"
_FUDGE = (
    "Yang and Klein, FUDGE: Controlled Text Generation With Future Discriminators (2021), arXiv 2104.05218; k = 200"
)
_FARMA = (
    "Rashid et al., Towards Cost-Effective Reward Guided Text Generation (2025), arXiv 2502.04517; top 10 of the sum"
)
_GENARM = (
    "Xu et al., GenARM: Reward Guided Generation with Autoregressive Reward Model (2025), arXiv 2410.08193; alpha = 1"
)
_SOFT = "the optimum of reward minus KL: pi exp(w V) with V = (1/w) log E exp(w R), as in Zhou et al., Q# (2025)"

METHODS: dict[str, AnyMethod] = {
    "plain": Method(None, reward_weight=0.0, source="top-k, top-p and temperature sampling of the language model"),
    "pargs": Method(reward_weight=2.0, source=f"{_PARGS}; w = 2, k = 10 in the authors' script"),
    "pargs-greedy": Method(greedy=True, source=f"{_PARGS}; w = 1, k = 10 in the authors' script"),
    "args": Method(greedy=True, reward_weight=1.5, source=_ARGS),
    "args-stochastic": Method(reward_weight=1.5, temperature=0.7, source=f"{_ARGS}, tau = 0.7"),
    "cd": Method(source=_CD),
    "cd-blockwise": Blockwise(),
    "rad": Method(add_clamped, reward_weight=10.0, top_k=20, source=_RAD),
    "fudge": Method(add_log_sigmoid, top_k=200, source=_FUDGE),
    "farma": Method(ranked_by="sum", source=_FARMA),
    "genarm": Method(top_k=None, ranked_by="sum", source=_GENARM),
    "soft-value": Method(soft_value=True, source=_SOFT),
    "cards": Cards(),
    "best-of-n": BestOfN(),
}


def method(name: str) -> AnyMethod:
    """Return the method of that name; "best-of-n:4" and "cd-blockwise:4" set the number of samples.

    Raises:
        MethodError: an unknown name, with the known ones.
    """
    kind, mark, samples = name.partition(":")
    found = METHODS.get(kind)
    if found is None:
        raise MethodError(f"method {name!r} is unknown; use one of: {', '.join(METHODS)}")
    if not mark:
        return found
    if isinstance(found, Method | Cards) or not samples.isdecimal():
        raise MethodError(f"method {name!r} is unknown; only best-of-n:N and cd-blockwise:N take a number, of samples")
    return replace(found, samples=int(samples))


def settings_of(method: AnyMethod) -> dict[str, Any]:
    """Return a method's settings by name, as numbers and words."""
    settings = {field.name: getattr(method, field.name) for field in fields(method)}
    if isinstance(method, Method):
        settings["guide"] = method.guide.__name__ if method.guide else None
    return settings


def with_settings(method: AnyMethod, name: str, settings: dict[str, Any]) -> AnyMethod:
    """Return the method with those settings that are not None.

    Raises:
        MethodError: a setting that this method does not have, or whose value makes no sense.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    known = {field.name for field in fields(method)}
    if strange := sorted(given.keys() - known):
        words = ", ".join(word.replace("_", "-") for word in strange)
        raise MethodError(f"method {name} has no {words}; leave it out or use another method")
    method = replace(method, **given)
    check(method)
    return method


def check_whole(name: str, value: Any) -> None:
    """Raise MethodError if a setting that counts is no whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise MethodError(f"{name.replace('_', '-')} {value!r} is not a whole number; use one, such as 1")


def check(method: AnyMethod) -> None:
    """Raise MethodError on a setting that makes no sense."""
    if method.top_k is not None:
        check_whole("top_k", method.top_k)
    if method.top_k is not None and method.top_k < 1:
        raise MethodError(f"top-k {method.top_k} leaves no candidates; use 1 or more")
    if not 0 < method.top_p <= 1:
        raise MethodError(f"top-p {method.top_p} is not a share above 0 and up to 1; use 1 to keep every candidate")
    if not 0 <= method.temperature < math.inf:
        raise MethodError(
            f"temperature {method.temperature} is not a number of 0 or more; use 1 for the paper's setting"
        )
    if isinstance(method, Method):
        if not math.isfinite(method.reward_weight):
            raise MethodError(f"reward weight {method.reward_weight} is not a finite number; give one, such as 2")
        if method.soft_value and (method.greedy or method.temperature != 1):
            raise MethodError(
                f"soft-value is exact when sampled at temperature 1, not {0 if method.greedy else method.temperature}; "
                "leave the temperature out, or use method 'cd'"
            )
        return
    counts = ("samples", "block_tokens", "least_tokens", "segment_tokens", "retries")
    for name in counts:
        count = getattr(method, name, 1)
        check_whole(name, count)
        if count < 1:
            raise MethodError(f"{name.replace('_', '-')} {count} is too few; use 1 or more")
    if method.temperature == 0 and not (isinstance(method, Cards) or method.samples == 1):
        raise MethodError("at temperature 0 all samples are the same; use a temperature above 0, such as 1")
    if isinstance(method, Cards):
        _check_cards(method)


def _check_cards(method: Cards) -> None:
    if method.temperature == 0:
        raise MethodError("cards accepts by its temperature, which cannot be 0; use 0.7 for the paper's setting")
    if method.reward_threshold is None:
        raise MethodError(
            "cards needs the reward that a good response has, on your reward's scale; "
            "give it with --reward-threshold, say the mean reward of responses you like"
        )
    for name in ("reward_threshold", "entropy_threshold", "start_share"):
        if math.isnan(getattr(method, name)):
            raise MethodError(f"{name.replace('_', '-')} is not a number; give one")
    if not 0 <= method.start_share <= 1:
        raise MethodError(f"start-share {method.start_share} is not between 0 and 1; use 0.5 for the paper's setting")


def check_limits(method: AnyMethod, name: str, limits: Limits) -> None:
    """Raise MethodError on a limit that makes no sense, or not for this method."""
    budgets = {"kl-per-token": limits.kl_per_token, "kl-budget": limits.kl_budget}
    for flag, nats in budgets.items():
        if nats is None:
            continue
        if not (nats > 0 and math.isfinite(nats)):
            raise MethodError(f"{flag} {nats} is not a number of nats above 0; give one, or use method 'plain' for 0")
        _check_tokenwise(method, name, flag)
        if isinstance(method, Method) and method.soft_value:
            raise MethodError(
                f"{flag} lowers the weight where it must, and soft-value is exact at one; use method 'cd'"
            )
        if isinstance(method, Method) and method.greedy:
            raise MethodError(f"{flag} limits how far a sampling policy moves; a greedy choice has none, use pargs")
    if limits.skip_tolerance is not None:
        if not 0 <= limits.skip_tolerance < 1:
            raise MethodError(f"skip-tolerance {limits.skip_tolerance} is not a share from 0 to below 1; try 0.01")
        _check_tokenwise(method, name, "skip-tolerance")
    if limits.always_offer_eos and not isinstance(method, Method):
        raise MethodError(f"method {name} draws from the LM's own candidates; leave always-offer-eos out")


def _check_tokenwise(method: AnyMethod, name: str, flag: str) -> None:
    if not isinstance(method, Method) or method.guide is None or method.ranked_by == "sum":
        raise MethodError(f"{flag} needs rewards of the LM's own candidates, which method {name} has not; use pargs")
