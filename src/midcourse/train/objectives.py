"""The losses: pure functions of per-position rewards, and the objectives that are made of them.

Each loss takes the rewards of a batch and returns one number per pair or response. Pairs weigh the same whatever their
length. Of responses with a final reward every prefix weighs the same: its value is an expectation over responses of any
length, and a weight that depended on their lengths would shift it. An `Objective` names the losses that it takes in
turns, what they are losses of, and its settings.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from midcourse.data.alignment import Change
from midcourse.errors import MidcourseError

HEADS = ("scalar", "vocabulary", "trunk")
PADDING = -1  # where a row of labels has no token


class ObjectiveError(MidcourseError):
    """An objective, a setting of it, or a head or data that do not go with it."""


class PairRewards(NamedTuple):
    """Rewards at the response positions of pairs; position i is the prefix that ends with token i of the response.

    Attributes:
        chosen, rejected: rewards, anything beyond a response's length.
        chosen_lengths, rejected_lengths: tokens of each response, its EOS included.
        chosen_finished, rejected_finished: False for a response that was cut: nothing is known about its end.
    """

    chosen: Float[Tensor, "pairs tokens"]
    rejected: Float[Tensor, "pairs tokens"]
    chosen_lengths: Int[Tensor, " pairs"]
    rejected_lengths: Int[Tensor, " pairs"]
    chosen_finished: Bool[Tensor, " pairs"]
    rejected_finished: Bool[Tensor, " pairs"]


class LabelledRewards(NamedTuple):
    """Rewards at the response positions of responses that have a label R: a final reward, or 1 and 0.

    Attributes:
        rewards: anything beyond a response's length.
        lengths: tokens of each response, its EOS included.
        labels: R.
        mean_length: tokens of a response in all of the data: the unit in which sums over positions are taken.
    """

    rewards: Float[Tensor, "rows tokens"]
    lengths: Int[Tensor, " rows"]
    labels: Float[Tensor, " rows"]
    mean_length: float


class NextRewards(NamedTuple):
    """Rewards at the response positions of responses, and at each the best that any token there would have had.

    Attributes:
        rewards: V(y[:i]), anything beyond a response's length.
        best: max over v of V(y[:i-1] v), likewise.
        lengths: tokens of each response, its EOS included.
    """

    rewards: Float[Tensor, "rows tokens"]
    best: Float[Tensor, "rows tokens"]
    lengths: Int[Tensor, " rows"]


class LadderRewards(NamedTuple):
    """Rewards of the finished texts of ladders, and with each ladder that of a text that is replayed.

    Attributes:
        levels: the most machine-like first, anything beyond a ladder's own levels.
        counts: levels of each ladder, two or more.
        replayed: the reward of the replayed text; None without replay.
        initial: what that was before training.
        step: ladders of the whole step, over all processes.
    """

    levels: Float[Tensor, "ladders levels"]
    counts: Int[Tensor, " ladders"]
    replayed: Float[Tensor, " ladders"] | None = None
    initial: Float[Tensor, " ladders"] | None = None
    step: int = 1


class EditRewards(NamedTuple):
    """Rewards of the tokens of edits, before `TrainedReward.rewards_of`, and their labels.

    Attributes:
        edited, original: a reward for each token, anything beyond a text's length.
        edited_labels, original_labels: what became of each token, a `data.alignment.Change`; `PADDING` beyond.
    """

    edited: Float[Tensor, "edits tokens"]
    original: Float[Tensor, "edits tokens"]
    edited_labels: Int[Tensor, "edits tokens"]
    original_labels: Int[Tensor, "edits tokens"]


# ---- losses of pairs ----


def sequence(rewards: PairRewards) -> Float[Tensor, " pairs"]:
    """Return -log sigmoid(r(y_w | x) - r(y_l | x)) of the whole responses.

    The ordinary Bradley-Terry reward model (Ouyang et al., 2022), as ARGS guides with (Khanov et al., 2024).
    """
    chosen = at_end(rewards.chosen, rewards.chosen_lengths)
    rejected = at_end(rewards.rejected, rewards.rejected_lengths)
    return -logsigmoid(chosen - rejected)


def prefix(rewards: PairRewards) -> Float[Tensor, " pairs"]:
    """Return the mean over i of -log sigmoid(r(y_w[:i] | x) - r(y_l[:i] | x)), i = 1 to the shorter response's end.

    PARGS's objective (Rashid et al., 2024: Bradley-Terry on equal-length prefixes, the label inherited from the pair),
    with one weight per pair instead of one per prefix, and without prefixes past the shorter end.
    """
    shared = torch.minimum(rewards.chosen_lengths, rewards.rejected_lengths)
    return bradley_terry(rewards.chosen - rewards.rejected, positions(rewards.chosen) < shared[:, None])


def prefix_past_end(rewards: PairRewards) -> Float[Tensor, " pairs"]:
    """Go on, unlike `prefix`, to the longer response's end: compare its prefixes with the finished shorter text.

    The authors' variant (Rashid et al., 2024: the shorter response is padded with EOS). A cut response has no end to
    compare with, so its pairs stop where it does.
    """
    i = positions(rewards.chosen)
    last = torch.stack([rewards.chosen_lengths, rewards.rejected_lengths]) - 1
    chosen = rewards.chosen.gather(1, torch.minimum(i, last[0][:, None]))
    rejected = rewards.rejected.gather(1, torch.minimum(i, last[1][:, None]))
    known = (rewards.chosen_finished[:, None] | (i <= last[0][:, None])) & (
        rewards.rejected_finished[:, None] | (i <= last[1][:, None])
    )
    return bradley_terry(chosen - rejected, known & (i <= last.amax(0)[:, None]))


def autoregressive(rewards: PairRewards, beta: float) -> Float[Tensor, " pairs"]:
    """Return -log sigmoid(beta (log pi_r(y_w | x) - log pi_r(y_l | x))), each the sum of its tokens' rewards.

    GenARM's autoregressive reward model (Xu et al., 2025, equation 6): the reward of a token is its log-probability
    under pi_r, and there is no reference model. Rewards of any other kind that add up over tokens may be given too.
    """
    chosen = total(rewards.chosen, rewards.chosen_lengths)
    rejected = total(rewards.rejected, rewards.rejected_lengths)
    return -logsigmoid(beta * (chosen - rejected))


# ---- losses of labelled responses ----


def value_mean(rewards: LabelledRewards) -> Float[Tensor, " rows"]:
    """Return the sum over i of (R - V(y[:i] | x))^2, in units of the mean length; the minimiser is E[R | prefix].

    The expectation is over the policy that wrote the responses. CD-FUDGE (Mudgal et al., 2024, equation 6, which has
    one half of it).
    """
    return over_prefixes(rewards, lambda error: error.square())


def value_soft(rewards: LabelledRewards, weight: float) -> Float[Tensor, " rows"]:
    """Return the sum over i of exp(w d_i) - w d_i, d_i = R - V(y[:i]); its minimiser is (1/w) log E[exp(w R) | prefix].

    That is the soft value, whose policy pi exp(w V) is the optimum of reward minus KL at this w (Q#, Zhou et al.,
    2025). The loss is the linex loss (Varian, 1975); its derivative by V, w (1 - exp(w (R - V))), has mean zero there.

    Past w (R - V) = 10 the exponential goes on as its tangent, so that no response is infinitely surprising. The loss
    stays convex, and its minimiser the same unless some response is worth more than 10/w above its prefix's soft value:
    by E exp(w (R - V)) = 1 that is rarer than exp(-10).
    """
    return over_prefixes(rewards, lambda error: tangent_exp(weight * error) - weight * error)


def value_max(rewards: LabelledRewards, expectile: float) -> Float[Tensor, " rows"]:
    """Return the sum over i of |tau - 1[R < V(y[:i])]| (R - V(y[:i]))^2; its minimiser is R's tau-expectile.

    Expectile regression (Newey and Powell, 1987), as implicit Q-learning has it (Kostrikov et al., 2022, equation 5).
    At tau = 1/2 it is the mean; towards 1 it nears the best reward that was seen, and only nears it: approximate.
    """
    return over_prefixes(rewards, lambda error: torch.where(error < 0, 1 - expectile, expectile) * error.square())


def cumulative(rewards: LabelledRewards) -> Float[Tensor, " rows"]:
    """Return 2 / (n (n + 1)) sum over t of t (r(y[:t]) - label)^2, t = 1 to n: later prefixes weigh more.

    RAD's cumulative squared error (Deng and Raffel, 2023, section 2.1).
    """
    mask = inside(rewards.rewards, rewards.lengths)
    errors = torch.where(mask, rewards.rewards - rewards.labels[:, None], 0.0)
    n = rewards.lengths
    return 2 / (n * (n + 1)) * ((positions(rewards.rewards) + 1) * errors.square()).sum(1)


# ---- losses of responses and what else might have stood there ----


def consistency(rewards: NextRewards, gradient: Literal["stop", "both"]) -> Float[Tensor, " rows"]:
    """Return the mean over i < n of 1/2 [V(y[:i]) - max over v of V(y[:i] v)]^2: a prefix is worth its best end.

    FaRMA's second loss (Rashid et al., 2025, equation 8). With gradient "stop" the best next token's value is a target;
    with "both" it learns too, as in the authors' code, whose minimisers are all constant V. The last prefix of a
    response has nothing after it: `sequence` anchors that. A response of one token has loss 0.
    """
    best = rewards.best[:, 1:].detach() if gradient == "stop" else rewards.best[:, 1:]
    goes_on = positions(best) + 1 < rewards.lengths[:, None]
    return mean_over(rewards.rewards[:, :-1] - best, goes_on, lambda gap: 0.5 * gap.square())


# ---- losses of ladders ----


def ordered(
    rewards: LadderRewards,
    *,
    extreme_weight: float,
    other_weight: float,
    logit_penalty: float,
    divide_by_terms: bool,
    replay_weight: float,
    replay_reduction: Literal["mean", "sum"],
) -> Float[Tensor, " ladders"]:
    """Return the sum over levels i < j of w_ij F(r_i, r_j), and the drift of the replayed text from its first reward.

        F(p, n) = -log sigmoid(p - n) + logit_penalty 1/2 (p^2 + n^2)
        w_ij = extreme_weight for the first and the last level, other_weight for any other pair
        drift = replay_weight (r - r_0)^2

    ReMoDetect's objective (Lee et al., 2024: machine, mixed, human) for any number of levels. With `divide_by_terms`
    the sum is divided by its number of pairs. The trainer takes the mean over a step's ladders, and as each has one
    replayed text with it, that is the mean over these too; replay_reduction "sum" undoes it, so that the drift grows
    with the batch.
    """
    most = rewards.levels.shape[1]
    i, j = torch.triu_indices(most, most, offset=1, device=rewards.levels.device)
    last = rewards.counts[:, None] - 1
    known, extreme = j <= last, (i == 0) & (j == last)
    # Masked before the loss: whatever stands beyond a ladder's levels must not reach the gradient.
    upper, lower = (torch.where(known, rewards.levels[:, level], 0.0) for level in (i, j))
    losses = -logsigmoid(upper - lower) + logit_penalty * 0.5 * (upper.square() + lower.square())
    weighted = torch.where(extreme, extreme_weight * losses, other_weight * losses) * known
    total = weighted.sum(1) / (known.sum(1) if divide_by_terms else 1)
    if rewards.replayed is None or rewards.initial is None:
        return total
    times = rewards.step if replay_reduction == "sum" else 1
    return total + replay_weight * times * (rewards.replayed - rewards.initial).square()


# ---- losses of edits ----


def edited_tokens(
    rewards: EditRewards, *, normalise: Literal["sum", "mean", "sqrt"], kept_weight: float, omissions: bool
) -> Float[Tensor, " edits"]:
    """Return -log sigmoid(R_e - R_o) + kept_weight times the mean over kept tokens of r^2.

        R_e = sum over added and substituted tokens of the edited text of r / n^a
        R_o = sum over deleted and substituted tokens of the original of r / n^a

    a is 0 for "sum", 1 for "mean" and 1/2 for "sqrt", n the number of tokens of that sum, and R is 0 without any. Our
    reading of Xu et al. (2024, section 3.2), whose sum it is without the second term. That term holds the tokens that
    nobody changed at 0, of which the first says nothing.

    Args:
        omissions: a kept token before which something is missing in the original counts as deleted.
    """
    exponent = {"sum": 0.0, "mean": 1.0, "sqrt": 0.5}[normalise]
    better, worse = (
        torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1) ** exponent
        for values, mask in zip(rewards[:2], (changed(labels, omissions) for labels in rewards[2:]), strict=True)
    )
    values, labels = torch.cat(rewards[:2], 1), torch.cat(rewards[2:], 1)
    kept = (labels != PADDING) & ~changed(labels, omissions)
    return -logsigmoid(better - worse) + kept_weight * mean_over(values, kept, torch.square)


def token_discriminator(
    rewards: EditRewards, *, labels: Literal["soft", "hard"], omissions: bool
) -> Float[Tensor, " edits"]:
    """Return the cross-entropy of p = sigmoid(z) with each token's target, a mean over each text, summed over both.

    The target is 1 for added and substituted tokens of the edited text, 0 for deleted and substituted ones of the
    original, and 1/2 for kept ones, which labels "hard" leaves out (TLCR: Yoon et al., 2024, equation 3 and its code).

    Args:
        omissions: see `edited_tokens`.
    """
    losses = []
    for logits, of, sign in (
        (rewards.edited, rewards.edited_labels, 1.0),
        (rewards.original, rewards.original_labels, -1.0),
    ):
        moved, present = changed(of, omissions), of != PADDING
        target = 0.5 + 0.5 * sign * moved
        # -(y log p + (1 - y) log (1 - p)), as a function of z.
        safe = torch.where(present, logits, 0.0)
        losses.append(mean_over(softplus(safe) - target * safe, moved if labels == "hard" else present, torch.clone))
    return losses[0] + losses[1]


def changed(labels: Int[Tensor, "rows tokens"], omissions: bool) -> Bool[Tensor, "rows tokens"]:
    """Return which tokens an edit changed; with `omissions` also those before which something is missing."""
    return (labels > Change.KEPT) & ((labels != Change.OMISSION) | omissions)


# ---- objectives ----


class Phase(NamedTuple):
    """A loss, and what it is of: pairs, labelled responses, chosen ones with the best next tokens, ladders, edits."""

    of: Literal["pairs", "labels", "chosen", "ladders", "edits"]
    loss: Callable[[Any], Tensor]
    name: str


@dataclass(frozen=True)
class Objective:
    """An objective: its losses, what they are losses of, and its settings.

    Attributes:
        name, settings: as midcourse.json records them.
        phases: the losses, taken in turns.
        heads: the kinds of head that it can train.
        turns: how often the phases take turns.
        reward_weight: the one weight to guide at, if there is such a thing.
        from_mean: labels count from their mean over the data, and rewards with them. Losses of R - V alone allow it: a
            constant guides nowhere, and learning it would take the steps that everything else needs.
    """

    name: str
    settings: dict[str, Any]
    phases: tuple[Phase, ...]
    heads: tuple[str, ...] = HEADS
    turns: int = 1
    reward_weight: float | None = None
    from_mean: bool = False

    @property
    def of(self) -> str:
        """Return what it learns from: "pairs", "labels" of single responses, "ladders" or "edits"."""
        return self.phases[0].of


def make_objective(name: str, **settings: Any) -> Objective:
    """Return the objective of that name; settings that are None have their defaults.

    prefix: past_end ("drop" or "paper"). sequence: none. value: value ("mean", "soft" or "max"), value_weight of
    "soft", expectile of "max" (0.9). cumulative: none. farma: alternations (7, as the authors'), farma_gradient
    ("stop" or "both"). autoregressive: beta (0.05, the authors' on HH). ordered: preset ("paper" or "code"; see
    `PRESETS`), and over what it says extreme_weight, other_weight, logit_penalty, divide_by_terms, replay_weight,
    replay_reduction ("mean" or "sum"). edited-tokens: normalise ("sum", "mean" or "sqrt"), kept_weight (0.1).
    token-discriminator: labels ("soft" or "hard"), double_softmax (as the authors' code reads its rewards). Both of
    these: align ("tokens" or "words"), omissions.

    Raises:
        ObjectiveError: an unknown name, a setting that it does not have, or one whose value makes no sense.

    Examples:
        >>> make_objective("value", value="soft", value_weight=2.0).settings
        {'value': 'soft', 'value_weight': 2.0}
    """
    if name not in OBJECTIVES:
        raise ObjectiveError(f"objective {name!r} is unknown; use one of: {', '.join(OBJECTIVES)}")
    make = OBJECTIVES[name]
    given = {key: value for key, value in settings.items() if value is not None}
    if strange := [key for key in given if key not in inspect.signature(make).parameters]:
        raise ObjectiveError(f"objective {name} has no {strange[0].replace('_', '-')}; leave it out")
    return make(**given)


def _prefix(past_end: str = "drop") -> Objective:
    losses: dict[str, Loss] = {"drop": prefix, "paper": prefix_past_end}
    return Objective(
        "prefix", {"past_end": past_end}, (Phase("pairs", _choice("past-end", past_end, losses), "prefix"),)
    )


def _sequence() -> Objective:
    return Objective("sequence", {}, (Phase("pairs", sequence, "sequence"),))


def _value(value: str = "mean", value_weight: float | None = None, expectile: float | None = None) -> Objective:
    settings: dict[str, Any] = {"value": value}
    _choice("value", value, dict.fromkeys(("mean", "soft", "max"), value_mean))
    for name, setting, kind in (("value-weight", value_weight, "soft"), ("expectile", expectile, "max")):
        if setting is not None and value != kind:
            raise ObjectiveError(f"value {value} has no {name}, which is for value {kind}; leave it out")
    loss: Loss = value_mean
    if value == "soft":
        if value_weight is None:
            raise ObjectiveError("value soft is exact at one weight; say which, such as --value-weight 2")
        settings["value_weight"] = _positive("value-weight", value_weight)
        loss = partial(value_soft, weight=value_weight)
    elif value == "max":
        expectile = 0.9 if expectile is None else expectile
        if not 0.5 <= expectile < 1:
            raise ObjectiveError(f"expectile {expectile} is not from 0.5 (the mean) to below 1; use 0.9, say")
        settings["expectile"] = expectile
        loss = partial(value_max, expectile=expectile)
    phases = (Phase("labels", loss, f"value {value}"),)
    return Objective("value", settings, phases, reward_weight=value_weight, from_mean=True)


def _cumulative() -> Objective:
    return Objective("cumulative", {}, (Phase("labels", cumulative, "cumulative"),), heads=("scalar",))


def _farma(alternations: int = 7, farma_gradient: str = "stop") -> Objective:
    if alternations < 1:
        raise ObjectiveError(f"alternations is {alternations}; use 1 or more")
    kinds = {"stop": partial(consistency, gradient="stop"), "both": partial(consistency, gradient="both")}
    phases = (
        Phase("pairs", sequence, "sequence"),
        Phase("chosen", _choice("farma-gradient", farma_gradient, kinds), "consistency"),
    )
    settings = {"alternations": alternations, "farma_gradient": farma_gradient}
    return Objective("farma", settings, phases, heads=("vocabulary", "trunk"), turns=alternations)


def _autoregressive(beta: float = 0.05) -> Objective:
    loss = partial(autoregressive, beta=_positive("beta", beta))
    phases = (Phase("pairs", loss, "autoregressive"),)
    return Objective("autoregressive", {"beta": beta}, phases, heads=("vocabulary",))


# ReMoDetect's two weightings, as published in its paper and in its code (Lee et al., 2024).
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "extreme_weight": 1.0,
        "other_weight": 0.3,
        "logit_penalty": 0.0,
        "divide_by_terms": False,
        "replay_weight": 0.01,
        "replay_reduction": "mean",
    },
    "code": {
        "extreme_weight": 1.0,
        "other_weight": 0.3,
        "logit_penalty": 0.01,
        "divide_by_terms": True,
        "replay_weight": 0.01,
        "replay_reduction": "sum",
    },
}


def _ordered(
    preset: str = "paper",
    extreme_weight: float | None = None,
    other_weight: float | None = None,
    logit_penalty: float | None = None,
    divide_by_terms: bool | None = None,
    replay_weight: float | None = None,
    replay_reduction: str | None = None,
) -> Objective:
    asked = {
        "extreme_weight": _not_negative("extreme-weight", extreme_weight),
        "other_weight": _not_negative("other-weight", other_weight),
        "logit_penalty": _not_negative("logit-penalty", logit_penalty),
        "divide_by_terms": divide_by_terms,
        "replay_weight": _not_negative("replay-weight", replay_weight),
        "replay_reduction": replay_reduction,
    }
    settings = _choice("preset", preset, PRESETS) | {name: value for name, value in asked.items() if value is not None}
    _choice("replay-reduction", settings["replay_reduction"], dict.fromkeys(("mean", "sum")))
    if not settings["extreme_weight"] and not settings["other_weight"]:
        raise ObjectiveError("extreme-weight and other-weight are both 0, so nothing would be learned; raise one")
    return Objective(
        "ordered", {"preset": preset, **settings}, (Phase("ladders", partial(ordered, **settings), "ordered"),)
    )


def _edited_tokens(
    normalise: str = "sum", kept_weight: float = 0.1, align: str = "tokens", omissions: bool = False
) -> Objective:
    kind = _choice("normalise", normalise, {name: name for name in ("sum", "mean", "sqrt")})
    loss = partial(edited_tokens, normalise=kind, kept_weight=kept_weight, omissions=omissions)
    settings = {"normalise": normalise, "kept_weight": _not_negative("kept-weight", kept_weight)}
    return Objective(
        "edited-tokens", {**settings, **_aligned(align, omissions)}, (Phase("edits", loss, "edited tokens"),)
    )


def _token_discriminator(
    labels: str = "soft", double_softmax: bool = False, align: str = "tokens", omissions: bool = False
) -> Objective:
    kind = _choice("labels", labels, {name: name for name in ("soft", "hard")})
    loss = partial(token_discriminator, labels=kind, omissions=omissions)
    settings = {"labels": labels, "double_softmax": double_softmax}
    return Objective(
        "token-discriminator", {**settings, **_aligned(align, omissions)}, (Phase("edits", loss, "discriminator"),)
    )


def _aligned(align: str, omissions: bool) -> dict[str, Any]:
    _choice("align", align, dict.fromkeys(("tokens", "words")))
    return {"align": align, "omissions": omissions}


Loss: TypeAlias = Callable[[Any], Tensor]
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "prefix": _prefix,
    "sequence": _sequence,
    "value": _value,
    "cumulative": _cumulative,
    "farma": _farma,
    "autoregressive": _autoregressive,
    "ordered": _ordered,
    "edited-tokens": _edited_tokens,
    "token-discriminator": _token_discriminator,
}


def check_head(objective: Objective, head: str) -> None:
    """Raise ObjectiveError if an objective cannot train that kind of head."""
    kind = head.partition(":")[0]
    if kind in HEADS and kind not in objective.heads:
        raise ObjectiveError(
            f"objective {objective.name} does not train a {kind} head; use --head {' or '.join(objective.heads)}"
        )


def check_data(objective: Objective, kind: str) -> None:
    """Raise ObjectiveError if an objective does not learn from such examples.

    Args:
        kind: "comparisons", "rollouts", "ladders" or "edits".
    """
    name, wanted = objective.name, objective.of
    if wanted == "ladders" != kind:
        raise ObjectiveError(f"objective {name} learns from ladders of texts; use midcourse detect train")
    if wanted == "edits" != kind:
        raise ObjectiveError(
            f"objective {name} learns from edits, and these are {kind}; give rows with the fields original and edited"
        )
    if kind in OTHERS and wanted != kind:
        raise ObjectiveError(f"objective {name} does not learn from {kind}; use {OTHERS[kind]}")
    if kind == "rollouts" and wanted == "pairs":
        raise ObjectiveError(
            f"objective {name} learns from comparisons, and rollouts are single responses; make comparisons of them "
            "with midcourse prefer"
        )


# What learns from examples that few objectives take.
OTHERS = {"ladders": "ordered", "edits": "edited-tokens or token-discriminator"}


def _choice(flag: str, value: str, known: dict[str, Any]) -> Any:
    if value not in known:
        raise ObjectiveError(f"{flag} {value!r} is unknown; use one of: {', '.join(known)}")
    return known[value]


def _not_negative(flag: str, value: float | None) -> float | None:
    """Return the value; None stays None."""
    if value is not None and not 0 <= value < math.inf:
        raise ObjectiveError(f"{flag} is {value}; use 0 or more")
    return value


def _positive(flag: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ObjectiveError(f"{flag} is {value}; use a positive number")
    return value


# ---- what the losses are made of ----


def at_end(rewards: Float[Tensor, "rows tokens"], lengths: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return the reward at each response's last token."""
    return rewards.gather(1, lengths[:, None] - 1)[:, 0]


def total(rewards: Float[Tensor, "rows tokens"], lengths: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Return the sum of each response's rewards."""
    return torch.where(inside(rewards, lengths), rewards, 0.0).sum(1)


def positions(rewards: Float[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """Return 0, 1, 2, ... for every row."""
    return torch.arange(rewards.shape[1], device=rewards.device).expand_as(rewards)


def inside(rewards: Float[Tensor, "rows tokens"], lengths: Int[Tensor, " rows"]) -> Bool[Tensor, "rows tokens"]:
    """Return which positions are those of each response."""
    return positions(rewards) < lengths[:, None]


def bradley_terry(
    margins: Float[Tensor, "pairs tokens"], mask: Bool[Tensor, "pairs tokens"]
) -> Float[Tensor, " pairs"]:
    """Return each pair's mean of -log sigmoid(margin) over its own positions."""
    return mean_over(margins, mask, lambda margin: -logsigmoid(margin))


def mean_over(
    values: Float[Tensor, "rows tokens"], mask: Bool[Tensor, "rows tokens"], loss: Callable[[Tensor], Tensor]
) -> Float[Tensor, " rows"]:
    """Return each row's mean of loss(value) over its own positions, 0 if it has none."""
    # Masked before the loss: whatever stands in padding must not reach the gradient.
    losses = loss(torch.where(mask, values, 0.0))
    return (losses * mask).sum(1) / mask.sum(1).clamp(min=1)


def over_prefixes(rewards: LabelledRewards, loss: Callable[[Tensor], Tensor]) -> Float[Tensor, " rows"]:
    """Return the sum of loss(R - V) over each response's prefixes, in units of the mean length."""
    mask = inside(rewards.rewards, rewards.lengths)
    losses = loss(torch.where(mask, rewards.labels[:, None] - rewards.rewards, 0.0))
    return (losses * mask).sum(1) / rewards.mean_length


def tangent_exp(z: Float[Tensor, "*place"], bend: float = 10.0) -> Float[Tensor, "*place"]:
    """Return exp(z) up to `bend`, and its tangent there from then on."""
    return z.clamp(max=bend).exp() * (1 + (z - bend).relu())
