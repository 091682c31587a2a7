"""The paper's claims on this project's own models: every method at equal KL and equal cost, by independent judges.

    python -m studies.paper.run --data DIR [--hours 6] [TASK ...]        (or MIDCOURSE_DATA=DIR)

Three tasks (sentiment, detox, hh). For each: train judges and guides on disjoint rows, find the weights that reach 2, 5
and 12 nats on validation prompts, time every method there, cut the test's size by a written rule (`affordable`), write
every response through midcourse.compare.run, and read off the answers. Tasks may run side by side, one process
each. Everything is resumable: what runs/paper/ holds is not done again. Texts stay there; committed are
results/TASK.json, results/TASK-scores.csv.gz and plots.
"""

import gzip
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from midcourse import LanguageModel
from midcourse.compare.arms import PLAIN, Base
from midcourse.compare.report.grouped import GroupedRows
from midcourse.compare.report.page import write_report
from midcourse.compare.report.statistics import difference
from midcourse.compare.rows import ComparisonRows, ResponseRow, read_folder
from midcourse.compare.run import compare
from midcourse.compare.study import Study
from midcourse.compare.writing import WrittenResponse
from midcourse.data.encoded import encode
from midcourse.errors import MidcourseError
from midcourse.evaluate.accuracy import pair_accuracy
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.files import write_bytes
from midcourse.lm.prompt import Prompt, prompt_ids
from midcourse.lm.weights import weights_fingerprint
from midcourse.rewards.info import read_info
from midcourse.train.scorer import Scorer
from midcourse.train.training import prefix_rewards
from studies.data import PARADETOX, arguments, command, fitting, kept
from studies.detox import profane_shares
from studies.paper.guides import GUIDES, guides, policies
from studies.paper.plot import plot
from studies.paper.tables import ARGS, SIXTEEN, TABLES, TASKS
from studies.paper.tasks import Setup, runs_of, setup
from studies.steering import KLS, weights_at, write
from studies.tables import fill_readme

HERE = Path(__file__).parent
RESULTS = HERE / "results"
BATCH = 32  # rows written side by side
TUNED_ON, TIMED_ON = 32, BATCH  # validation prompts for the weights, and for the pilot, whose batches are full too
SIZES = ((240, 2), (200, 2), (160, 2), (120, 2), (100, 2), (100, 1))  # prompts and seeds, the largest that fits
AIMS = (*KLS[:-1], 12.0)  # nats that weights are looked for at: past the last KL, to reach it on other prompts too
SIZES_OF_K, K_PROMPTS = (3, 40), 40  # candidates besides the base's 10, and prompts of that comparison
HALF_WIDTH, TEST_PAIRS = 0.05, 600
TIMED_BATCH, TIMED_ROUNDS = 16, 4
CLOSE, CLOSE_ROUNDS = ("pargs@trunk", "policy=dpo"), 24  # those whose times are close to plain's, and their rounds

Weights = dict[str, dict[str, list[float]]]


class Entry(NamedTuple):
    """A method with its guide, and how its settings come about.

    Attributes:
        kl: "guidance" or "total": weights are those that reach AIMS nats of it, and beyond; "none": these settings.
        settings: swept where nothing is looked for.
    """

    method: str
    guide: str | None
    kl: str = "none"
    settings: Mapping[str, tuple[float, ...]] = MappingProxyType({})

    @property
    def name(self) -> str:
        return f"{self.method}@{self.guide}" if self.guide else self.method


# The most telling ones first: what does not fit into the time is left out from the end.
ENTRIES = (
    Entry("pargs", "prefix", "guidance"),
    Entry("args-stochastic", "sequence", "guidance"),
    Entry("pargs", "trunk", "guidance"),
    Entry("best-of-n:4", "sequence"),
    Entry("best-of-n:16", "sequence"),
    Entry("policy=dpo", None),
    Entry("pargs", "prefix-paper", "guidance"),
    Entry("cd", "value", "guidance"),
    Entry("farma", "farma", "total"),
    Entry("genarm", "autoregressive", "total"),
    Entry("soft-value", "soft"),
    Entry("args", "sequence", settings={"reward_weight": (0.5, 1.5, 4.5)}),
    Entry("pargs-greedy", "prefix", settings={"reward_weight": (0.5, 1.5, 4.5)}),
    Entry("cd-blockwise:6", "value"),
    Entry("cards", "sequence"),  # at thresholds that are looked up: see `weights`
)
QUANTILES = (0.5, 0.75, 0.9)  # of the guide's rewards of plain responses: CARDS's thresholds


