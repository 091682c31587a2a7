"""From the rows of a comparison to its figures: per arm, per method at equal KL, and by cost.

Everything is an average over prompts with a 95 % interval by one paired bootstrap over prompts (`statistics`).
Differences are to the comparison's reference method, their p-values corrected by Holm's method within each figure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from midcourse.compare.report.curves import curve_figures, matched, method_curves, over_optimisation
from midcourse.compare.report.grouped import GroupedRows, guidance_kl, is_bound, total_kl
from midcourse.compare.report.statistics import Estimate, Ratio, difference, estimate, holm, quotient
from midcourse.compare.rows import REFERENCE_RESPONSES, ComparisonRows, ResponseRow
from midcourse.evaluate.intervals import interval_of
from midcourse.evaluate.metrics import distinct, diversity, repeated, repetition_loop

KLS = (2.0, 5.0, 10.0)
WINS = {"wins_against_plain": "plain", "wins_against_reference": "reference responses"}


class Figure(NamedTuple):
    """A figure of an arm: its name in JSON and CSV, what people read, and its digits."""

    name: str
    label: str
    digits: int


TEXT_FIGURES = (
    Figure("guidance_kl", "guidance KL", 2),
    Figure("total_kl", "total KL", 2),
    Figure("guide_reward", "guide's reward", 2),
    Figure("perplexity", "perplexity", 2),
    Figure("tokens", "tokens", 1),
    Figure("finished", "finished by EOS", 3),
    Figure("loops", "repetition loops", 3),
)
DIVERSITY_FIGURES = (
    Figure("rep_2", "rep-2", 3),
    Figure("rep_3", "rep-3", 3),
    Figure("rep_4", "rep-4", 3),
    Figure("diversity", "diversity", 3),
    Figure("distinct_2", "distinct-2", 3),
)
COST_FIGURES = (
    Figure("relative_speed", "speed relative to plain", 2),
    Figure("relative_time", "time relative to plain", 2),
    Figure("tokens_per_second", "tokens per second", 1),
    Figure("first_token_seconds", "first token, s", 3),
    Figure("lm_passes", "LM passes per token", 2),
    Figure("reward_passes", "reward passes per token", 2),
    Figure("candidates", "candidates per token", 2),
    Figure("gigaflops", "GFLOPs per token", 2),
)
FIGURES = (*TEXT_FIGURES, *DIVERSITY_FIGURES, *COST_FIGURES)


def summarise(comparison: ComparisonRows, *, kls: Sequence[float] = KLS) -> dict[str, Any]:
    """Return all figures of a comparison, as summary.json holds them.

    Args:
        kls: nats at which methods are compared, beside those of best-of-n. Of total KL they count from plain's own,
            which the cut to the likeliest candidates has spent already.

    Returns:
        A dictionary of numbers, strings, lists and None; an estimate is {"mean", "interval"}, and what was tested has
        "p" and "p_corrected" too.
    """
    rows = GroupedRows(comparison)
    curves = method_curves(rows)
    return {
        "prompts": len(rows.prompts),
        "seeds": max(len({row.seed for row in responses}) for responses in rows.by_arm.values()),
        "reference": rows.reference,
        "plain": rows.plain,
        "judges": {judge: _judge(rows, judge) for judge in rows.judges},
        "arms": _arms(rows),
        "curves": [curve_figures(rows, curve) for curve in curves],
        "matched": [entry for judge in rows.scored for entry in matched(rows, curves, judge, kls)],
        "over_optimisation": [
            over_optimisation(rows, curve, judge) for judge in rows.scored for curve in curves if len(curve.arms) > 1
        ],
        "notes": _notes(rows),
    }


# Arms


def _arms(rows: GroupedRows) -> dict[str, dict[str, Any]]:
    figures = {arm: _arm(rows, arm) for arm in rows.arms}
    ratios = {arm: _ratios(rows, arm) for arm in rows.arms}
    for figure in FIGURES:
        if figure.name in ratios[rows.arms[0]]:
            of_arm = {arm: ratios[arm][figure.name] for arm in rows.arms}
            for arm, values in _with_differences(rows, of_arm).items():
                figures[arm]["figures"][figure.name] = values
    for arm in rows.arms:
        figures[arm]["figures"].update(_relative(rows, ratios, arm))
    for judge in rows.judges:
        scores = _with_differences(rows, {arm: rows.score(arm, judge) for arm in rows.arms})
        wins = {name: _all_wins(rows, rival, judge) for name, rival in _rivals(rows).items()}
        for arm in rows.arms:
            figures[arm]["judges"][judge] = {
                "score": scores[arm],
                "scored": sum(row.key in rows.scores[judge] for row in rows.by_arm[arm]),
                "length_controlled": _length_controlled(rows, arm, judge),
                **{name: won.get(arm) for name, won in wins.items()},
            }
    return figures


def _arm(rows: GroupedRows, arm: str) -> dict[str, Any]:
    responses, first = rows.by_arm[arm], rows.first(arm)
    return {
        "method": first.method,
        "reward": first.reward,
        "setting": dict(first.setting or {}),
        "greedy": first.greedy,
        "kl_is_bound": is_bound(first),
        "responses": len(responses),
        "prompts": len({row.prompt_id for row in responses}),
        "looping": [row.key for row in responses if repetition_loop(row.text) is not None],
        "figures": {},
        "judges": {},
    }


def _ratios(rows: GroupedRows, arm: str) -> dict[str, Ratio]:
    """Return an arm's figures by name, but for the judges' and what is relative to plain."""
    lm, reward = rows.parameters(arm)

    def cost(name: str) -> Callable[[ResponseRow], float | None]:
        return lambda row: getattr(row.cost, name) if row.cost else None

    def gigaflops(row: ResponseRow) -> float | None:
        """Count two operations per parameter and position, a multiplication and an addition; attention adds more."""
        if row.cost is None or lm is None or (reward is None and row.cost.reward_passes):
            return None
        return 2e-9 * (lm * row.cost.lm_passes + (reward or 0) * row.cost.reward_passes)

    def surprise(row: ResponseRow) -> float | None:
        return None if row.reference_logprob is None else -row.reference_logprob

    def emitted(row: ResponseRow) -> float | None:
        return float(row.tokens) or None

    def shared(
        numerator: Callable[[ResponseRow], float | None], denominator: Callable[[ResponseRow], float | None]
    ) -> Ratio:
        """Return the ratio of two costs, which the responses of a batch share: what varies, then, is the batch."""
        return rows.pooled(arm, numerator, denominator, unit=lambda row: row.cost.batch if row.cost else row.prompt_id)

    return {
        "guidance_kl": rows.mean(arm, guidance_kl),
        "total_kl": rows.mean(arm, total_kl),
        "guide_reward": rows.mean(arm, lambda row: row.guide_reward),
        "perplexity": rows.pooled(arm, surprise, emitted, np.exp),
        "tokens": rows.mean(arm, emitted),
        "finished": rows.mean(arm, lambda row: float(row.finish_reason == "stop") if row.finish_reason else None),
        "loops": rows.mean(arm, lambda row: float(repetition_loop(row.text) is not None)),
        "rep_2": rows.mean(arm, lambda row: repeated(row.text, 2)),
        "rep_3": rows.mean(arm, lambda row: repeated(row.text, 3)),
        "rep_4": rows.mean(arm, lambda row: repeated(row.text, 4)),
        "diversity": rows.mean(arm, lambda row: diversity(row.text)),
        "distinct_2": rows.mean_of_texts(arm, lambda texts: distinct(texts, 2)),
        "lm_passes": shared(cost("lm_passes"), emitted),
        "reward_passes": shared(cost("reward_passes"), emitted),
        "candidates": rows.pooled(arm, cost("candidates"), emitted),
        "gigaflops": shared(gigaflops, emitted),
        "tokens_per_second": shared(emitted, cost("seconds")),
        "first_token_seconds": shared(cost("first_token_seconds"), lambda row: 1.0),
    }


def _relative(rows: GroupedRows, ratios: Mapping[str, Mapping[str, Ratio]], arm: str) -> dict[str, Any]:
    """Return tokens per second over plain's, and plain's over the arm's: how many times as long a token takes."""
    if rows.plain is None:
        return {"relative_speed": None, "relative_time": None}
    own, plain = ratios[arm]["tokens_per_second"], ratios[rows.plain]["tokens_per_second"]
    return {
        "relative_speed": _untested(quotient(own, plain, rows.times)),
        "relative_time": _untested(quotient(plain, own, rows.times)),
    }


