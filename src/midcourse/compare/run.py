"""Methods x settings x prompts x seeds to rows on disk, and what judges say of them.

A folder holds

    compare.json       what was asked: the models, prompts, arms, judges, and what was chosen on validation prompts
    results.jsonl      a row for each arm, prompt and seed, on disk as soon as it is finished
    judgements.jsonl   a row for each response and judge
    validation/        the same of the validation prompts, if settings are tuned on them

A later call with `resume` goes on to the row, and may bring more methods, settings and judges; it may not change what
would make the rows incomparable.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from midcourse.compare.arms import PLAIN, POLICY, Arm, CompareError, Number
from midcourse.compare.cost import parameters, reward_parameters
from midcourse.compare.judges import AnyJudge, Judged, check_judges, judge_rows
from midcourse.compare.rows import ASKED, RESULTS
from midcourse.compare.study import Study, Task
from midcourse.compare.writing import WrittenResponse, key_of, places, write_rows
from midcourse.data.record import check_same, only_writer, read_record, write_record
from midcourse.errors import short_value
from midcourse.evaluate.provenance import provenance
from midcourse.files import LOCK, leftovers
from midcourse.lm.language_model import rendering

VALIDATION = "validation"


@dataclass(frozen=True)
class SettingSearch:
    """The prompts to choose settings on: for each method and reward, those with the first judge's best mean.

    Attributes:
        kl: nats that it may cost at most, on the mean: of guidance KL (best-of-n: its bound), if a method has none
            of total KL less plain's. None for no limit; a method whose KL nobody knows has none either.
    """

    tasks: Sequence[Task]
    kl: float | None = None


def compare(
    study: Study,
    methods: Sequence[str],
    out: str | Path,
    *,
    sweep: Mapping[str, Sequence[Number]] | None = None,
    judges: Sequence[AnyJudge] = (),
    force_judges: bool = False,
    tuning: SettingSearch | None = None,
    resume: bool = False,
    concurrency: int = 8,
) -> dict[str, Any]:
    """Write every row of every arm into `out` and have it judged.

    Returns:
        What compare.json says, and as "incomplete" the arms of earlier calls that lack rows, with how many.

    Args:
        methods: see `arms.plan`.
        sweep: see `arms.plan`.
        judges: what rates the responses; the first one also tunes.
        force_judges: take judges that are not independent of the guides.
        tuning: run only the settings that are best on other prompts.
        resume: go on with the rows of `out`.
        concurrency: pairs that a judge behind a server is asked about at a time.

    Raises:
        CompareError: something that makes no sense, a judge that is not independent, a folder in use or of another
            comparison.
        RewardError, MethodError, PromptError, JudgeError: what arms, prompts and judges cannot do.
    """
    out = Path(out)
    study.check()
    arms, left_out = study.plan(methods, sweep)
    notes = check_judges(judges, study, force_judges)
    if tuning is not None:
        _check_tuning(tuning, study, judges)
    with only_writer(out, "folder", "comparison", CompareError):
        record = _begun(out, study, tuning, judges, notes, resume)
        record["left_out"] += [one for one in map(vars, left_out) if one not in record["left_out"]]
        if tuning is not None:
            record["tried"] |= {arm.name: _arm_record(study, arm) for arm in arms}
            write_record(out / ASKED, record)
            arms, tuned = _tuned(study, arms, tuning, judges[0], out / VALIDATION, record["tried"], concurrency)
            record["tuned"] = [*_others(record["tuned"], tuned), *tuned]
        record["arms"] |= {arm.name: _arm_record(study, arm) for arm in arms}
        write_record(out / ASKED, record)
        rows = write_rows(study, arms, out / RESULTS, record["arms"])
        judge_rows(judges, rows, out, concurrency)
    return record | {"incomplete": _incomplete(study, record["arms"], rows)}


# Rows


def _incomplete(study: Study, arms: Iterable[str], rows: Mapping[str, Any]) -> dict[str, int]:
    """Return how many rows an arm lacks, of those that lack some."""
    lacking = {name: sum(key_of(name, i, seed) not in rows for i, seed in places(study)) for name in arms}
    return {name: count for name, count in lacking.items() if count}


# Tuning


def _check_tuning(tuning: SettingSearch, study: Study, judges: Sequence[AnyJudge]) -> None:
    if not judges:
        raise CompareError("tuning needs a judge to say which setting is best; name one in --judges")
    if tuning.kl is not None and not (tuning.kl > 0 and math.isfinite(tuning.kl)):
        raise CompareError(f"tune-kl {tuning.kl} is not a number of nats above 0; give one, or leave it out")
    texts = {json.dumps(task.prompt) for task in study.tasks}
    if common := sum(json.dumps(task.prompt) in texts for task in tuning.tasks):
        raise CompareError(
            f"{common} of the {len(tuning.tasks)} prompts to tune on are among those to compare on; use other ones"
        )
    replace(study, tasks=tuning.tasks).check()


def _tuned(
    study: Study,
    arms: Sequence[Arm],
    tuning: SettingSearch,
    judge: AnyJudge,
    folder: Path,
    known: Iterable[str],
    concurrency: int,
) -> tuple[list[Arm], list[dict[str, Any]]]:
    """Return the best arm of each method and reward on the validation prompts, and how it was chosen."""
    folder.mkdir(exist_ok=True)
    rows = write_rows(replace(study, tasks=tuning.tasks), arms, folder / RESULTS, known)
    scores = _scores(rows, judge_rows([judge], rows, folder, concurrency), judge.name)
    kls = _kls(rows)
    groups: dict[tuple[str, str | None], list[Arm]] = defaultdict(list)
    for arm in arms:
        groups[arm.method, arm.given].append(arm)
    best, record = [], []
    for (method, given), members in groups.items():
        names = [arm.name for arm in members]
        winner, within = _best_within(names, scores, kls, tuning.kl)
        best += [arm for arm in members if arm.name == winner]
        tried = [{"arm": name, "score": scores.get(name), "kl": kls.get(name)} for name in names]
        limit = {"kl_limit": tuning.kl, "within_limit": within}
        record.append(
            {"method": method, "reward": given, "judge": judge.name, "chosen": winner, **limit, "tried": tried}
        )
    return best, record


def _best_within(
    names: Sequence[str], scores: Mapping[str, float], kls: Mapping[str, float], limit: float | None
) -> tuple[str, bool]:
    """Return the arm of the best score within the limit, the first of equals; if none is within, the lowest KL's."""
    within = [name for name in names if limit is None or kls.get(name, 0.0) <= limit]
    if not within:
        return min(names, key=lambda name: kls[name]), False
    return max(within, key=lambda name: scores.get(name, -math.inf)), True