# The study of a task


def made(task: Setup, lm: LanguageModel) -> Study:
    """What is the same for every row."""
    return Study(
        lm,
        weights_fingerprint("smollm2"),
        guides(task, lm),
        policies(task, lm),
        task.prompts,
        Base(),
        max_new_tokens=task.new_tokens,
        template=task.template,
        batch_size=BATCH,
    )


def weights(task: Setup, study: Study) -> Weights:
    """By entry, what is swept; found on validation prompts and nowhere else."""
    prompts = [one.prompt for one in task.validation[:TUNED_ON]]
    common: dict[str, Any] = {"new_tokens": task.new_tokens, "seed": 10_000, "template": task.template}
    plain = write(study.lm, prompts, None, 0.0, **common)
    spent = fmean(text.total_kl or 0.0 for text in plain)
    found: Weights = {}
    for entry in ENTRIES:
        if entry.kl == "none":
            found[entry.name] = {name: list(values) for name, values in entry.settings.items()}
            continue
        assert entry.guide is not None
        reward = study.guides[entry.guide].reward
        own = {"method": entry.method, "temperature": 1.0, "top_k": None if entry.method == "genarm" else 10}

        def kl_of(weight: float, reward=reward, own=own, entry=entry) -> float:
            texts = write(study.lm, prompts, reward, weight, **own, **common)
            if entry.kl == "guidance":
                return fmean(text.guidance_kl or 0.0 for text in texts)
            return max(fmean(text.total_kl or 0.0 for text in texts) - spent, 1e-3)

        reached = weights_at(kl_of, AIMS)
        reached += [reached[-1] * times for times in task.beyond]
        if entry.kl == "total":  # From another support than plain's: KL leaps, and 2 nats lie below the first weight.
            reached.insert(0, reached[0] / 2)
        found[entry.name] = {"reward_weight": [float(f"{weight:.3g}") for weight in dict.fromkeys(reached)]}
    scored = study.guides["sequence"].reward.score(prompts, [text.text for text in plain], finished=False)
    ends = [one.rewards[-1] for one in scored if one.rewards]
    found["cards@sequence"] = {"reward_threshold": [float(f"{q:.3g}") for q in np.quantile(ends, QUANTILES)]}
    return found


# The pilot, and the rule that cuts


def pilot(task: Setup, study: Study, found: Weights) -> dict[str, Any]:
    """Seconds of a response of each entry, all its settings together, and the spread of paired differences in gold."""
    small, folder = replace(study, tasks=task.validation[:TIMED_ON]), task.runs / "pilot"
    for entry in ENTRIES:
        compare(small, [entry.name], folder, sweep=found[entry.name], resume=True)
    taken: dict[str, float] = defaultdict(float)
    rows = read_folder(folder).responses
    for row in rows:
        taken[row.arm] += (row.cost.seconds if row.cost else 0.0) / TIMED_ON
    seconds = {PLAIN: taken[PLAIN]}
    for entry in ENTRIES:
        arms, _ = small.plan([entry.name], found[entry.name])
        seconds[entry.name] = sum(taken[arm.name] for arm in arms if arm.name != PLAIN)
    by_arm = golds(task, rows)
    spread = fmean(
        float(np.std([of_arm[i] - by_arm[PLAIN][i] for i in of_arm], ddof=1))
        for arm, of_arm in by_arm.items()
        if arm.startswith("pargs ")
    )
    needed = int(np.ceil((1.96 * spread / HALF_WIDTH) ** 2))
    return {"seconds": seconds, "spread": spread, "prompts_for_half_width": needed}