def _with_differences(rows: GroupedRows, ratios: Mapping[str, Ratio]) -> dict[str, dict[str, Any] | None]:
    """Return each arm's estimate, with its difference to the reference method."""
    estimates = {arm: _untested(rows.estimate(ratio)) for arm, ratio in ratios.items()}
    if rows.reference is None:
        return estimates
    others = [arm for arm in ratios if arm != rows.reference and estimates[arm]]
    gaps = [difference(ratios[arm], ratios[rows.reference], rows.times) for arm in others]
    for arm, gap, p in zip(others, gaps, holm([gap and gap.p for gap in gaps]), strict=True):
        estimates[arm] = {**(estimates[arm] or {}), "difference": gap and {**gap._asdict(), "p_corrected": p}}
    return estimates


def _untested(estimate: Estimate | None) -> dict[str, Any] | None:
    return estimate and estimate.untested()


# Judges


def _judge(rows: GroupedRows, judge: str) -> dict[str, Any]:
    asked = rows.asked.get("judges", {}).get(judge)
    fit = rows.lengths.get(judge)
    slope = estimate(fit.slopes, np.any(fit.sums[:, :, 0], axis=0), rows.times) if fit else None
    return {
        "accuracy": asked.get("accuracy") if isinstance(asked, Mapping) else None,
        "scores": len(rows.scores[judge]),
        "per_token_of_length": _untested(slope),
    }


