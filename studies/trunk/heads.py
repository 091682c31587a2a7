"""The heads that the study tries: what `midcourse.rewards.trunk` ships, and what it does without."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention

from midcourse.rewards.trunk import normed

HEADS = 4


class Head(nn.Module):
    """f of the next token, the running sum of g over all, or both; see `midcourse.rewards.trunk`.

    Args:
        hidden: width of one layer's states and of the embeddings.
        layers: how many layers' states stand side by side.
        rank: of the bilinear parts.
        parts: "f", "g" or "f+g".
        mlp: width of a hidden layer over state and embedding beside the bilinear part; 0 for none.
        attention: width of a block of causal attention over the response's states, of which f and g then read the
            output too; 0 for none.
    """

    def __init__(self, hidden: int, layers: int, rank: int, parts: str, mlp: int, attention: int):
        super().__init__()
        self.parts, self.rank, self.numbers = parts, rank, len(parts.split("+"))
        width = hidden * layers + attention
        self.attention = attention
        if attention:
            self.enter = nn.Linear(hidden * layers, attention, bias=False)
            self.attend = nn.Linear(attention, 3 * attention, bias=False)
            self.leave = nn.Linear(attention, attention, bias=False)
        self.state = nn.Linear(width, self.numbers, bias=False)
        self.token = nn.Linear(hidden, self.numbers, bias=False)
        self.left = nn.Linear(width, self.numbers * rank, bias=False)
        self.right = nn.Linear(hidden, self.numbers * rank, bias=False)
        self.mlp = mlp
        if mlp:
            self.from_state = nn.Linear(width, mlp, bias=False)
            self.from_token = nn.Linear(hidden, mlp, bias=False)
            self.out = nn.Linear(mlp, self.numbers, bias=False)
            nn.init.zeros_(self.out.weight)
        for part in (self.state, self.token, self.right):
            nn.init.zeros_(part.weight)

    def rewards(
        self, states: Float[Tensor, "rows tokens wide"], embeddings: Float[Tensor, "rows tokens hidden"]
    ) -> Float[Tensor, "rows tokens"]:
        """The reward of every prefix of right-padded responses; anything beyond their ends."""
        found = self.of_next(self.context(states), embeddings)
        if self.parts == "f":
            return found[..., 0]
        return found[..., -1].cumsum(1) + (found[..., 0] if self.parts == "f+g" else 0.0)

    def candidates(
        self, states: Float[Tensor, "rows tokens wide"], embeddings: Float[Tensor, "rows tokens candidates hidden"]
    ) -> Float[Tensor, "rows tokens candidates"]:
        """What sets candidates of a step apart: f + g of each."""
        return self.of_next(self.context(states)[:, :, None], embeddings).sum(-1)

    def of_next(self, h: Tensor, e: Tensor) -> Tensor:
        """(f, g), or the one there is, of a token after a state."""
        products = (self.left(h) * self.right(e)).unflatten(-1, (self.numbers, -1)).sum(-1)
        found = self.state(h) + self.token(e) + products
        if self.mlp:
            found = found + self.out(gelu(self.from_state(h) + self.from_token(e)))
        return found

    def context(self, states: Tensor) -> Tensor:
        """The states, with what the attention block makes of those so far beside them."""
        if not self.attention:
            return states
        x = self.enter(states)
        parts = self.attend(rms_norm(x, x.shape[-1:])).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        return torch.cat([states, rms_norm(x + self.leave(seen), x.shape[-1:])], -1)


def side_by_side(states: list[Float[Tensor, "*place hidden"]]) -> Float[Tensor, "*place wide"]:
    """Several layers' states, each normalised."""
    return torch.cat([normed(state) for state in states], -1)