def golds(task: Setup, rows: Sequence[ResponseRow]) -> dict[str, dict[int, float]]:
    """By arm and prompt, the gold of a comparison's responses."""
    rated = task.gold.rate([WrittenResponse(r.key, r.arm, r.prompt, r.text, r.finish_reason == "stop") for r in rows])
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row, gold in zip(rows, rated, strict=True):
        found[row.arm][row.prompt_id] = gold
    return found


def affordable(seconds: dict[str, float], budget: float) -> tuple[list[Entry], int, int]:
    """(entries, prompts, seeds): the largest of SIZES that fits all entries into the budget of seconds.

    Where not even the smallest does, entries are left out from the end.
    """
    for prompts, seeds in SIZES:
        if prompts * seeds * sum(seconds.values()) <= budget:
            return list(ENTRIES), prompts, seeds
    prompts, seeds = SIZES[-1]
    taken: list[Entry] = []
    for entry in ENTRIES:
        if prompts * seeds * sum(seconds[one.name] for one in [*taken, entry]) > budget:
            break
        taken.append(entry)
    return taken, prompts, seeds


# Question 1: are full-sequence rewards arbitrary on prefixes?

CUTS, FROM_EACH, STEMS = (0.25, 0.5, 0.75), 16, 40  # shares of a response, rollouts of each stem, responses


class Stem(NamedTuple):
    """The beginning of a response, and how much of it that is."""

    prompt: Prompt
    text: str
    share: float


def prefix_questions(task: Setup, study: Study) -> dict[str, Any]:
    """Accuracy by share of the response on test pairs, and how prefix rewards go with what plain texts become."""
    found: dict[str, Any] = {"accuracy": {}, "correlation": {}}
    for name in ("sequence", "prefix", "prefix-paper", "trunk", "value"):
        reward = study.guides[name].reward
        pairs = encode(reward, fitting(reward, task.test, task.max_tokens)[:TEST_PAIRS], task.max_tokens)
        scorer = Scorer(reward, [pairs.rows])
        found["accuracy"][name] = pair_accuracy(pairs, prefix_rewards(scorer, 0))["shares"]
    stems, worth = futures(task, study)
    for name in found["accuracy"]:
        reward = study.guides[name].reward
        given = reward.score([stem.prompt for stem in stems], [stem.text for stem in stems], finished=False)
        ends = np.array([one.rewards[-1] for one in given])
        found["correlation"][name] = correlations(ends, np.array(worth), stems)
    return found


def futures(task: Setup, study: Study) -> tuple[list[Stem], list[float]]:
    """Beginnings of plain responses, and the mean gold of the texts that the plain LM makes of each, drawn anew."""
    prompts = [one.prompt for one in task.validation[:STEMS]]
    common: dict[str, Any] = {"template": task.template, "new_tokens": task.new_tokens}
    whole = write(study.lm, prompts, None, 0.0, seed=20_000, **common)
    stems, worth = [], []
    for share in CUTS:
        cut = round(share * task.new_tokens)
        begun = [
            (prompt, [step.token_id for step in text.steps[:cut]])
            for prompt, text in zip(prompts, whole, strict=True)
            if len(text.steps) > cut
        ]
        decode = study.lm.tokenizer.decode
        # As raw text the rendered prompt and what follows it are the same tokens again.
        rendered = [decode([*prompt_ids(study.lm.tokenizer, prompt, task.template), *ids]) for prompt, ids in begun]
        asked = [text for text in rendered for _ in range(FROM_EACH)]
        left = task.new_tokens - cut
        ends = write(study.lm, asked, None, 0.0, seed=30_000, template="raw", new_tokens=left, batch_size=96)
        for number, (prompt, ids) in enumerate(begun):
            stem = Stem(prompt, decode(ids), share)
            texts = [stem.text + end.text for end in ends[number * FROM_EACH : (number + 1) * FROM_EACH]]
            gold = task.gold.rate([WrittenResponse("", "", prompt, text, False) for text in texts])
            stems.append(stem)
            worth.append(fmean(gold))
    return stems, worth


