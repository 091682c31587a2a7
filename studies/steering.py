"""What the studies share: texts under a reward at several weights, judged by gold, read off at equal guidance KL."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from midcourse import LanguageModel, stream
from midcourse.compare.report.matched import Curve, score_at
from midcourse.decode.steps import Generation
from midcourse.evaluate.intervals import resamples
from midcourse.evaluate.metrics import perplexity, repeated_bigrams
from midcourse.lm.prompt import Prompt
from midcourse.progress import progress
from midcourse.rewards.contract import Reward

Gold = Callable[[str], float]
KLS = (2.0, 5.0, 10.0)


class Guided(NamedTuple):
    """The same prompts under one weight: each response's gold reward and guidance KL in nats."""

    weight: float
    gold: np.ndarray
    guidance_kl: np.ndarray


def write(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reward: Reward | None,
    weight: float,
    *,
    new_tokens: int = 24,
    seed: int = 0,
    batch_size: int = 40,
    **settings: Any,
) -> list[Generation]:
    """Responses to the prompts at one weight, plain where there is no reward: top 10, temperature 1."""
    found: dict[int, Generation] = {}
    chosen = {"method": "pargs" if reward else "plain", "top_k": 10, "reward_weight": weight}
    chosen["template"] = reward.template if reward else "mixed"
    with progress(f"weight {weight:.2g}", len(prompts)) as advance:
        for row, event in stream(
            lm, prompts, reward, max_new_tokens=new_tokens, seed=seed, batch_size=batch_size, **(chosen | settings)
        ):
            if isinstance(event, Generation):
                found[row] = event
                advance(1)
    return [found[row] for row in range(len(prompts))]


def judged(texts: Sequence[Generation], weight: float, gold: Gold) -> Guided:
    """Each text's gold and guidance KL."""
    return Guided(
        weight, np.array([gold(text.text) for text in texts]), np.array([text.guidance_kl or 0.0 for text in texts])
    )


def figures(texts: Sequence[Generation], gold: Guided) -> dict[str, float]:
    """A weight's row of a results file."""
    return {
        "weight": gold.weight,
        "gold": float(gold.gold.mean()),
        "guidance_kl": float(gold.guidance_kl.mean()),
        "total_kl": fmean(text.total_kl or 0.0 for text in texts),
        "perplexity": perplexity(texts),
        "repeated_bigrams": fmean(repeated_bigrams(text.text) for text in texts),
        "length": fmean(len(text.steps) for text in texts),
    }


def steered(
    lm: LanguageModel,
    reward: Reward,
    gold: Gold,
    validation: Sequence[Prompt],
    test: Sequence[Prompt],
    plain: Sequence[Generation],
    *,
    kls: Sequence[float] = KLS,
    **settings: Any,
) -> dict[str, Any]:
    """Gold at each guidance KL on test prompts; the weights that reach them are found on validation prompts.

    Args:
        plain: the test prompts' unguided texts.

    Returns:
        prompts, weights (a row of figures each), at_kl (kl, gold and interval, or None where it was not reached).
    """

    def kl_of(weight: float) -> float:
        texts = write(lm, validation, reward, weight, seed=10_000, **settings)
        return fmean(text.guidance_kl or 0.0 for text in texts)

    runs, rows = [judged(plain, 0.0, gold)], [figures(plain, judged(plain, 0.0, gold))]
    *weights, last = weights_at(kl_of, sorted(kls))
    # Past the last aim by a tenth of the weight, so that it is reached on other prompts too.
    for weight in (*weights, 1.1 * last):
        texts = write(lm, test, reward, weight, **settings)
        runs.append(judged(texts, weight, gold))
        rows.append(figures(texts, runs[-1]))
    return {"prompts": len(test), "weights": rows, "at_kl": [read_off(runs, kl) for kl in kls]}


def read_off(runs: Sequence[Guided], kl: float) -> dict[str, Any]:
    """A row of `at_kl`: the gold reward at a guidance KL."""
    found = at_kl(runs, kl)
    return {"kl": kl, "gold": found[0] if found else None, "interval": found[1] if found else None}


def at_kl(runs: Sequence[Guided], kl: float, *, seed: int = 0) -> tuple[float, tuple[float, float]] | None:
    """(mean gold, its 95 % interval) at a mean guidance KL; see `score_at`.

    Give the plain run too: weight 0 lies at 0 nats. For one prompt the interval is the mean.
    """
    kls, gold = (np.stack([getattr(run, name) for run in runs]) for name in ("guidance_kl", "gold"))
    found = score_at(Curve(kls, gold, resamples(kls.shape[1], seed=seed)), kl)
    return found and (found.mean, found.interval or (found.mean, found.mean))


def weights_at(
    kl_of: Callable[[float], float], kls: Sequence[float], *, start: float = 1.0, tries: int = 5
) -> list[float]:
    """For each of the KLs the weight whose guidance KL is within a tenth of it, or else the nearest one tried.

    Args:
        kl_of: the guidance KL under a weight, which grows with it.
        start: the first weight to try.
        tries: weights to try for each KL; what was found for one counts for all.
    """
    tried: dict[float, float] = {}

    def nearest(kl: float) -> tuple[float, float]:
        """How far a tried weight's KL is from this one, on logarithms, and the weight."""
        return min((abs(math.log(found / kl)), weight) for weight, found in tried.items())

    for kl in kls:
        for _ in range(tries):
            weight = _guess(tried, kl) if tried else start
            if weight in tried or (tried and nearest(kl)[0] <= math.log(1.1)):
                break
            tried[weight] = max(kl_of(weight), 1e-9)
    return [nearest(kl)[1] for kl in kls]


def _guess(tried: Mapping[float, float], kl: float) -> float:
    """A weight for the KL: on a line of logarithms between the weights around it, by a root beyond them.

    KL grows with the square of a small weight, and more slowly later.
    """
    below = max((weight for weight, found in tried.items() if found < kl), default=None)
    above = min((weight for weight, found in tried.items() if found >= kl), default=None)
    if below is None or above is None:
        weight = below or above or 1.0
        return weight * min(max((kl / tried[weight]) ** 0.5, 0.25), 4.0)
    share = math.log(kl / tried[below]) / math.log(tried[above] / tried[below])
    return below * (above / below) ** share
