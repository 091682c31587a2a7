"""The rows of a comparison by arm, prompt and judge: what figures average."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TypeGuard

import numpy as np

from midcourse.compare.report.statistics import Estimate, LengthControl, Ratio, estimate
from midcourse.compare.rows import ComparisonRows, ResponseRow
from midcourse.evaluate.intervals import resamples


class GroupedRows:
    """The rows of a comparison by arm, prompt and judge, with one set of bootstrap draws for all figures."""

    def __init__(self, comparison: ComparisonRows) -> None:
        self.asked = comparison.asked
        self.prompts = sorted({row.prompt_id for row in comparison.responses})
        self._position = {prompt: i for i, prompt in enumerate(self.prompts)}
        self.times = resamples(len(self.prompts))
        by_arm: dict[str, list[ResponseRow]] = defaultdict(list)
        for row in sorted(comparison.responses, key=lambda row: (row.prompt_id, row.seed)):
            by_arm[row.arm].append(row)
        asked = [arm for arm in self.asked.get("arms", {}) if arm in by_arm]
        self.by_arm = {arm: by_arm[arm] for arm in dict.fromkeys([*asked, *by_arm])}
        self.arms = list(self.by_arm)
        self.scores: dict[str, dict[str, float]] = defaultdict(dict)
        self.outcomes: dict[tuple[str, str], dict[str, float | None]] = defaultdict(dict)
        for said in comparison.judgements:
            if said.versus is not None:
                self.outcomes[said.judge, said.versus][said.key] = said.outcome if said.parsed else None
            elif is_finite(said.score):
                self.scores[said.judge][said.key] = said.score
        named = [*self.asked.get("judges", {}), *self.scores, *(judge for judge, _ in self.outcomes)]
        self.judges = list(dict.fromkeys(named))
        self.scored = [judge for judge in self.judges if self.scores.get(judge)]
        self.plain = self._arm_of("plain")
        self.reference = self._arm_of(self.asked.get("reference") or "plain")

    def _arm_of(self, name: str) -> str | None:
        """Return the arm of that name, or the first of the method of that name, a drawn one if there is one."""
        if name in self.by_arm:
            return name
        arms = [arm for arm in self.arms if method_of(self.first(arm)) == name]
        return min(arms, key=lambda arm: self.first(arm).greedy, default=None)

    def first(self, arm: str) -> ResponseRow:
        return self.by_arm[arm][0]

    def parameters(self, arm: str) -> tuple[int | None, int | None]:
        """Return the parameters of the language model and of the reward, each if it is known."""
        asked = self.asked.get("arms", {}).get(arm, {})
        return asked.get("lm_parameters"), asked.get("reward_parameters")

    def mean(self, arm: str, value: Callable[[ResponseRow], float | None]) -> Ratio:
        """Return the mean over prompts of each prompt's mean over its seeds."""
        return self._of_prompts({prompt: _mean_of(value(row) for row in rows) for prompt, rows in self._prompts(arm)})

    def mean_of_texts(self, arm: str, value: Callable[[list[str]], float | None]) -> Ratio:
        """Return the mean over prompts of a figure of all texts of a prompt."""
        return self._of_prompts({prompt: value([row.text for row in rows]) for prompt, rows in self._prompts(arm)})

    def pooled(
        self,
        arm: str,
        numerator: Callable[[ResponseRow], float | None],
        denominator: Callable[[ResponseRow], float | None],
        then: Callable[[np.ndarray], np.ndarray] = lambda ratio: ratio,
        *,
        unit: Callable[[ResponseRow], int] = lambda row: row.prompt_id,
    ) -> Ratio:
        """Return the sum of one figure over that of another, of the responses that have both.

        Args:
            unit: the prompt that a response counts as in the bootstrap, such as its batch's first; one without any
                response is taken as the first of all.
        """
        sums = np.zeros((2, len(self.prompts)))
        for row in self.by_arm[arm]:
            above, below = numerator(row), denominator(row)
            if is_finite(above) and is_finite(below):
                sums[:, self._position.get(unit(row), 0)] += above, below
        return Ratio(sums[0], sums[1], then)

    def score(self, arm: str, judge: str) -> Ratio:
        """Return the mean score of an arm."""
        return self.mean(arm, lambda row: self.scores[judge].get(row.key))

    def wins(self, arm: str, other: str, judge: str) -> Ratio:
        """Return the share of prompts whose score is higher than the other arm's; a tie counts half.

        Every seed of a prompt is compared with every seed of the other arm.
        """
        scores = self.scores[judge]
        rivals = dict(self._prompts(other))
        return self._of_prompts(
            {
                prompt: _mean_of(
                    _won(scores.get(row.key), scores.get(rival.key)) for row in rows for rival in rivals.get(prompt, ())
                )
                for prompt, rows in self._prompts(arm)
            }
        )

    def verdicts(self, arm: str, other: str, judge: str) -> Ratio:
        """Return the mean outcome of an LM judge's comparisons with the other arm, of those that could be read."""
        return self.mean(arm, lambda row: self.outcomes[judge, other].get(row.key))

    def by_prompt(self, arm: str, value: Callable[[ResponseRow], float | None]) -> np.ndarray:
        """Return each prompt's mean over its seeds; NaN for a prompt without one."""
        mean = self.mean(arm, value)
        return np.where(mean.present, mean.numerators, np.nan)

    def _prompts(self, arm: str) -> Iterator[tuple[int, list[ResponseRow]]]:
        by_prompt: dict[int, list[ResponseRow]] = defaultdict(list)
        for row in self.by_arm[arm]:
            by_prompt[row.prompt_id].append(row)
        return iter(by_prompt.items())

    def _of_prompts(self, values: Mapping[int, float | None]) -> Ratio:
        sums = np.zeros((2, len(self.prompts)))
        for prompt, value in values.items():
            if is_finite(value):
                sums[:, self._position[prompt]] = value, 1.0
        return Ratio(*sums)

    def estimate(self, figure: Ratio) -> Estimate | None:
        """Return the figure with its interval."""
        return estimate(figure, figure.present, self.times)

    @cached_property
    def lengths(self) -> dict[str, LengthControl]:
        """Return, by judge, the fit of the scores of all arms on their lengths in tokens."""
        return {judge: self._length_control(judge) for judge in self.scored}

    def _length_control(self, judge: str) -> LengthControl:
        kept: list[list[list[tuple[float, float]]]] = [[[] for _ in self.prompts] for _ in self.arms]
        for arm, of_prompts in zip(self.arms, kept, strict=True):
            for row in self.by_arm[arm]:
                if row.key in self.scores[judge] and row.tokens:
                    of_prompts[self._position[row.prompt_id]].append((self.scores[judge][row.key], float(row.tokens)))
        return LengthControl.of(kept)