def _length_controlled(rows: GroupedRows, arm: str, judge: str) -> dict[str, Any] | None:
    fit, i = rows.lengths.get(judge), rows.arms.index(arm)
    return _untested(estimate(fit.effect(i), fit.present(i), rows.times)) if fit else None


def _rivals(rows: GroupedRows) -> dict[str, str | None]:
    reference = REFERENCE_RESPONSES if REFERENCE_RESPONSES in rows.by_arm else None
    return dict(zip(WINS, (rows.plain, reference), strict=True))


def _all_wins(rows: GroupedRows, rival: str | None, judge: str) -> dict[str, dict[str, Any]]:
    """Return, by arm, how often its response is the better one, and whether that differs from one half."""
    if rival is None:
        return {}
    wins = {arm: won for arm in rows.arms if arm != rival and (won := _wins(rows, arm, rival, judge))}
    corrected = holm([won["p"] for won in wins.values()])
    return {arm: {**won, "p_corrected": p} for (arm, won), p in zip(wins.items(), corrected, strict=True)}


def _wins(rows: GroupedRows, arm: str, rival: str, judge: str) -> dict[str, Any] | None:
    """Return how often an arm wins: by an LM judge's verdicts if it gave some, otherwise by scores."""
    asked = rows.outcomes.get((judge, rival), {})
    said = [asked[row.key] for row in rows.by_arm[arm] if row.key in asked]
    read = [outcome for outcome in said if outcome is not None]
    ratio = rows.verdicts(arm, rival, judge) if said else rows.wins(arm, rival, judge)
    rate = estimate(lambda times: ratio(times) - 0.5, ratio.present, rows.times)
    if rate is None and not said:
        return None
    share, prompts = ratio(rows.times), int(ratio.present.sum())
    return {
        "mean": rate and rate.mean + 0.5,
        "interval": interval_of(share[np.isfinite(share)], prompts, proportion=True),
        "p": rate and rate.p,
        "prompts": prompts,
        "verdicts": len(said),
        "unparsed": len(said) - len(read),
        "ties": read.count(0.5),
    }


# What a reader should know


def _notes(rows: GroupedRows) -> list[str]:
    notes = []
    if len(rows.prompts) == 1:
        notes.append("One prompt gives no interval and no p-value; compare on more.")
    elif len(rows.prompts) < 30:
        notes.append(f"{len(rows.prompts)} prompts are few: intervals are wide, and hold less exactly.")
    if rows.reference is None:
        name = rows.asked.get("reference") or "plain"
        notes.append(f"No responses of the reference method {name} are here, so no differences to it are shown.")
    if rows.plain is None:
        notes.append("No plain responses are here, so no win rate against them and no relative speed are shown.")
    if not rows.judges:
        notes.append("No judge has scored these responses, so nothing is compared by score.")
    for arm in rows.arms:
        missing = len(rows.prompts) - len({row.prompt_id for row in rows.by_arm[arm]})
        if missing:
            notes.append(f"{arm} has no responses to {missing} of {len(rows.prompts)} prompts.")
    for judge in rows.judges:
        unscored = sum(row.key not in rows.scores[judge] for of_arm in rows.by_arm.values() for row in of_arm)
        if judge in rows.scored and unscored:
            notes.append(f"{judge} has no score for {unscored} responses; they are left out of its figures.")
        verdicts = [said for (name, _), by_row in rows.outcomes.items() if name == judge for said in by_row.values()]
        if None in verdicts:
            unread = f"{verdicts.count(None)} of {len(verdicts)}"
            notes.append(f"{unread} verdicts of {judge} could not be read; they are left out of its win rates.")
        if judge not in rows.scored and not verdicts:
            notes.append(f"{judge} has judged nothing yet.")
    return notes
