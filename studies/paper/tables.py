"""The answers' tables, from results/TASK.json alone.

python -m studies.paper.tables [--check]        fills README.md; --check exits 1 where a table differs
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from midcourse.compare.rows import REFERENCE_RESPONSES
from studies.tables import Table, TablesError, load_each, main, markdown, number, with_interval, with_paradetox

HERE = Path(__file__).parent
COMMAND = "python -m studies.paper.run --data DIR"
TASKS = ("sentiment", "detox", "hh")

Found = Mapping[str, Any]

# The curves that the questions are about, as midcourse.compare.run names them.
PARGS, TRUNK, PAPER = "pargs prefix", "pargs trunk", "pargs prefix-paper"
ARGS, BEST_OF, DPO = "args-stochastic sequence", "best-of-n sequence", "policy dpo"
SIXTEEN = f"{BEST_OF} n=16"


def results(root: Path) -> dict[str, Found]:
    """By task, what was found."""
    return load_each(root, TASKS, COMMAND)


def told(table: str, root: Path) -> str:
    """Return a table of the tasks found, with a line on what the guides of detox learned from if it is among them."""
    found = results(root)
    return with_paradetox(table, found["detox"]) if "detox" in found else table


def tasks_and_judges(root: Path) -> Iterator[tuple[str, Found, str]]:
    """(task, its summary, judge) of every task and judge."""
    for task, found in results(root).items():
        for judge in found["summary"]["judges"]:
            yield task, found["summary"], judge


def estimate(found: Found | None, digits: int = 2) -> str:
    """A mean with its interval; an empty cell where there is none."""
    if not found:
        return ""
    return with_interval(found["mean"], found["interval"], digits) if found["interval"] else number(found["mean"])


def tested(found: Found | None) -> str:
    """A difference with its interval; bold where the interval leaves out 0."""
    if not found:
        return "not reached"
    text = estimate(found)
    return f"**{text}**" if found["interval"] and found["interval"][0] * found["interval"][1] > 0 else text


def own_arms(summary: Found, curve: str) -> list[str]:
    """The arms of a curve without plain, the weakest first."""
    found = next((c["arms"] for c in summary["curves"] if c["name"] == curve), [])
    return [arm for arm in found if arm != "plain"]


def entries(summary: Found, judge: str, axis: str = "guidance_kl", why: str = "") -> list[Found]:
    """What drawn methods score at equal KL, at the places that have this reason ("" for 2, 5 and 10 nats)."""
    said = {"judge": judge, "axis": axis, "greedy": False, "why": why}
    return [entry for entry in summary["matched"] if all(entry[name] == value for name, value in said.items())]


def gap(entry: Found, one: str, other: str) -> Found | None:
    """Score of `one` less that of `other`; None where one of them does not reach that KL."""
    for found in entry["differences"]:
        if (found["one"], found["other"]) == (one, other):
            return found
        if (found["one"], found["other"]) == (other, one):
            low, high = found["interval"]
            return {**found, "mean": -found["mean"], "interval": (-high, -low)}
    return None


# What was done


def done(root: Path) -> str:
    """Each task's size and judges."""
    rows = []
    for task, found in results(root).items():
        summary, pilot = found["summary"], found["pilot"]
        judges = []
        for judge in summary["judges"]:
            known = found["judge_accuracy"].get(judge)
            judges.append(f"{judge} ({estimate({**known, 'mean': known['accuracy']})})" if known else judge)
        rows.append(
            [
                task,
                f"{summary['prompts']} x {summary['seeds']}",
                str(pilot["prompts_for_half_width"]),
                number(half_width(summary)),
                str(sum(arm["responses"] for arm in summary["arms"].values() if arm["method"] != REFERENCE_RESPONSES)),
                "; ".join(judges),
                ", ".join(found["left_out"]) or "none",
            ]
        )
    header = ["task", "prompts x seeds", "prompts for 0.05", "half-width", "responses", "judges (accuracy)", "left out"]
    return told(markdown(header, rows), root)


