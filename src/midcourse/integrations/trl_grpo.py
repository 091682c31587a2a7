"""Rewards of tokens in TRL's GRPOTrainer, which takes advantages of (batch, tokens) and rewards of responses only.

    trainer = TokenGRPOTrainer(model, load_reward("civil"), args=GRPOConfig(...), train_dataset=prompts)
    trainer.train()

TRL compares a response's whole reward, the sum of its tokens', with its group's. To that advantage every token adds how
much more it is paid than its response's tokens are on average, which adds up to 0 and makes no response longer:

    A_it = TRL's A_i + shaping (r_it - mean of r_i)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from midcourse.errors import MidcourseError
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt, Template, prompt_ids
from midcourse.ppo.advantages import shaped
from midcourse.ppo.rollouts import Payment, Rollout, TokenFunction
from midcourse.ppo.settings import Density
from midcourse.rewards.contract import Reward

try:
    from trl import GRPOTrainer
except ImportError as missing:
    raise MidcourseError("TokenGRPOTrainer needs trl; run: pip install 'midcourse[trl]'") from missing


class TokenRewards:
    """What TRL calls for the reward of each response; it keeps those of their tokens.

    Attributes:
        last: the rewards of the tokens of the responses that were rewarded last.
    """

    def __init__(self, payment: Payment, template: Template):
        self.payment, self.template = payment, template
        self.last: list[Tensor] = []

    def __call__(
        self, prompts: Sequence[Prompt], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        """Return the sum of the rewards of each completion's tokens."""
        tokenizer, ends = self.payment.lm.tokenizer, self.payment.lm.eos_token_ids
        rollouts = [
            Rollout(
                number,
                number,
                prompt,
                tuple(prompt_ids(tokenizer, prompt, self.template)),
                tuple(ids),
                completion if isinstance(completion, str) else completion[-1]["content"],
                bool(ids) and ids[-1] in ends,
            )
            for number, (prompt, completion, ids) in enumerate(zip(prompts, completions, completion_ids, strict=True))
        ]
        counts = torch.tensor([len(one.response_ids) for one in rollouts])
        mask = torch.arange(int(counts.max())) < counts[:, None]
        paid = self.payment(rollouts, mask)
        self.last = [row[:count] for row, count in zip(paid, counts.tolist(), strict=True)]
        return [row.sum().item() for row in self.last]


class TokenGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with an advantage for every token.

    Args:
        model, kwargs: GRPOTrainer's own.
        token_reward: any reward, or a function from (rollouts, mask) to rewards of tokens, (batch, tokens).
        shaping: how much of its own reward, against its response's mean, a token gets; 0 is plain GRPO.
        density: what a token is paid of `token_reward`; see `PPOSettings`.
        reward_funcs: further rewards of responses.

    Raises:
        PPOError, RewardError: rewards that fit no response, or that read other tokens than the model writes.
    """

    def __init__(
        self,
        model: Any,
        token_reward: Reward | TokenFunction,
        *,
        shaping: float = 1.0,
        density: Density = "tokens",
        reward_funcs: Sequence[Any] = (),
        **kwargs: Any,
    ):
        self.shaping = shaping
        template = token_reward.template if isinstance(token_reward, Reward) else None
        self.token_rewards: TokenRewards | None = None

        def paid(**given: Any) -> list[float]:
            assert self.token_rewards is not None
            return self.token_rewards(**given)

        paid.__name__ = "token_rewards"
        super().__init__(model=model, reward_funcs=[paid, *reward_funcs], **kwargs)
        inside = self.accelerator.unwrap_model(self.model)
        lm = LanguageModel(getattr(inside, "get_base_model", lambda: inside)(), self.processing_class)
        self.token_rewards = TokenRewards(Payment(lm, token_reward, density), template or "mixed")

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        assert self.token_rewards is not None
        mask = output["completion_mask"].bool()
        rewards = in_shape(self.token_rewards.last, mask)
        output["advantages"] = shaped(output["advantages"], rewards, mask, self.shaping)
        return output


def in_shape(rewards: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return rewards of each response's tokens as one tensor of the mask's shape, 0 behind them."""
    made = torch.zeros(mask.shape, device=mask.device)
    padded = pad_sequence([row.to(made) for row in rewards], batch_first=True)
    made[:, : padded.shape[1]] = padded[:, : mask.shape[1]]
    return made
