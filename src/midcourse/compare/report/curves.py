"""Methods as curves: their scores by KL, read off at equal KL, and where over-optimisation begins."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from midcourse.compare.arms import POLICY
from midcourse.compare.report.grouped import GroupedRows, guidance_kl, is_bound, method_of, total_kl
from midcourse.compare.report.matched import Curve, difference_at, score_at
from midcourse.compare.report.statistics import difference, holm
from midcourse.compare.rows import REFERENCE_RESPONSES, ResponseRow

# What turns a method up or down. Arms that differ in nothing else are the points of one curve.
STRENGTHS = ("reward_weight", "samples", "reward_threshold", "kl_budget", "kl_per_token")
AXES: dict[str, Callable[[ResponseRow], float | None]] = {"guidance_kl": guidance_kl, "total_kl": total_kl}
BAND_POINTS = 25


@dataclass(frozen=True)
class MethodCurve:
    """Arms that differ in their strength alone, the weakest first, after plain if it is their strength 0."""

    name: str
    arms: tuple[str, ...]
    greedy: bool


def method_curves(rows: GroupedRows) -> list[MethodCurve]:
    """Return the methods of a comparison; plain and the reference responses are none."""
    arms_of: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for arm in rows.arms:
        row = rows.first(arm)
        if arm != REFERENCE_RESPONSES and method_of(row) != "plain":
            name = arm if method_of(row) == POLICY else method_of(row)  # each fine-tuned model by itself
            arms_of[name, row.reward, row.greedy, _fixed(row)].append(arm)
    varied = _varied(list(arms_of))
    curves = []
    for (method, reward, greedy, fixed), arms in arms_of.items():
        named = [f"{name}={value}" for name, value in fixed if name in varied[method, reward, greedy]]
        named += ["greedy"] if greedy and (method, reward, False, fixed) in arms_of else []
        arms.sort(key=lambda arm: _strength(rows.first(arm)))
        start = _strength_zero(rows, rows.first(arms[0]))
        curves.append(MethodCurve(" ".join([method, *([reward] if reward else []), *named]), (*start, *arms), greedy))
    return curves


def _fixed(row: ResponseRow) -> tuple[tuple[str, str], ...]:
    """Return the settings that are no strength."""
    return tuple(sorted((k, _short(v)) for k, v in (row.setting or {}).items() if k not in STRENGTHS))


def _varied(keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], set[str]]:
    """Return, by method, reward and choice, the names of those fixed settings that tell its curves apart."""
    names: dict[tuple[Any, ...], set[str]] = {}
    for method in {key[:3] for key in keys}:
        several = [set(key[3]) for key in keys if key[:3] == method]
        names[method] = {name for name, _ in set.union(*several) - set.intersection(*several)}
    return names


def _strength(row: ResponseRow) -> tuple[float, ...]:
    given = [(row.setting or {}).get(name) for name in STRENGTHS]
    return tuple(float(value) if isinstance(value, int | float) else 0.0 for value in given)


def _strength_zero(rows: GroupedRows, row: ResponseRow) -> list[str]:
    """Return the plain arm if the method starts from it: only then have its responses a guidance KL or a bound."""
    if guidance_kl(row) is None or rows.plain is None or rows.first(rows.plain).greedy != row.greedy:
        return []
    return [rows.plain]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _points(rows: GroupedRows, curve: MethodCurve, axis: str, judge: str) -> Curve:
    """Return the method's scores by KL, a row for each arm that has both; none if the method itself has none."""
    kls = np.stack([rows.by_prompt(arm, AXES[axis]) for arm in curve.arms])
    scores = np.stack([rows.by_prompt(arm, lambda row: rows.scores[judge].get(row.key)) for arm in curve.arms])
    known = np.isfinite(kls).any(1) & np.isfinite(scores).any(1)
    own = np.array([method_of(rows.first(arm)) != "plain" for arm in curve.arms])
    known &= (known & own).any()
    return Curve(kls[known], scores[known], rows.times)


def curve_figures(rows: GroupedRows, curve: MethodCurve) -> dict[str, Any]:
    """Return a method's arms, and its curve with the band of its 95 % intervals, by KL and judge."""
    return {
        "name": curve.name,
        "greedy": curve.greedy,
        "arms": list(curve.arms),
        "kl_is_bound": is_bound(rows.first(curve.arms[-1])),
        "bands": {axis: {judge: _band(_points(rows, curve, axis, judge)) for judge in rows.scored} for axis in AXES},
    }