def half_width(summary: Found) -> float:
    """Of the interval of a paired difference in gold to plain: the mean over the arms of PARGS."""
    intervals = [gold_of(summary, arm)["difference"]["interval"] for arm in own_arms(summary, PARGS)]
    return fmean((high - low) / 2 for low, high in intervals)


def profane(root: Path) -> str:
    """How often plain continuations are profane, by whether the prompt is: the rule's evidence, on validation."""
    rows = [
        [kind, f"{shares['prompts']} x {shares['continuations']}", estimate(shares)]
        for found in results(root).values()
        for kind, shares in found["rule"].items()
    ]
    return markdown(
        ["prompts of the validation split", "prompts x continuations", "share of profane continuations [95%]"], rows
    )


# Question 1


def accuracy(root: Path) -> str:
    """Pair accuracy by share of the response."""
    rows = [
        [task, name, *(number(share["accuracy"]) for share in shares[:-1]), of_all(shares[-1])]
        for task, found in results(root).items()
        for name, shares in found["prefixes"]["accuracy"].items()
    ]
    return told(markdown(["task", "reward", "10%", "25%", "50%", "75%", "100% [95%]"], rows), root)


def of_all(share: Found) -> str:
    return with_interval(share["accuracy"], share["interval"])


def correlation(root: Path) -> str:
    """How a prefix's reward goes with the mean gold of what the plain model makes of it."""
    rows = [
        [task, name, *(estimate({**one, "mean": one["r"]}) for one in shares)]
        for task, found in results(root).items()
        for name, shares in found["prefixes"]["correlation"].items()
    ]
    return markdown(["task", "reward", "after 25%", "after 50%", "after 75%"], rows)


# Questions 2 and 3


def at_kl(root: Path) -> str:
    """Every drawn method at equal guidance KL."""
    rows = []
    for task, summary, judge in tasks_and_judges(root):
        plain = summary["arms"]["plain"]["judges"][judge]["score"]
        places = entries(summary, judge)
        for name in places[0]["scores"]:
            if name != BEST_OF:
                scores = [entry["scores"][name] for entry in places]
                rows.append([task, judge, name, *(estimate(score) or "not reached" for score in scores)])
        rows.append([task, judge, "plain, at 0 nats", estimate(plain), "", ""])
    return told(markdown(["task", "judge", "method", "2 nats", "5 nats", "10 nats"], rows), root)


def against_args(root: Path) -> str:
    """Paired differences at equal guidance KL."""
    rows = [
        [task, judge, f"{one} - {other}", *(tested(gap(entry, one, other)) for entry in entries(summary, judge))]
        for task, summary, judge in tasks_and_judges(root)
        for one, other in ((PARGS, ARGS), (TRUNK, ARGS), (PARGS, PAPER))
    ]
    return markdown(["task", "judge", "difference", "2 nats", "5 nats", "10 nats"], rows)


def total_kl(root: Path) -> str:
    """Every drawn method at equal total KL, counted from plain's own; methods off the base's support are here too."""
    rows = []
    for task, summary, judge in tasks_and_judges(root):
        found = [e for e in summary["matched"] if (e["judge"], e["axis"], e["greedy"]) == (judge, "total_kl", False)]
        places = [entry for entry in found if entry["why"].startswith("plain's")]
        for name in places[0]["scores"]:
            scores = [entry["scores"][name] for entry in places]
            if any(scores):
                rows.append([task, judge, name, *(estimate(score) or "not reached" for score in scores)])
    return markdown(["task", "judge", "method", "plain's + 2 nats", "plain's + 5 nats", "plain's + 10 nats"], rows)


def against_training(root: Path) -> str:
    """PARGS at the KL of best-of-16 (its bound) and of the policy that DPO trained."""
    rows = []
    for task, summary, judge in tasks_and_judges(root):
        for axis, why, other in (
            ("guidance_kl", f"the bound of {SIXTEEN}", BEST_OF),
            ("total_kl", f"that of {DPO}", DPO),
        ):
            for entry in entries(summary, judge, axis, why):
                name = SIXTEEN if other == BEST_OF else other
                label = f"{name} at {number(entry['kl'], 1)} nats {'guidance' if axis == 'guidance_kl' else 'total'} KL"
                mine = [(estimate(entry["scores"][one]), tested(gap(entry, one, other))) for one in (PARGS, TRUNK)]
                rows.append([task, judge, label, estimate(entry["scores"][other]), *(c for pair in mine for c in pair)])
    header = ["task", "judge", "against", "its score", PARGS, "difference", TRUNK, "difference"]
    return markdown(header, rows)