def correlations(rewards: np.ndarray, worth: np.ndarray, stems: Sequence[Stem]) -> list[dict[str, Any]]:
    """Pearson's r of prefix rewards and what the texts become, at each share, with a bootstrap interval over stems."""
    found = []
    for share in CUTS:
        here = np.array([stem.share == share for stem in stems])
        x, y = rewards[here], worth[here]
        draws = np.random.default_rng(0).integers(len(x), size=(2000, len(x)))
        several = [float(np.corrcoef(x[draw], y[draw])[0, 1]) for draw in draws]
        low, high = np.nanquantile(several, (0.025, 0.975))
        r = float(np.corrcoef(x, y)[0, 1])
        found.append({"share": share, "r": r, "interval": [float(low), float(high)], "stems": len(x)})
    return found


# Questions 2 and 5: what a token costs, and what is best where it may cost what it likes


def times(task: Setup, study: Study, entries: Sequence[Entry], found: Weights) -> dict[str, dict[str, Any]]:
    """By arm, how many times as long a token takes as plain's: the mean of rounds, and its interval.

    Each method, at its weakest setting, takes turns with plain: a machine that slows down is neither's gain.
    """
    found_times = {}
    for entry in entries:
        rounds = CLOSE_ROUNDS if entry.name in CLOSE else TIMED_ROUNDS
        prompts = task.validation[:TIMED_BATCH] * (1 + rounds)
        small = replace(study, tasks=prompts, batch_size=TIMED_BATCH)
        weakest = {name: values[:1] for name, values in found[entry.name].items()}
        with TemporaryDirectory() as folder:
            compare(small, [entry.name], folder, sweep=weakest)
            taken = seconds_per_token(Path(folder))
        plain = taken.pop(PLAIN)
        for arm, seconds in taken.items():
            mean, interval = mean_interval((seconds / plain)[1:])  # the first round warms up
            found_times[arm] = {"mean": mean, "interval": interval}
    return found_times


def seconds_per_token(folder: Path) -> dict[str, np.ndarray]:
    """By arm of a comparison, of each batch."""
    sums: dict[str, dict[int, np.ndarray]] = defaultdict(lambda: defaultdict(lambda: np.zeros(2)))
    for row in read_folder(folder).responses:
        if row.cost:  # the prompts' reference responses have none
            sums[row.arm][row.cost.batch] += row.cost.seconds, row.tokens
    return {arm: np.array([seconds / tokens for seconds, tokens in of.values()]) for arm, of in sums.items()}