def _scores(rows: Mapping[str, WrittenResponse], judged: Mapping[Judged, float | None], judge: str) -> dict[str, float]:
    """Return each arm's mean by a judge: of its scores, or of its outcomes against plain."""
    by_arm = defaultdict(list)
    for (key, name, versus), value in judged.items():
        if name == judge and value is not None and versus in (None, PLAIN):
            by_arm[rows[key].arm].append(value)
    return {arm: fmean(values) for arm, values in by_arm.items()}


def _kls(rows: Mapping[str, WrittenResponse]) -> dict[str, float]:
    """Return each arm's mean KL as `SettingSearch` defines it; none for an arm whose KL is not known."""
    rows_of = defaultdict(list)
    for row in rows.values():
        rows_of[row.arm].append(row)

    def mean(arm: str, name: str) -> float | None:
        values = [getattr(row, name) for row in rows_of[arm]]
        return None if None in values else fmean(values)

    plain = mean(PLAIN, "total_kl") or 0.0
    kls = {}
    for arm in rows_of:
        guidance, bound, total = (mean(arm, name) for name in ("guidance_kl", "kl_bound", "total_kl"))
        known = [kl for kl in (guidance, bound, None if total is None else total - plain) if kl is not None]
        if known:
            kls[arm] = known[0]
    return kls


# compare.json

# What it holds, and what each of that is; what an arm's record holds is the report's.
FIELDS: dict[str, tuple[type, type]] = {
    "asked": (dict, object),
    "arms": (dict, dict),
    "guides": (dict, str),
    "judges": (dict, dict),
    "left_out": (list, dict),
    "tried": (dict, dict),
    "tuned": (list, dict),
}