# Question 4


FIGURES = (("guidance_kl", 1), ("guide_reward", 2), ("perplexity", 1), ("diversity", 2), ("loops", 3))


def by_weight(root: Path) -> str:
    """What grows and what falls with the weight."""
    rows = []
    for task, found in results(root).items():
        summary = found["summary"]
        for curve in (PARGS, TRUNK, ARGS):
            for arm in ["plain", *own_arms(summary, curve)]:
                rows.append([task, curve, *of_arm(summary["arms"][arm])])
    return markdown(["task", "method", *ARM_HEADER], rows)


def by_candidates(root: Path) -> str:
    """The same from 3, 10 and 40 candidates a step."""
    rows = []
    for task, found in results(root).items():
        if not found["top_k"]:
            continue
        sizes = {"3": found["top_k"]["3"], "10": found["summary"]["arms"], "40": found["top_k"]["40"]}
        for k, arms in sizes.items():
            rows += [
                [task, k, arm.rsplit(" ", 1)[0], *of_arm(figures)] for arm, figures in arms.items() if arm in sizes["3"]
            ]
    return markdown(["task", "k", "method", *ARM_HEADER], rows)


ARM_HEADER = ["weight", "gold", "independent", "guidance KL", "guide's reward", "perplexity", "diversity", "loops"]


def of_arm(arm: Found) -> list[str]:
    """Weight, scores of the two judges, and figures of its texts."""
    weight = arm["setting"].get("reward_weight")
    scores = [number(said["score"]["mean"]) for said in arm["judges"].values()]
    figures = [(arm["figures"][name], digits) for name, digits in FIGURES]
    told = [number(found["mean"], digits) if found else "" for found, digits in figures]
    return ["0" if weight is None else f"{weight:.3g}", *[*scores, ""][:2], *told]


def over_optimised(root: Path) -> str:
    """Where a judge's mean falls while the guide's own reward rises."""
    rows = []
    for task, found in results(root).items():
        for one in found["summary"]["over_optimisation"]:
            if one["begins"]:
                begins, falls = one["begins"], one["falls_at"]
                rows.append(
                    [
                        task,
                        one["judge"],
                        one["method"],
                        place(begins),
                        place(falls),
                        estimate(one["fall"]),
                    ]
                )
    if not rows:
        return "No method's judges fall while its guide's reward rises, at any weight tried."
    return markdown(["task", "judge", "method", "highest at", "lower at", "by [95%]"], rows)


def place(found: Found) -> str:
    kl = found["guidance_kl"] if found["guidance_kl"] is not None else found["total_kl"]
    return f"{found['arm'].rsplit(' ', 1)[-1]} ({number(kl, 1)} nats)"


# Question 5, and question 2 at equal cost


COSTS = (("lm_passes", 2), ("reward_passes", 2), ("candidates", 1), ("gigaflops", 2))


def cost(root: Path) -> str:
    """What a token of every method costs, at the settings that were timed, or else at the weakest."""
    rows = []
    for task, found in results(root).items():
        summary, timed = found["summary"], found["times"]
        for curve in summary["curves"]:
            own = own_arms(summary, curve["name"])
            for arm in [arm for arm in own if arm in timed] or own[:1]:
                figures = summary["arms"][arm]["figures"]
                passes = [number(figures[name] and figures[name]["mean"], digits) for name, digits in COSTS]
                rows.append([task, arm, estimate(timed.get(arm)) or "not timed", *passes])
    return markdown(
        ["task", "method", "time, times plain [95%]", "LM passes", "reward passes", "candidates", "GFLOPs"], rows
    )


