"""Rollouts to comparisons: which of two responses to a prompt is preferred, by a number or by a judge."""

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

from midcourse.data.comparisons import Comparison, prompt_key
from midcourse.data.jsonl import as_line
from midcourse.data.judge import Judge, Question, judge_all
from midcourse.data.labels import draw_label, label_ceiling, swapped
from midcourse.data.rollouts import Rollout
from midcourse.errors import MidcourseError
from midcourse.files import write_bytes

PAIRS = ("bradley-terry", "best-worst", "all")

Group: TypeAlias = list[int]  # places among the rollouts


class PreferError(MidcourseError):
    """Rollouts that give no comparisons."""


@dataclass(frozen=True)
class Summary:
    """What became of the rollouts.

    Attributes:
        empty: rollouts without text, left out: nothing can be learned from them.
        repeated: rollouts whose text another of their prompt has already, left out.
        pairs: comparisons.
        pairs_of_prompts: prompts that these are of.
        ties: pairs left out: of a gap that is no more than the least, or in which the judge sees no difference.
        mean_gap: mean difference of the two rewards of a comparison; None with a judge.
        bayes_accuracy: of Bradley-Terry draws: the accuracy that no reward can exceed.
        judged: pairs that the judge was asked about.
        contradictions: of these, those that it judged in one order otherwise than in the other; they are ties, too.
        unparseable: of these, those without a readable verdict, left out.
        agreement: of those with readable verdicts the share that were judged alike in both orders.
    """

    rollouts: int
    prompts: int
    empty: int
    repeated: int
    pairs: int
    pairs_of_prompts: int
    ties: int
    mean_gap: float | None = None
    bayes_accuracy: float | None = None
    judged: int | None = None
    contradictions: int | None = None
    unparseable: int | None = None
    agreement: float | None = None


def prefer(
    rollouts: Sequence[Rollout],
    rewards: Sequence[float] | None = None,
    *,
    pairs: str = "bradley-terry",
    scale: float = 1.0,
    min_gap: float = 0.0,
    pairs_per_prompt: int | None = None,
    seed: int = 0,
) -> tuple[list[Comparison], Summary]:
    """Make comparisons of responses to the same prompt, by their rewards.

    Args:
        rewards: one for each rollout; by default those the rollouts have.
        pairs: "bradley-terry": every pair, each preference drawn with P(a over b) = sigmoid(scale (r_a - r_b));
            "best-worst": a prompt's highest reward over its lowest; "all": every pair, the higher reward preferred.
        scale: of the draws; the larger, the fewer of them go against the rewards.
        min_gap: pairs whose rewards differ by no more than this are ties, and left out.
        pairs_per_prompt: of a prompt's pairs at most so many, at random.

    Raises:
        PreferError: a rollout without a finite reward, no pair at all, or a setting that makes no sense.

    Examples:
        >>> comparisons, summary = prefer(sample(lm, prompts, "rollouts.jsonl", label=len), pairs="best-worst")
    """
    if pairs not in PAIRS:
        raise PreferError(f"pairs {pairs!r} is unknown; use one of: {', '.join(PAIRS)}")
    for name, value in (("scale", scale), ("min-gap", min_gap)):
        if not 0 <= value < math.inf or (name == "scale" and value == 0):
            raise PreferError(f"{name} {value} makes no sense; use a finite number, such as 1")
    values = _finite(rollouts, rewards)
    groups, counts = _distinct(rollouts)
    if pairs == "best-worst":
        asked = [(max(g, key=values.__getitem__), min(g, key=values.__getitem__)) for g in groups if len(g) > 1]
    else:
        asked = _combinations(groups, pairs_per_prompt, seed)
    margins = [values[a] - values[b] for a, b in asked]
    kept = [(pair, margin) for pair, margin in zip(asked, margins, strict=True) if abs(margin) > min_gap]
    comparisons = [
        draw_label(_comparison(rollouts, pair), margin, scale, random.Random(f"{seed}/{i}"))
        if pairs == "bradley-terry"
        else _ordered(_comparison(rollouts, pair), margin > 0)
        for i, (pair, margin) in enumerate(kept)
    ]
    ties = len(asked) - len(kept)
    _check_some(comparisons, f"{ties} pairs of {len(groups)} prompts are ties; sample more, or lower --min-gap")
    gaps = [abs(margin) for _, margin in kept]
    return comparisons, replace(
        counts,
        **_of_pairs(comparisons),
        ties=ties,
        mean_gap=sum(gaps) / len(gaps),
        bayes_accuracy=label_ceiling(gaps, scale) if pairs == "bradley-terry" else None,
    )


