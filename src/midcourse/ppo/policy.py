"""The model that is trained, the reference it begins at, and the values of prefixes."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prefix_cache import pad
from midcourse.ppo.settings import PPOSettings
from midcourse.rewards.backbone import Tuning, halves_of, state_width, with_adapter


class Tokens(NamedTuple):
    """Prompts and responses as a model reads them, each a row, padded behind.

    Attributes:
        token_ids: prompt, response, padding.
        starts: how many of a row's tokens are the prompt's.
        mask: True on the tokens of a response, its EOS included; as wide as the longest response.
    """

    token_ids: Int[Tensor, "batch tokens"]
    starts: Int[Tensor, " batch"]
    mask: Bool[Tensor, "batch response"]

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int], Sequence[int]]], device: torch.device) -> "Tokens":
        """Pad rows of (prompt ids, response ids)."""
        token_ids, _ = pad([[*prompt, *response] for prompt, response in rows], device)
        counts = torch.tensor([len(response) for _, response in rows], device=device)
        places = torch.arange(int(counts.max()), device=device)
        starts = torch.tensor([len(prompt) for prompt, _ in rows], device=device)
        return cls(token_ids, starts, places < counts[:, None])

    @property
    def places(self) -> Int[Tensor, "batch response"]:
        """The place of each response token in its row; beyond a response, the last one's place of the row."""
        places = self.starts[:, None] + torch.arange(self.mask.shape[1], device=self.mask.device)
        return places.clamp(max=self.token_ids.shape[1] - 1)

    @property
    def rows(self) -> Int[Tensor, "batch 1"]:
        """The number of each row, to index with beside `places`."""
        return torch.arange(len(self.mask), device=self.mask.device)[:, None]

    @property
    def responses(self) -> Int[Tensor, "batch response"]:
        """The tokens of the responses."""
        return self.token_ids[self.rows, self.places]


class Outlook(NamedTuple):
    """What a model says before each token of a response: at the prefix that the token follows.

    Attributes:
        logits: of the next token.
        values: what the rest of the response is expected to be paid.
    """

    logits: Float[Tensor, "batch response vocab"]
    values: Float[Tensor, "batch response"]

    def logprobs(self, tokens: Tokens) -> Float[Tensor, "batch response"]:
        """Return the log-probabilities of the responses' own tokens."""
        return chosen(self.logits, tokens)


def chosen(logits: Float[Tensor, "batch response vocab"], tokens: Tokens) -> Float[Tensor, "batch response"]:
    """Return the log-probabilities that logits give the responses' own tokens."""
    own = logits.gather(2, tokens.responses[:, :, None])[:, :, 0]
    return own - logits.logsumexp(-1)


class Halves(NamedTuple):
    """A causal LM in two: `below`, without adapters (ids to states), and `above` (states to logits)."""

    below: nn.Module
    above: nn.Module


