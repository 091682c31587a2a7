"""The equations: a language model's log-probabilities and rewards to guided log-probabilities.

A guidance is a pure function `guide(logprobs, rewards, weight)` over the candidates of a step. Its result need not be
normalised; temperature and normalisation follow in `choice`.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Guidance = Callable[[Tensor, Tensor, float], Tensor]


def add_reward(
    logprobs: Float[Tensor, "batch candidates"], rewards: Float[Tensor, "batch candidates"], weight: float
) -> Float[Tensor, "batch candidates"]:
    """log pi(v | x, y_<i) + w r(y_<i v | x), the tokenwise RLHF policy before normalisation.

    PARGS (Rashid et al., A Critical Look At Tokenwise Reward-Guided Text Generation, 2024), its decoding rule, with w
    the multiplier of the reward inside exp (1 / KL coefficient; the paper's beta in its decoder). The same sum with a
    full-sequence reward is ARGS (Khanov et al., 2024). A candidate at -inf stays at -inf whatever its reward.
    """
    # Masked, since -inf plus an infinite reward is nan.
    return (logprobs + weight * rewards).masked_fill(logprobs == float("-inf"), float("-inf"))
