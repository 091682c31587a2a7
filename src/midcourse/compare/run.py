"""Methods x settings x prompts x seeds to rows on disk, and what judges say of them.

A folder holds

    compare.json       what was asked: the models, prompts, arms, judges, and what was chosen on validation prompts
    results.jsonl      a row for each arm, prompt and seed, on disk as soon as it is finished
    judgements.jsonl   a row for each response and judge
    validation/        the same of the validation prompts, where settings are tuned on them

A later call with `resume` goes on to the row, and may bring more methods, settings and judges; it may not change what
would make the rows incomparable.
"""

import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from midcourse.compare.arms import PLAIN, POLICY, Arm, Base, CompareError, LeftOut, Number, plan
from midcourse.compare.cost import Meter, models_of, parameters, reward_parameters
from midcourse.compare.independence import Origin, unknown, why_dependent
from midcourse.compare.judges import AnyJudge, NumberJudge, Response, judge_all
from midcourse.compare.rows import ASKED, REFERENCE_RESPONSES, RESULTS
from midcourse.data.jsonl import ForeignRow, append_row, written_rows
from midcourse.data.prompts import read_prompts, token_row
from midcourse.decode.loop import agreed_template, encode, stream
from midcourse.decode.methods import BestOfN, Method
from midcourse.decode.steps import Generation
from midcourse.evaluate.provenance import provenance
from midcourse.files import LOCK, InUse, sole_use, write_text
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.policy import with_kl
from midcourse.lm.prompt import Prompt, Template
from midcourse.progress import progress
from midcourse.rewards.contract import Reward

VALIDATION = "validation"
_SEED_STEP = 1_000_000  # between the seeds of one prompt; prompts are counted within it


@dataclass(frozen=True)
class Task:
    """A prompt, and a response to it to compare with, where there is one."""

    prompt: Prompt
    reference: str | None = None


@dataclass(frozen=True)
class Guide:
    """A reward to guide with, and where it comes from."""

    reward: Reward
    origin: Origin


@dataclass(frozen=True)
class Policy:
    """A fine-tuned model, and where it comes from."""

    lm: LanguageModel
    origin: Origin