class Policy(nn.Module):
    """A causal LM under training, its reference, and a value head, which is 0 at first.

    The model stays in eval mode: with dropout, a token's probability would differ from that it was drawn by.

    Attributes:
        lm: what writes.
        model: the causal LM, with adapters or as a whole; `lm`'s.
        reference: a copy from before training; None if leaving the adapters out gives it.
        critic: the model that values are read from, if it is not the policy's.
        head: reads a value off a hidden state.

    Args:
        lm: the model to begin at. Adapters are put into it: load it anew for anything else.
    """

    def __init__(self, lm: LanguageModel, settings: PPOSettings):
        super().__init__()
        torch.manual_seed(settings.seed)
        tuning = Tuning.parse(settings.tune)
        whole = tuning.kind == "all"
        model = lm.model.float() if whole and lm.model.dtype in (torch.float16, torch.bfloat16) else lm.model
        model.requires_grad_(False)
        self.reference: PreTrainedModel | None = copy.deepcopy(model) if whole else None
        critic: Any = copy.deepcopy(model.get_decoder()) if settings.values == "own" else None
        self.critic: nn.Module | None = critic and _trained(critic, tuning)
        self.model = _trained(model, tuning)
        self.lm = LanguageModel(model, lm.tokenizer, lm.name)
        # In a tuple, since their weights are the model's, which is a module of this one already.
        self._halves = (_halves(model, tuning.layers) if tuning.layers else None,)
        wide = torch.promote_types(model.dtype, torch.float32)
        self.head = nn.Linear(state_width(model.config), 1, dtype=wide, device=model.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.eval()

    @torch.no_grad()
    def entering(self, tokens: Tokens) -> Float[Tensor, "batch tokens hidden"] | None:
        """Return the states that enter the first layer with adapters; None if they cannot be kept apart.

        They stay the same while the policy is trained, and are the reference's too.
        """
        halves = self._halves[0]
        return halves and halves.below(tokens.token_ids, use_cache=False).last_hidden_state

    def forward(self, tokens: Tokens, entering: Float[Tensor, "batch tokens hidden"] | None = None) -> Outlook:
        """Return what the policy says before each token of the responses.

        Args:
            entering: what `entering` gives for these tokens, so that the layers below need not be run again.
        """
        output = self._read(self.model, tokens, entering, states=self.critic is None)
        if self.critic is None:
            states = output.hidden_states[-1]
        else:
            states = self.critic(tokens.token_ids, use_cache=False).last_hidden_state
        before = states[tokens.rows, tokens.places - 1]
        return Outlook(_logits(output, tokens), self.head(before.to(self.head.weight.dtype))[:, :, 0])

    @torch.no_grad()
    def reference_logits(
        self, tokens: Tokens, entering: Float[Tensor, "batch tokens hidden"] | None = None
    ) -> Float[Tensor, "batch response vocab"]:
        """Return the reference's logits before each token of the responses; see `forward`."""
        with self._without_adapters():
            return _logits(self._read(self.reference or self.model, tokens, entering), tokens)

    def _read(self, model: nn.Module, tokens: Tokens, entering: Tensor | None, states: bool = False) -> Any:
        # What is behind the last response token is padding, and what is before the first is no response's.
        keep = torch.arange(int(tokens.starts.min()) - 1, tokens.token_ids.shape[1] - 1, device=tokens.mask.device)
        halves, given = self._halves[0], {"input_ids": tokens.token_ids}
        if entering is not None and halves is not None:
            model, given = halves.above, {"inputs_embeds": entering}
        return model(**given, logits_to_keep=keep, output_hidden_states=states, use_cache=False)

    def _without_adapters(self) -> AbstractContextManager[None]:
        return self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext()

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the weights that are trained, by name."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


def _logits(output: Any, tokens: Tokens) -> Float[Tensor, "batch response vocab"]:
    logits = output.logits[tokens.rows, tokens.places - int(tokens.starts.min())]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _trained(model: PreTrainedModel, tuning: Tuning) -> nn.Module:
    """Return a model whose weights, or adapters, are trained; RewardError if it has fewer layers than asked for."""
    return model.requires_grad_(True) if tuning.kind == "all" else with_adapter(model, tuning)


def _halves(model: PreTrainedModel, last: int) -> Halves | None:
    """Return a model without its last layers, and these with its head, on the same weights.

    None if one after the other is not the whole, as where an architecture adds something to what its layers take.
    """
    decoder = model.get_decoder()
    if decoder not in model._modules.values():
        return None
    below, top = halves_of(decoder, last)
    above = copy.copy(model)
    above._modules = {name: top if own is decoder else own for name, own in model._modules.items()}
    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        states = below(ids, use_cache=False).last_hidden_state
        have = above(inputs_embeds=states, use_cache=False).logits
        whole = model(ids, use_cache=False).logits
    return Halves(below, above) if torch.allclose(have, whole, rtol=1e-3, atol=1e-3) else None
