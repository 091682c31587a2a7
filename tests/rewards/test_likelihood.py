import math

import numpy as np
import pytest
import torch

from midcourse.rewards import likelihood
from midcourse.rewards.likelihood import STATISTICS, TokenFigures, fast_detect_gpt, token_figures
from midcourse.testing import tiny_language_model


def figures_of(logits: torch.Tensor, targets: list[int]) -> TokenFigures:
    found = token_figures(lambda states: states, logits, torch.tensor(targets))
    return TokenFigures(*found.double().numpy().T)


# Two tokens of a vocabulary of three, with probabilities 1/2, 1/4, 1/4 and 1/8, 1/8, 3/4.
LOGITS = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 1.0 + math.log2(6)]]) * math.log(2) + 7.0


def test_token_figures_by_hand():
    found = figures_of(LOGITS, [1, 2])
    log2 = math.log(2)
    assert found.logprob == pytest.approx([-2 * log2, math.log(0.75)], abs=1e-6)
    assert found.rank.tolist() == [2, 1]  # 1/4 ties with the other 1/4: only likelier ones stand before it
    entropy = [1.5 * log2, 2 / 8 * 3 * log2 - 0.75 * math.log(0.75)]
    assert found.entropy == pytest.approx(entropy, abs=1e-6)
    squares = [log2**2 * (0.5 + 0.5 * 4), 2 / 8 * (3 * log2) ** 2 + 0.75 * math.log(0.75) ** 2]
    assert found.variance == pytest.approx([s - e**2 for s, e in zip(squares, entropy, strict=True)], abs=1e-6)


def test_statistics_by_hand():
    tokens = TokenFigures(*map(np.array, ([-1.0, -3.0], [1.0, 4.0], [2.0, 1.0], [0.5, 1.5])))
    have = {name: statistic(tokens) for name, statistic in STATISTICS.items()}
    assert have == pytest.approx(
        {
            "log-likelihood": -2.0,
            "rank": -2.5,
            "log-rank": -math.log(4) / 2,
            "entropy": -1.5,
            "lrr": 4 / math.log(4),
            "fast-detectgpt": (-4 + 3) / math.sqrt(2),
        }
    )


def test_the_likeliest_text_has_finite_statistics():
    tokens = TokenFigures(*map(np.array, ([0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0])))
    assert all(math.isfinite(statistic(tokens)) for statistic in STATISTICS.values())


def test_chunks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    logits, targets = torch.randn(37, 50) * 3, torch.randint(50, (37,)).tolist()
    whole = figures_of(logits, targets)
    monkeypatch.setattr(likelihood, "CHUNK", 7)
    monkeypatch.setattr(likelihood, "ROWS", 3)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(whole, figures_of(logits, targets), strict=True))
    assert token_figures(lambda states: states, logits[:0], torch.tensor([], dtype=torch.long)).shape == (0, 4)


def test_the_closed_form_of_fast_detectgpt_is_the_limit_of_its_sampling_form():
    """The authors' sampling form compares the text with others drawn token by token from the same conditionals."""
    lm = tiny_language_model("llama")
    ids = torch.randint(3, 250, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = lm.model(ids).logits[0, :-1].float()
    closed = fast_detect_gpt(figures_of(logits, ids[0, 1:].tolist()))
    logprobs = logits.log_softmax(-1)
    drawn = torch.multinomial(logprobs.exp(), 40_000, replacement=True, generator=torch.Generator().manual_seed(1))
    sums = logprobs.gather(1, drawn).sum(0)
    text = logprobs.gather(1, ids[0, 1:, None]).sum()
    assert closed == pytest.approx(float((text - sums.mean()) / sums.std()), rel=0.02, abs=0.02)