@dataclass(frozen=True)
class Study:
    """What is the same for every row.

    Attributes:
        lm: the language model that all arms start from.
        lm_fingerprint: of its weights.
        guides, policies: by name.
        tasks: the prompts.
        base: the policy that all arms start from.
        seeds: responses of each arm to each prompt.
        template: how prompts become tokens; None for that of the rewards, else "raw".
        batch_size: rows of the language model that are written side by side. No row depends on it.
        save_candidates: rows hold the candidates of each token.
    """

    lm: LanguageModel
    lm_fingerprint: str
    guides: Mapping[str, Guide]
    policies: Mapping[str, Policy]
    tasks: Sequence[Task]
    base: Base = field(default_factory=Base)
    seeds: int = 1
    max_new_tokens: int = 64
    template: Template | None = None
    batch_size: int = 16
    save_candidates: bool = False

    @property
    def rendering(self) -> Template:
        """The one template of all arms; RewardError where the rewards have different ones."""
        return agreed_template([(guide.reward, 1.0) for guide in self.guides.values()], self.template)

    @property
    def origins(self) -> dict[str, Origin]:
        """Where the rewards and policies come from, by name."""
        guides = {name: one.origin for name, one in self.guides.items()}
        return guides | {name: one.origin for name, one in self.policies.items()}

    def check(self) -> None:
        """Raise CompareError, PromptError, RewardError or MethodError on what no row could be written with."""
        for name in ("seeds", "max_new_tokens", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise CompareError(f"{name.replace('_', '-')} is {value}; use 1 or more")
        if common := sorted(self.guides.keys() & self.policies.keys()):
            raise CompareError(f"a reward and a policy are both called {common[0]}; rename one folder")
        rewards = [guide.reward for guide in self.guides.values()]
        encode(self.lm, rewards, [task.prompt for task in self.tasks], self.rendering, self.max_new_tokens)

    def plan(
        self, methods: Sequence[str], sweep: Mapping[str, Sequence[Number]] | None
    ) -> tuple[list[Arm], list[LeftOut]]:
        """The arms; see `arms.plan`."""
        rewards = {name: one.reward for name, one in self.guides.items()}
        arms, left_out = plan(self.lm, methods, rewards, sweep, self.base)
        for arm in arms:
            if arm.method == POLICY and arm.given not in self.policies:
                raise CompareError(f"policy {arm.given} is not among the policies: {', '.join(self.policies)}")
        return arms, left_out


@dataclass(frozen=True)
class Tuning:
    """Settings are chosen on these prompts: of each method and reward that with the best mean of the first judge.

    Attributes:
        kl: nats that it may cost at most, on the mean: of guidance KL (best-of-n: its bound), where a method has none
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
    tuning: Tuning | None = None,
    resume: bool = False,
    concurrency: int = 8,
) -> dict[str, Any]:
    """Write every row of every arm into `out` and have it judged.

    Returns:
        What compare.json says, and as "incomplete" the arms of earlier calls that lack rows, with how many.

    Args:
        methods, sweep: see `arms.plan`.
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
    with _alone(out):
        record = _begun(out, study, tuning, judges, notes, resume)
        record["left_out"] += [one for one in map(vars, left_out) if one not in record["left_out"]]
        if tuning is not None:
            record["tried"] |= {arm.name: _arm_record(study, arm) for arm in arms}
            _write(record, out)
            arms, chosen = _tuned(study, arms, tuning, judges[0], out / VALIDATION, record["tried"], concurrency)
            record["tuned"] = [*_others(record["tuned"], chosen), *chosen]
        record["arms"] |= {arm.name: _arm_record(study, arm) for arm in arms}
        _write(record, out)
        rows = write_rows(study, arms, out / RESULTS, record["arms"])
        judge_rows(judges, rows, out, concurrency)
    return record | {"incomplete": _incomplete(study, record["arms"], rows)}


# Prompts


def read_tasks(path: Path, limit: int | None = None) -> list[Task]:
    """The prompts of a JSONL file (field "prompt"), with their reference responses where they have a "reference".

    Raises:
        PromptFileError, CompareError: a file or row that cannot be used.
    """
    if limit is not None and limit < 1:
        raise CompareError(f"limit-prompts {limit} leaves no prompt; use 1 or more")
    prompts = read_prompts(path)
    lines = [(number, line) for number, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()]
    tasks = []
    for prompt, (number, line) in zip(prompts, lines, strict=True):
        reference = json.loads(line).get("reference")
        if reference is not None and not (isinstance(reference, str) and _whole(reference)):
            raise CompareError(f"{path}, line {number}, field reference: not a text; write one or leave it out")
        tasks.append(Task(prompt, reference))
    return tasks[:limit]


def _whole(text: str) -> bool:
    """Whether a text has no half surrogate pair, which JSON can spell and no tokenizer takes."""
    return text.encode(errors="replace").decode() == text


# Rows


def key_of(arm: str, prompt_id: int, seed: int) -> str:
    """The name of a row."""
    return f"{arm}/{prompt_id}/{seed}"


def row_seed(prompt_id: int, seed: int) -> int:
    """What midcourse.generate writes the row with: no two prompts share their random numbers, but all arms do."""
    return _SEED_STEP * seed + prompt_id


def write_rows(study: Study, arms: Sequence[Arm], path: Path, known: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Append what is missing to a file of rows; all its rows by key.

    The arms take turns, a batch of prompts each: what is there is balanced at any time, and so is the time left.

    Args:
        known: the arms that the file may hold.
    """
    known = {*known, REFERENCE_RESPONSES}

    def mine(row: dict[str, Any]) -> str:
        if row["arm"] not in known:
            raise ForeignRow(f"is of {row['arm']!r}, which {ASKED} does not list")
        number = row["prompt_id"]
        if not 0 <= number < len(study.tasks) or study.tasks[number].prompt != row["prompt"]:
            raise ForeignRow(f"answers another prompt than prompt {number}")
        if row["key"] != key_of(row["arm"], number, row["seed"]):
            raise ForeignRow(f"has the key {row['key']!r}")
        return row["key"]

    rows = written_rows(path, True, mine)
    total = len(arms) * len(study.tasks) * study.seeds
    done = sum(key_of(arm.name, i, seed) in rows for arm in arms for i, seed in _places(study))
    with path.open("ab") as file, progress("responses", total - done) as advance:
        for row in _references(study):
            if row["key"] not in rows:
                append_row(file, row)
                rows[row["key"]] = row
        for seed in range(study.seeds):
            for ids in _batches(study):
                for arm in arms:
                    left = [i for i in ids if key_of(arm.name, i, seed) not in rows]
                    for row in _respond(study, arm, left, seed, ids.start):
                        if row["key"] in rows:
                            continue
                        append_row(file, row)
                        rows[row["key"]] = row
                        advance(1)
    return rows


def _places(study: Study) -> Iterator[tuple[int, int]]:
    return itertools.product(range(len(study.tasks)), range(study.seeds))


def _batches(study: Study) -> Iterator[range]:
    return (
        range(begin, min(begin + study.batch_size, len(study.tasks)))
        for begin in range(0, len(study.tasks), study.batch_size)
    )


def _respond(study: Study, arm: Arm, ids: Sequence[int], seed: int, batch: int) -> Iterator[dict[str, Any]]:
    """The rows of some prompts, as they are finished. What is the same for every seed is written for all at once.

    Args:
        batch: the first prompt of the batch that they are of.
    """
    lm = study.policies[arm.given or ""].lm if arm.method == POLICY else study.lm
    reward = study.guides[arm.reward].reward if arm.reward else None
    count = arm.prompts_at_a_time(study.batch_size)
    for begin in range(0, len(ids), count):
        part = ids[begin : begin + count]
        events = stream(
            lm,
            [study.tasks[i].prompt for i in part],
            reward,
            method=arm.chosen,
            template=study.rendering,
            max_new_tokens=study.max_new_tokens,
            seed=[row_seed(i, seed) for i in part],
            batch_size=study.batch_size,
            **arm.limits,
        )
        meter, best_of_n = Meter(), isinstance(arm.chosen, BestOfN)
        with meter.reading(lm.model, models_of(reward)):
            for place, generation, cost in meter.shared(events, len(part), rated_at_end=best_of_n):
                if arm.method == POLICY:
                    assert isinstance(arm.chosen, Method)
                    generation = with_kl(lm, study.lm, generation, arm.chosen, study.rendering)
                for one in range(study.seeds) if arm.greedy else [seed]:
                    yield _row(study, arm, part[place], one, generation, cost.stored() | {"batch": batch})


def _row(
    study: Study, arm: Arm, prompt_id: int, seed: int, found: Generation, cost: Mapping[str, float]
) -> dict[str, Any]:
    """A response as its row of results.jsonl."""
    bound = found.guidance_kl if isinstance(arm.chosen, BestOfN) and arm.base else None
    own = arm.base and not isinstance(arm.chosen, BestOfN)  # its guidance KL is against the study's base
    tokens = []
    for step in found.steps:
        token = token_row(step) | {"guidance_kl": step.guidance_kl if own else None, "total_kl": step.total_kl}
        if study.save_candidates:
            token["candidates"] = [vars(candidate) for candidate in step.candidates]
        tokens.append(token)
    return {
        "key": key_of(arm.name, prompt_id, seed),
        "arm": arm.name,
        "method": arm.method,
        "reward": arm.reward,
        "setting": dict(arm.setting),
        "prompt_id": prompt_id,
        "prompt": found.prompt,
        "seed": seed,
        "row_seed": row_seed(prompt_id, seed),
        "text": found.text,
        "finish_reason": found.finish_reason,
        "guide_reward": found.reward,
        "guidance_kl": found.guidance_kl if own else None,
        "total_kl": found.total_kl,
        "kl_bound": bound,
        "greedy": arm.greedy,
        "tokens": tokens,
        "cost": cost,
    }


def _references(study: Study) -> Iterator[dict[str, Any]]:
    """The reference responses as rows, without figures."""
    for i, task in enumerate(study.tasks):
        if task.reference is not None:
            yield {
                "key": key_of(REFERENCE_RESPONSES, i, 0),
                "arm": REFERENCE_RESPONSES,
                "method": REFERENCE_RESPONSES,
                "reward": None,
                "setting": {},
                "prompt_id": i,
                "prompt": task.prompt,
                "seed": 0,
                "text": task.reference,
                "finish_reason": "stop",
                "greedy": False,
                "tokens": [],
                "cost": None,
            }


def _incomplete(study: Study, arms: Iterable[str], rows: Mapping[str, Any]) -> dict[str, int]:
    """How many rows an arm lacks, of those that lack some."""
    lacking = {name: sum(key_of(name, i, seed) not in rows for i, seed in _places(study)) for name in arms}
    return {name: count for name, count in lacking.items() if count}


# Judges


def judge_rows(
    judges: Sequence[AnyJudge], rows: Mapping[str, dict[str, Any]], folder: Path, concurrency: int
) -> list[dict[str, Any]]:
    """Have all rows judged; the judgements. A judge that compares does so with plain and the reference responses."""
    responses = {
        key: Response(key, row["arm"], row["prompt"], row["text"], row["finish_reason"] == "stop")
        for key, row in rows.items()
    }
    rivals = {}
    for key, row in rows.items():
        others = {
            PLAIN: responses.get(key_of(PLAIN, row["prompt_id"], row["seed"])),
            REFERENCE_RESPONSES: responses.get(key_of(REFERENCE_RESPONSES, row["prompt_id"], 0)),
        }
        rivals[key] = [one for arm, one in others.items() if one is not None and arm != row["arm"]]
    return judge_all(judges, list(responses.values()), rivals, folder, resume=True, concurrency=concurrency)


def check_judges(judges: Sequence[AnyJudge], study: Study, force: bool) -> dict[str, list[str]]:
    """By judge: what shall be known of its independence.

    Raises:
        CompareError: two judges of one name, or one that is not independent of what it judges, unless forced.
    """
    names = [judge.name for judge in judges]
    if twice := [name for name in names if names.count(name) > 1]:
        raise CompareError(f"two judges are called {twice[0]}; name one folder otherwise")
    guides = list(study.origins.values())
    notes: dict[str, list[str]] = {}
    for judge in judges:
        reasons = [reason for guide in guides if (reason := why_dependent(judge.origin, guide))]
        if isinstance(judge, NumberJudge) and judge.record.get("objective") == "prefix":
            reasons.append(
                "was trained on prefixes of equal length, and its rewards of texts of different length are not "
                "comparable (--objective sequence makes a judge)"
            )
        if reasons and not force:
            raise CompareError(f"judge {judge.name} {reasons[0]}; use another judge, or --force-judges")
        notes[judge.name] = [f"forced: {judge.name} {reason}" for reason in reasons]
        if isinstance(judge, NumberJudge):
            notes[judge.name] += unknown(judge.origin, guides)
    return notes


# Tuning


def _check_tuning(tuning: Tuning, study: Study, judges: Sequence[AnyJudge]) -> None:
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
    tuning: Tuning,
    judge: AnyJudge,
    folder: Path,
    known: Iterable[str],
    concurrency: int,
) -> tuple[list[Arm], list[dict[str, Any]]]:
    """The best arm of each method and reward on the validation prompts, and how it was found."""
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
        chosen, within = _chosen(names, scores, kls, tuning.kl)
        best += [arm for arm in members if arm.name == chosen]
        tried = [{"arm": name, "score": scores.get(name), "kl": kls.get(name)} for name in names]
        limit = {"kl_limit": tuning.kl, "within_limit": within}
        record.append(
            {"method": method, "reward": given, "judge": judge.name, "chosen": chosen, **limit, "tried": tried}
        )
    return best, record


def _chosen(
    names: Sequence[str], scores: Mapping[str, float], kls: Mapping[str, float], limit: float | None
) -> tuple[str, bool]:
    """The arm of the best score within the limit, the first of equals; where none is within, that of the lowest KL."""
    within = [name for name in names if limit is None or kls.get(name, 0.0) <= limit]
    if not within:
        return min(names, key=lambda name: kls[name]), False
    return max(within, key=lambda name: scores.get(name, -math.inf)), True


def _scores(rows: Mapping[str, Any], judgements: Iterable[Mapping[str, Any]], judge: str) -> dict[str, float]:
    """Each arm's mean by a judge: of its scores, or of its outcomes against plain."""
    found = defaultdict(list)
    for one in judgements:
        value = one["score"] if one["score"] is not None else one.get("outcome")
        if one["judge"] == judge and value is not None and one.get("versus", PLAIN) == PLAIN:
            found[rows[one["key"]]["arm"]].append(value)
    return {arm: fmean(values) for arm, values in found.items()}


def _kls(rows: Mapping[str, Any]) -> dict[str, float]:
    """Each arm's mean KL as `Tuning` defines it; none for an arm whose KL is not known."""
    found = defaultdict(list)
    for row in rows.values():
        found[row["arm"]].append(row)

    def mean(arm: str, name: str) -> float | None:
        values = [row.get(name) for row in found[arm]]
        return None if None in values else fmean(values)

    plain = mean(PLAIN, "total_kl") or 0.0
    kls = {}
    for arm in found:
        guidance, bound, total = (mean(arm, name) for name in ("guidance_kl", "kl_bound", "total_kl"))
        known = [kl for kl in (guidance, bound, None if total is None else total - plain) if kl is not None]
        if known:
            kls[arm] = known[0]
    return kls


# compare.json


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder for this comparison alone."""
    if out.exists() and not out.is_dir():
        raise CompareError(f"{out} is a file; name a folder for --out")
    try:
        with sole_use(out):
            yield
    except InUse as use:
        raise CompareError(
            f"another comparison (process {use.process}) is writing to {out}; "
            "wait for it, or name another folder for --out"
        ) from use


def _begun(
    out: Path,
    study: Study,
    tuning: Tuning | None,
    judges: Sequence[AnyJudge],
    notes: Mapping[str, list[str]],
    resume: bool,
) -> dict[str, Any]:
    """compare.json as it begins: what was asked, and what earlier calls left.

    Raises:
        CompareError: the folder holds something else, or rows that would not be comparable.
    """
    asked = _asked(study, tuning)
    guides = {name: origin.fingerprint for name, origin in study.origins.items()}
    rated = {one.name: {"fingerprint": one.origin.fingerprint, "kind": one.kind, **one.record} for one in judges}
    earlier = _earlier(out, resume)
    if earlier:
        _check_same(earlier, asked, guides, rated, out)
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


def _asked(study: Study, tuning: Tuning | None) -> dict[str, Any]:
    """What no later call may change."""
    return {
        "lm_fingerprint": study.lm_fingerprint,
        "prompts": len(study.tasks),
        "prompts_fingerprint": _fingerprint(study.tasks),
        "template": study.rendering,
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
    """compare.json of earlier calls; {} in a new folder."""
    path = out / ASKED
    if not path.is_file():
        if any(one.name != LOCK and not one.name.startswith(f".{ASKED}") for one in out.iterdir()):
            raise CompareError(f"{out} is not empty and holds no {ASKED}; name a new folder for --out")
        return {}
    if not resume:
        raise CompareError(f"{out} holds a comparison; add --resume to go on with it, or name another folder for --out")
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CompareError(f"{path} is damaged ({error}); restore it, or name another folder for --out") from error


def _check_same(
    earlier: Mapping[str, Any],
    asked: Mapping[str, Any],
    guides: Mapping[str, str],
    judges: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> None:
    """Raise CompareError where a folder's rows would not be comparable with those that are asked for."""
    remedy = "resume with the same arguments, or name another folder for --out"
    have = earlier.get("asked", {})
    for name, want in asked.items():
        if have.get(name) != want:
            raise CompareError(f"{out} holds a comparison with {name} {have.get(name)!r}, not {want!r}; {remedy}")
    for name, fingerprint in guides.items():
        if earlier["guides"].get(name, fingerprint) != fingerprint:
            raise CompareError(f"{out} holds rows of {name} with other weights than it has now; {remedy}")
    for name, judge in judges.items():
        if earlier["judges"].get(name, judge)["fingerprint"] != judge["fingerprint"]:
            raise CompareError(f"{out} holds judgements of another {name} than there is now; {remedy}")


def _others(earlier: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was tuned in earlier calls and not in this one."""
    chosen = {(one["method"], one["reward"]) for one in now}
    return [one for one in earlier if (one["method"], one["reward"]) not in chosen]


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


def _write(record: Mapping[str, Any], out: Path) -> None:
    write_text(out / ASKED, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