def method_of(row: ResponseRow) -> str:
    """Return the method's name without the number of samples that "best-of-n:16" carries."""
    return row.method.partition(":")[0]


def guidance_kl(row: ResponseRow) -> float | None:
    """Return the nats of guidance; of best-of-n the bound on them."""
    return row.guidance_kl if row.guidance_kl is not None else row.kl_bound


def total_kl(row: ResponseRow) -> float | None:
    """Return the nats against the language model; of best-of-n the bound on them.

    KL(q || pi) = KL(q || b) + E_q[log b - log pi] for q, the best of n, and b, the policy that drew them, whose
    log-probabilities its steps hold.
    """
    if row.total_kl is not None or row.kl_bound is None:
        return row.total_kl
    if row.logprob is None or row.reference_logprob is None:
        return None
    return row.kl_bound + row.logprob - row.reference_logprob


def is_bound(row: ResponseRow) -> bool:
    """Return whether a response's KL is a bound."""
    return row.guidance_kl is None and row.kl_bound is not None


def _won(score: float | None, other: float | None) -> float | None:
    if score is None or other is None:
        return None
    return 0.5 if score == other else float(score > other)


def _mean_of(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if is_finite(value)]
    return math.fsum(numbers) / len(numbers) if numbers else None


def is_finite(value: float | None) -> TypeGuard[float]:
    """Return whether there is a number."""
    return value is not None and math.isfinite(value)