def tuned(task: Setup, comparison: ComparisonRows, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each method at the setting of the highest gold on the pilot's validation prompts, less ARGS and best-of-16."""
    gold = golds(task, read_folder(task.runs / "pilot").responses)
    best = {
        curve["name"]: max((arm for arm in curve["arms"] if arm != PLAIN), key=lambda arm: fmean(gold[arm].values()))
        for curve in summary["curves"]
    }
    rows = GroupedRows(comparison)
    found = []
    for method, arm in best.items():
        less: dict[str, Any] = {}
        for judge in rows.scored:
            own = rows.score(arm, judge)
            for other in (best.get(ARGS), SIXTEEN):
                rival = other in rows.by_arm and other != arm
                gap = difference(own, rows.score(other, judge), rows.times) if rival else None
                less.setdefault(judge, []).append(gap and gap.untested())
        found.append({"method": method, "arm": arm, "less": less})
    return found


# Question 4: how many candidates


def candidates(task: Setup, study: Study, found: Weights) -> None:
    """PARGS from bases of other sizes, on the first prompts: a comparison of its own for each k."""
    for k in SIZES_OF_K:
        other = replace(study, tasks=study.tasks[:K_PROMPTS], base=Base(top_k=k))
        for name in ("pargs@prefix", "pargs@trunk"):
            sweep = {"reward_weight": found[name]["reward_weight"][: len(AIMS)]}
            compare(other, [name], task.runs / f"k{k}", sweep=sweep, judges=task.judges, resume=True)


# The study


def studied(name: str, data: Path, hours: float) -> None:
    """A task from data to results/NAME.json; what is done already is not done again."""
    task, lm = setup(name, data), LanguageModel.load("smollm2")
    study, folder = made(task, lm), task.runs
    rule = kept(folder / "rule.json", lambda: profane_shares(lm, data)) if name == "detox" else {}
    found = kept(folder / "weights.json", lambda: weights(task, study))
    timed = kept(folder / "pilot.json", lambda: pilot(task, study, found))
    entries, prompts, seeds = affordable(timed["seconds"], hours * 3600)
    if not entries:
        raise MidcourseError(
            f"{hours * len(TASKS):g} hours are too few for one method on {prompts} prompts; add --hours"
        )
    left_out = [entry.name for entry in ENTRIES if entry not in entries]
    asked = sum(timed["seconds"][entry.name] for entry in entries) * prompts * seeds
    print(
        f"{name}: {prompts} prompts, {seeds} seeds, {len(entries)} of {len(ENTRIES)} methods in about "
        f"{asked / 3600:.1f} h; {timed['prompts_for_half_width']} prompts would give a half-width of {HALF_WIDTH}",
        file=sys.stderr,
        flush=True,
    )
    study = replace(study, tasks=task.prompts[:prompts], seeds=seeds)
    about_prefixes = kept(folder / "prefixes.json", lambda: prefix_questions(task, study))
    for entry in entries:
        compare(study, [entry.name], folder / "compared", sweep=found[entry.name], judges=task.judges, resume=True)
    if name == "sentiment":
        candidates(task, study, found)
    took = kept(folder / "times.json", lambda: times(task, study, entries, found))
    about = {"rule": rule, "weights": found, "pilot": timed, "left_out": left_out}
    publish(name, task, {**about, "prefixes": about_prefixes, "times": took})


def publish(name: str, task: Setup, about: dict[str, Any]) -> None:
    """results/NAME.json, its per-prompt scores, its curves, and README.md's tables and picture: figures, no texts."""
    folder = task.runs / "compared"
    comparison = read_folder(folder)
    summary = write_report(folder)
    sizes = {str(k): write_report(task.runs / f"k{k}")["arms"] for k in SIZES_OF_K if (task.runs / f"k{k}").is_dir()}
    for arms in (summary["arms"], *sizes.values()):
        for arm in arms.values():
            del arm["looping"]
    about = {**about, "judge_accuracy": task.judge_accuracy, "guide_accuracy": accuracies(name), "top_k": sizes}
    about["tuned"] = tuned(task, comparison, summary)
    about |= {"paradetox": PARADETOX} if name == "detox" else {}
    write_results(RESULTS / f"{name}.json", {**about, "summary": summary})
    write_bytes(RESULTS / f"{name}-scores.csv.gz", gzip.compress(scores(comparison).encode(), mtime=0))
    if (folder / "curves.png").is_file():
        write_bytes(RESULTS / f"{name}.png", (folder / "curves.png").read_bytes())
    plot(HERE, HERE / "paper.png")
    fill_readme(HERE, check=False, tables=TABLES)


def accuracies(name: str) -> dict[str, Any]:
    """Held-out pair accuracies that training reported, by guide."""
    found = {}
    for guide in GUIDES:
        metrics = read_info(runs_of(name) / guide).metrics
        found[guide] = {"shares": metrics.get("shares"), "pairs": metrics.get("pairs")}
    return found


def scores(comparison: ComparisonRows) -> str:
    """Every response's scores and KLs, keyed by arm, prompt and seed."""
    judges = sorted({said.judge for said in comparison.judgements if said.score is not None})
    said = {(one.key, one.judge): one.score for one in comparison.judgements}
    lines = [",".join(["arm", "prompt", "seed", "guidance_kl", "total_kl", *judges])]
    for row in comparison.responses:
        numbers = [row.guidance_kl, row.total_kl, *(said.get((row.key, judge)) for judge in judges)]
        cells = ["" if number is None else f"{number:.4g}" for number in numbers]
        lines.append(",".join([row.arm, str(row.prompt_id), str(row.seed), *cells]))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__)
    known = f"{', '.join(TASKS)}; all by default"
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], metavar="TASK", help=known)
    parser.add_argument("--hours", type=float, default=6.0, help="for the responses of all tasks; 6 by default")
    flags = parser.parse_args()
    for name in flags.tasks or TASKS:
        studied(name, flags.data, flags.hours / len(TASKS))


if __name__ == "__main__":
    command(main)