def _band(curve: Curve) -> dict[str, list[float]] | None:
    """Return the band from the least to the largest KL; None if there are not two points."""
    low, high = curve.reach(curve.present)
    if high - low < 1e-9:
        return None
    kls = np.unique([*np.linspace(low, high, BAND_POINTS), *curve.kls[:, curve.present].mean(1)])
    points = [(float(kl), point) for kl in kls if (point := score_at(curve, float(kl)))]
    intervals = [point.interval or (point.mean, point.mean) for _, point in points]
    return {
        "kl": [kl for kl, _ in points],
        "mean": [point.mean for _, point in points],
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
    }


# Equal KL


def matched(rows: GroupedRows, curves: Sequence[MethodCurve], judge: str, kls: Sequence[float]) -> list[dict[str, Any]]:
    """Return scores at equal KL; drawn and greedy methods apart, since a greedy choice's KL is another quantity."""
    entries = []
    for greedy in (False, True):
        some = [curve for curve in curves if curve.greedy == greedy]
        for axis in AXES:
            points = {curve.name: _points(rows, curve, axis, judge) for curve in some}
            points = {name: curve for name, curve in points.items() if curve.present.any()}
            places = _places(rows, axis, greedy, kls) if points else []
            entries += [
                {"judge": judge, "axis": axis, "greedy": greedy, "kl": kl, "why": why, **_at(points, kl)}
                for kl, why in places
            ]
    return entries


def _places(rows: GroupedRows, axis: str, greedy: bool, kls: Sequence[float]) -> list[tuple[float, str]]:
    """Return (nats, why there) in ascending order."""
    arms = [arm for arm in rows.arms if rows.first(arm).greedy == greedy]
    plain = [arm for arm in arms if method_of(rows.first(arm)) == "plain"]
    start = _mean(rows, plain[0], axis) if plain and axis == "total_kl" else None
    fixed = [(kl, "") if start is None else (start + kl, f"plain's {start:.2f} + {kl:g}") for kl in kls]
    own = [(_mean(rows, arm, axis), f"the bound of {arm}") for arm in arms if is_bound(rows.first(arm))]
    # A fine-tuned model has no strength to vary: others are read off where it is.
    own += [(_mean(rows, arm, axis), f"that of {arm}") for arm in arms if method_of(rows.first(arm)) == POLICY]
    return sorted([*fixed, *((kl, why) for kl, why in own if kl is not None)])


def _mean(rows: GroupedRows, arm: str, axis: str) -> float | None:
    estimate = rows.estimate(rows.mean(arm, AXES[axis]))
    return estimate and estimate.mean


def _at(curves: Mapping[str, Curve], kl: float) -> dict[str, Any]:
    names = list(curves)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    gaps = [difference_at(curves[a], curves[b], kl) for a, b in pairs]
    corrected = holm([gap and gap.p for gap in gaps])
    scores = {name: score_at(curve, kl) for name, curve in curves.items()}
    return {
        "scores": {name: score and score.untested() for name, score in scores.items()},
        "differences": [
            {"one": a, "other": b, **gap._asdict(), "p_corrected": p}
            for (a, b), gap, p in zip(pairs, gaps, corrected, strict=True)
            if gap
        ],
    }


# Over-optimisation


def over_optimisation(rows: GroupedRows, curve: MethodCurve, judge: str) -> dict[str, Any]:
    """Return where a judge's mean falls while the guide's own reward still rises.

    It begins at the arm of the judge's highest mean, if a stronger arm has a lower mean, by a paired difference whose
    95 % interval lies below 0, and a higher mean reward by the guide. Arms whose guide gave no reward are left out.
    """
    scores = {arm: rows.score(arm, judge) for arm in curve.arms}
    rewards = {arm: rows.mean(arm, lambda row: row.guide_reward) for arm in curve.arms}
    means = {
        arm: (score.mean, reward.mean)
        for arm in curve.arms
        if (score := rows.estimate(scores[arm])) and (reward := rows.estimate(rewards[arm]))
    }
    verdict: dict[str, Any] = {"method": curve.name, "judge": judge, "begins": None, "falls_at": None, "fall": None}
    arms = list(means)
    peak = max(arms, key=lambda arm: means[arm][0], default="")
    for arm in arms[arms.index(peak) + 1 :] if arms else ():
        fall = difference(scores[arm], scores[peak], rows.times)
        if fall and fall.interval and fall.interval[1] < 0 and means[arm][1] > means[peak][1]:
            return {**verdict, "begins": _place(rows, peak), "falls_at": _place(rows, arm), "fall": fall.untested()}
    return verdict


def _place(rows: GroupedRows, arm: str) -> dict[str, Any]:
    return {"arm": arm, **{axis: _mean(rows, arm, axis) for axis in AXES}}