def _begun(
    out: Path,
    study: Study,
    tuning: SettingSearch | None,
    judges: Sequence[AnyJudge],
    notes: Mapping[str, list[str]],
    resume: bool,
) -> dict[str, Any]:
    """Return compare.json as it begins: what was asked, and what earlier calls left.

    Raises:
        CompareError: the folder holds something else, or rows that would not be comparable.
    """
    asked = _asked(study, tuning)
    guides = {name: origin.fingerprint for name, origin in study.origins.items()}
    rated = {one.name: {"fingerprint": one.origin.fingerprint, "kind": one.kind, **one.record} for one in judges}
    earlier = _earlier(out, resume)
    if earlier:
        _check_comparable(earlier, asked, guides, rated, out)
    return {
        "asked": asked,
        "lm": study.lm.name,
        "reference": PLAIN,
        "arms": earlier.get("arms", {}),
        "left_out": earlier.get("left_out", []),
        "guides": {**earlier.get("guides", {}), **guides},
        "judges": {
            **earlier.get("judges", {}),
            **{name: {**one, "notes": notes[name]} for name, one in rated.items()},
        },
        "tried": earlier.get("tried", {}),
        "tuned": earlier.get("tuned", []),
        "prompts": [{"prompt_id": i, **asdict(task)} for i, task in enumerate(study.tasks)],
        **provenance(),
    }


def _asked(study: Study, tuning: SettingSearch | None) -> dict[str, Any]:
    """Return what no later call may change."""
    return {
        "lm_fingerprint": study.lm_fingerprint,
        "prompts": len(study.tasks),
        "prompts_fingerprint": _fingerprint(study.tasks),
        "template": study.rendering,
        **rendering(study.lm, study.rendering),
        **asdict(study.base),
        "seeds": study.seeds,
        "max_new_tokens": study.max_new_tokens,
        "save_candidates": study.save_candidates,
        "tune_on_fingerprint": _fingerprint(tuning.tasks) if tuning else None,
        "tune_kl": tuning.kl if tuning else None,
    }


def _fingerprint(tasks: Sequence[Task]) -> str:
    text = json.dumps([asdict(task) for task in tasks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _earlier(out: Path, resume: bool) -> dict[str, Any]:
    """Return compare.json of earlier calls; {} in a new folder."""
    path = out / ASKED
    if not path.is_file():
        if any(one.name != LOCK and one not in leftovers(path) for one in out.iterdir()):
            raise CompareError(f"{out} is not empty and holds no {ASKED}; name a new folder for --out")
        return {}
    if not resume:
        raise CompareError(f"{out} holds a comparison; add --resume to go on with it, or name another folder for --out")
    remedy = "restore it, or name another folder for --out"
    found = read_record(path, CompareError, remedy)
    for name, (kind, inner) in FIELDS.items():
        value = found.get(name, kind())
        if not (isinstance(value, kind) and all(isinstance(part, inner) for part in _parts(value))):
            raise CompareError(f"{path} is damaged ({name} is {short_value(value)}); {remedy}")
    if strange := [name for name, one in found.get("judges", {}).items() if "fingerprint" not in one]:
        raise CompareError(f"{path} is damaged (judge {short_value(strange[0])} has no fingerprint); {remedy}")
    return {"guides": {}, "judges": {}, **found}


def _parts(value: Any) -> Iterable[Any]:
    """Return what a dict or a list holds."""
    return value.values() if isinstance(value, dict) else value


def _check_comparable(
    earlier: Mapping[str, Any],
    asked: Mapping[str, Any],
    guides: Mapping[str, str],
    judges: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> None:
    """Raise CompareError if a folder's rows would not be comparable with those that are asked for."""
    check_same(earlier.get("asked", {}), asked, out, "a comparison", CompareError)
    remedy = "resume with the same arguments, or name another folder for --out"
    for name, fingerprint in guides.items():
        if earlier["guides"].get(name, fingerprint) != fingerprint:
            raise CompareError(f"{out} holds rows of {name} with other weights than it has now; {remedy}")
    for name, judge in judges.items():
        if earlier["judges"].get(name, judge)["fingerprint"] != judge["fingerprint"]:
            raise CompareError(f"{out} holds judgements of another {name} than there is now; {remedy}")


def _others(earlier: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was tuned in earlier calls and not in this one."""
    tuned_now = {(one["method"], one["reward"]) for one in now}
    return [one for one in earlier if (one["method"], one["reward"]) not in tuned_now]


def _arm_record(study: Study, arm: Arm) -> dict[str, Any]:
    lm = study.policies[arm.given or ""].lm if arm.method == POLICY else study.lm
    return {
        "method": arm.method,
        "reward": arm.reward,
        "setting": dict(arm.setting),
        "greedy": arm.greedy,
        "base": arm.base,
        "lm_parameters": parameters(lm.model),
        "reward_parameters": reward_parameters(study.guides[arm.reward].reward) if arm.reward else 0,
    }