def tuned(root: Path) -> str:
    """Every method at the setting of the highest gold on validation prompts, whatever its KL."""
    rows = []
    for task, found in results(root).items():
        arms = found["summary"]["arms"]
        for judge in found["summary"]["judges"]:
            for one in found["tuned"]:
                arm = arms[one["arm"]]
                kl = arm["figures"]["total_kl"]
                score = estimate(arm["judges"][judge]["score"])
                rows.append(
                    [
                        task,
                        judge,
                        one["arm"],
                        score,
                        number(kl and kl["mean"], 1),
                        *(tested(gap) if gap else "" for gap in one["less"][judge]),
                    ]
                )
    header = [
        "task",
        "judge",
        "method, best setting on validation",
        "score",
        "total KL",
        "less ARGS",
        "less best-of-16",
    ]
    return markdown(header, rows)


def gold_of(summary: Found, arm: str) -> Found:
    """The first judge's score of an arm."""
    return summary["arms"][arm]["judges"][next(iter(summary["judges"]))]["score"]


# Targets


def targets(root: Path) -> str:
    """Each target beside what was measured."""
    rows = []
    for task, summary, judge in tasks_and_judges(root):
        if task == "hh":
            continue
        for entry in entries(summary, judge):
            found = gap(entry, PARGS, ARGS)
            target = f"{task}, {judge}: PARGS above ARGS at {entry['kl']:g} nats"
            rows.append([target, estimate(found) or "not reached", met(found and found["interval"][0] > 0)])
    for task, summary, judge in tasks_and_judges(root):
        if task == "hh":
            continue
        for entry in entries(summary, judge, why=f"the bound of {SIXTEEN}"):
            found = gap(entry, TRUNK, BEST_OF)
            target = f"{task}, {judge}: trunk PARGS above best-of-16 at its {number(entry['kl'], 1)} nats"
            rows.append([target, estimate(found) or "not reached", met(found and found["interval"][0] > 0)])
    for task, found in results(root).items():
        (trunk,) = (one for one in found["tuned"] if one["method"] == TRUNK)
        for judge, (_, gap_to_best) in trunk["less"].items():
            target = f"{task}, {judge}: trunk PARGS above best-of-16 at no more than its cost ({trunk['arm']})"
            if task != "hh":
                rows.append([target, estimate(gap_to_best), met(gap_to_best["interval"][0] > 0)])
        time = found["times"].get(own_arms(found["summary"], TRUNK)[0])
        target = f"{task}: a token of trunk PARGS takes at most 1.05x plain"
        rows.append([target, estimate(time) or "not timed", met(time and time["mean"] <= 1.05)])
    return told(markdown(["target", "measured [95%]", "met"], rows), root)


def met(found: Any) -> str:
    return "yes" if found else "no"


# The README's own


def headline(root: Path) -> str:
    """The claims by every judge: PARGS against ARGS at equal KL, and trunk PARGS against best-of-16 at its KL."""
    if not results(root):
        raise TablesError(f"studies/paper/results is missing; make it with: {COMMAND}")
    rows = []
    for task, summary, judge in tasks_and_judges(root):
        score = summary["arms"]["plain"]["judges"][judge]["score"]
        found = [gap(entry, PARGS, ARGS) for entry in entries(summary, judge)]
        found += [gap(entry, TRUNK, BEST_OF) for entry in entries(summary, judge, why=f"the bound of {SIXTEEN}")]
        rows.append([task, judge, estimate(score), *map(tested, found)])
    claims = [*(f"PARGS - ARGS at {kl} nats" for kl in (2, 5, 10)), "trunk PARGS - best-of-16 at its KL"]
    return told(markdown(["task", "judge", "plain [95%]", *claims], rows), root)


TABLES: dict[str, Table] = {
    "done": done,
    "profane": profane,
    "accuracy": accuracy,
    "correlation": correlation,
    "at_kl": at_kl,
    "total_kl": total_kl,
    "against_args": against_args,
    "against_training": against_training,
    "by_weight": by_weight,
    "by_candidates": by_candidates,
    "over_optimised": over_optimised,
    "cost": cost,
    "tuned": tuned,
    "targets": targets,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], HERE, TABLES))