def prefer_by_judge(
    rollouts: Sequence[Rollout],
    judge: Judge,
    verdicts: Path,
    *,
    pairs_per_prompt: int | None = None,
    seed: int = 0,
    concurrency: int = 8,
    resume: bool = False,
) -> tuple[list[Comparison], Summary]:
    """Make comparisons of responses to the same prompt, each asked of the judge in both orders.

    Args:
        verdicts: file of verdicts, appended to as they come; with `resume`, those it holds are not asked for again.

    Raises:
        PreferError: no pair that the judge decides.
        JudgeError, RowFileError: as `judge_all`.
    """
    groups, counts = _distinct(rollouts)
    asked = _combinations(groups, pairs_per_prompt, seed)
    questions = [Question(rollouts[a].prompt, rollouts[a].response, rollouts[b].response) for a, b in asked]
    answers = judge_all(judge, questions, verdicts, concurrency=concurrency, resume=resume)
    comparisons = [
        _ordered(_comparison(rollouts, pair), verdict.winner == "a")
        for pair, verdict in zip(asked, answers, strict=True)
        if verdict.winner in ("a", "b")
    ]
    parsed = [verdict for verdict in answers if verdict.parsed]
    ties, unparseable = len(parsed) - len(comparisons), len(answers) - len(parsed)
    _check_some(comparisons, f"of {len(answers)} pairs {ties} are ties and {unparseable} verdicts unreadable")
    return comparisons, replace(
        counts,
        **_of_pairs(comparisons),
        ties=ties,
        judged=len(answers),
        contradictions=sum(not verdict.agrees for verdict in parsed),
        unparseable=unparseable,
        agreement=sum(verdict.agrees for verdict in parsed) / len(parsed),
    )


def write_comparisons(path: str | Path, comparisons: Iterable[Comparison]) -> None:
    """Write a file that `midcourse train` reads, whole or not at all."""
    write_bytes(Path(path), b"".join(as_line(asdict(comparison)) for comparison in comparisons))


def _finite(rollouts: Sequence[Rollout], rewards: Sequence[float] | None) -> list[float]:
    if rewards is not None and len(rewards) != len(rollouts):
        raise PreferError(f"{len(rewards)} rewards for {len(rollouts)} rollouts; give one for each")
    numbers = []
    given = [rollout.reward for rollout in rollouts] if rewards is None else rewards
    for number, (rollout, reward) in enumerate(zip(rollouts, given, strict=True), 1):
        if reward is None:
            raise PreferError(
                f"rollout {number} ({rollout.response[:40]!r}) has no reward; label it with midcourse sample "
                "--label-with REWARD --resume, or prefer --by-reward, --by-function or --judge"
            )
        if not math.isfinite(reward):
            raise PreferError(f"rollout {number} ({rollout.response[:40]!r}) has the reward {reward}, no finite number")
        numbers.append(float(reward))
    return numbers


def _distinct(rollouts: Sequence[Rollout]) -> tuple[list[Group], Summary]:
    """Return each prompt's rollouts with a text of their own, and what was left out."""
    groups: dict[str, dict[str, int]] = {}
    empty = repeated = 0
    for place, rollout in enumerate(rollouts):
        texts = groups.setdefault(prompt_key(rollout.prompt), {})
        if not rollout.response.strip():
            empty += 1
        elif rollout.response in texts:
            repeated += 1
        else:
            texts[rollout.response] = place
    counts = Summary(len(rollouts), len(groups), empty, repeated, pairs=0, pairs_of_prompts=0, ties=0)
    return [list(texts.values()) for texts in groups.values()], counts


def _combinations(groups: Sequence[Group], pairs_per_prompt: int | None, seed: int) -> list[tuple[int, int]]:
    if pairs_per_prompt is not None and pairs_per_prompt < 1:
        raise PreferError(f"pairs-per-prompt {pairs_per_prompt} asks for none; use 1 or more")
    combinations = []
    for number, group in enumerate(groups):
        pairs = list(itertools.combinations(group, 2))
        if pairs_per_prompt is not None and pairs_per_prompt < len(pairs):
            pairs = random.Random(f"{seed}/{number}").sample(pairs, pairs_per_prompt)
        combinations += pairs
    return combinations


def _comparison(rollouts: Sequence[Rollout], pair: tuple[int, int]) -> Comparison:
    a, b = (rollouts[place] for place in pair)
    return Comparison(a.prompt, a.response, b.response, a.finished, b.finished)


def _ordered(comparison: Comparison, first_wins: bool) -> Comparison:
    return comparison if first_wins else swapped(comparison)


def _of_pairs(comparisons: Sequence[Comparison]) -> dict[str, int]:
    return {"pairs": len(comparisons), "pairs_of_prompts": len({prompt_key(c.prompt) for c in comparisons})}


def _check_some(comparisons: Sequence[Comparison], why: str) -> None:
    if not comparisons:
        raise PreferError(f"no response is preferred to another: {why}")
