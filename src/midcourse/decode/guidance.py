"""The equations: a language model's log-probabilities and rewards to guided log-probabilities.

A guidance is a pure function `guide(logprobs, rewards, weight)` over the candidates of a step; the weight is a number,
or one for each row. Its result need not be normalised; temperature and normalisation follow in `choice`. Each adds
something to the log-probabilities, so several rewards are applied one after the other. A candidate at -inf stays at
-inf whatever its reward.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from jaxtyping import Float

# torch takes seconds to import, and whoever lists the methods needs none of it.
if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

Weight: TypeAlias = float | Float[Tensor, "batch 1"]
Guidance: TypeAlias = Callable[[Tensor, Tensor, Weight], Tensor]


def add_reward(
    logprobs: Float[Tensor, "batch candidates"], rewards: Float[Tensor, "batch candidates"], weight: Weight
) -> Float[Tensor, "batch candidates"]:
    """Return log pi(v | x, y_<i) + w r(y_<i v | x), the tokenwise RLHF policy before normalisation.

    PARGS (Rashid et al., A Critical Look At Tokenwise Reward-Guided Text Generation, 2024), its decoding rule, with w
    the multiplier of the reward inside exp (1 / KL coefficient; the paper's beta in its decoder). The same sum with a
    full-sequence reward is ARGS (Khanov et al., 2024), with a value function tokenwise controlled decoding (Mudgal et
    al., 2024, theorem 2.1, its lambda), with rewards of the whole vocabulary FaRMA (Rashid et al., 2025), and with
    log pi_r GenARM's pi pi_r^alpha (Xu et al., 2025).
    """
    return _add(logprobs, weight * rewards)


def add_clamped(
    logprobs: Float[Tensor, "batch candidates"], rewards: Float[Tensor, "batch candidates"], weight: Weight
) -> Float[Tensor, "batch candidates"]:
    """Return log pi(v | .) + w min(max(r, 0), 1): RAD (Deng and Raffel, 2023), whose beta is w."""
    return _add(logprobs, weight * rewards.clamp(0, 1))


def add_log_sigmoid(
    logprobs: Float[Tensor, "batch candidates"], rewards: Float[Tensor, "batch candidates"], weight: Weight
) -> Float[Tensor, "batch candidates"]:
    """Return log pi(v | .) + w log sigmoid(r), r the log-odds of an attribute given the prefix; w is its lambda.

    FUDGE (Yang and Klein, 2021), equation 2: P(x_i | x_<i) P(a | x_<=i)^lambda.
    """
    from torch.nn.functional import logsigmoid

    return _add(logprobs, weight * logsigmoid(rewards))


def _add(logprobs: Tensor, bonus: Tensor) -> Tensor:
    # Masked, since -inf plus an infinite reward is nan.
    return (logprobs + bonus).masked_fill(logprobs == float("-inf"), float("-inf"))
