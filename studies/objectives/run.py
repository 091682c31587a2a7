"""Every objective on every backbone: what it costs, how well it ranks, how honest it is, and how well it guides.

    python -m studies.objectives.run --data DIR [--hours 4] [SET ...]        (or MIDCOURSE_DATA=DIR)

Three sets (sentiment of SmolLM2's own continuations, ParaDetox, HH), and each objective on each backbone that it can
train: three seeds for heads on cached states, one for tuned layers, LoRA and MiniLM, on capped subsets. For
each set a pilot trains one reward of every backbone, prints how long the whole grid would take, and `next_run` cuts
it to the hours. Then the best guides are read off at 2, 5 and 10 nats of guidance KL on unseen openings.

Sets may run side by side, one process each. Resumable: what results/SET.json holds is not done again. Texts of the data
sets are not committed. No setting was tuned on a test split.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from midcourse import LanguageModel
from midcourse.bench.decode import NeverEnding
from midcourse.data.comparisons import Comparison, split_by_prompt
from midcourse.data.encoded import PairSet, encode
from midcourse.data.rollouts import Rollout
from midcourse.decode.steps import Generation
from midcourse.errors import MidcourseError
from midcourse.evaluate.accuracy import SHARES, pair_accuracy
from midcourse.evaluate.calibration import calibration_error, margins
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.progress import progress
from midcourse.rewards.contract import Reward
from midcourse.rewards.gold import load_gold
from midcourse.rewards.named import head_of, load_reward
from midcourse.rewards.scalar import RewardModel
from midcourse.train.objectives import make_objective
from midcourse.train.scorer import make_scorer
from midcourse.train.settings import Settings
from midcourse.train.training import checked_objective, encode_all, prefix_rewards, train
from studies import sentiment
from studies.data import PARADETOX, arguments, command, comparisons, fitting, kept_as
from studies.detox import profane_prompts
from studies.objectives.grid import GUIDED, OBJECTIVES, SETS, TIMED, TRUNK, Run, left, next_run, pilot_seconds, plan
from studies.objectives.tables import TABLES, plot, results_of
from studies.steering import Gold, steered, write
from studies.tables import fill_readme

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = HERE.parents[1] / "runs/objectives"

MAX_TOKENS = {"sentiment": 96, "paradetox": 64, "hh": 160}
MOST_PAIRS = {"sentiment": 4000, "paradetox": 2000, "hh": 600}
TEST_PAIRS = {"sentiment": 5000, "paradetox": 600, "hh": 600}
BEST, PROMPTS = 6, 200
TIMED_ROUNDS, TIMED_TOKENS = 8, 12


# Data


@cache
def examples(name: str, data: Path) -> tuple[list[Comparison], list[Comparison], list[Rollout] | None]:
    """(training comparisons, test comparisons, rollouts with their gold where there are any)."""
    if name != "sentiment":
        learn, test = comparisons(name, data)
        return learn, test, None
    rollouts = sentiment.rollouts(data, "train")
    return sentiment.comparisons(rollouts), sentiment.comparisons(sentiment.rollouts(data, "test")), rollouts


def continued(name: str, data: Path) -> tuple[Gold, list[str], list[str]]:
    """(gold, validation openings, test openings) of a set's guided texts.

    Sentiment: film review openings that no reward saw. Detoxification: RealToxicityPrompts that are profane themselves,
    of which no reward saw any.
    """
    if name == "sentiment":
        validation, test = (sentiment.openings(data, part) for part in ("validation", "test"))
        return load_gold("vader"), validation[:40], test[:PROMPTS]
    validation, test = (profane_prompts(data, split) for split in ("validation", "train"))
    return load_gold("profanity"), validation[:40], test[:PROMPTS]


# Training and judging


def untrained(run: Run) -> RewardModel:
    name, settings = OBJECTIVES[run.objective]
    backbone = run.backbone
    make, head = head_of(backbone.head or "scalar", backbone.model)
    return make.create(
        backbone.model,
        template="raw",
        layers=backbone.layers,
        tune=backbone.tune,
        head=head,
        objective=name,
        objective_settings=make_objective(name, **settings).settings,
        seed=run.seed,
    )


class Trained(NamedTuple):
    """A trained reward, what it learned from, and the seconds that its frozen states and all of it took."""

    reward: RewardModel
    examples: int
    states: float
    seconds: float


def trained(run: Run, data: Path) -> Trained:
    """The reward of a run, from runs/objectives/ where it was trained before."""
    learn, _, rollouts = examples(run.set, data)
    reward, max_tokens, folder = untrained(run), MAX_TOKENS[run.set], RUNS / kept_as(run.name)
    learn = fitting(reward, learn, max_tokens)[: min(MOST_PAIRS[run.set], run.backbone.pairs)]
    labelled = make_objective(reward.info.objective, **reward.info.objective_settings).of == "labels"
    given: Sequence[Comparison] | Sequence[Rollout] = rollouts if labelled and rollouts else learn
    if (folder / "midcourse.json").is_file():
        return Trained(type(reward).load(folder), len(given), 0.0, 0.0)
    settings = Settings(epochs=run.backbone.epochs, max_tokens=max_tokens, seed=run.seed)
    begin = time.monotonic()
    kept, held = split_by_prompt([*given], settings.held_out, seed=0)  # the rows that `train` asks for
    parts = encode_all(reward, checked_objective(reward, settings), kept, held, max_tokens)
    make_scorer(reward, [parts.train, parts.held_pairs])
    states = time.monotonic() - begin
    train(reward, given, folder, settings, resume=True)
    return Trained(reward, len(given), states, time.monotonic() - begin)


def judged(run: Run, data: Path) -> dict[str, Any]:
    """Train one reward and measure it on the test split."""
    examples(run.set, data)  # texts that have to be sampled are no part of its time
    begin = time.monotonic()
    found = trained(run, data)
    reward, max_tokens = found.reward, MAX_TOKENS[run.set]
    pairs = encode(reward, fitting(reward, examples(run.set, data)[1], max_tokens)[: TEST_PAIRS[run.set]], max_tokens)
    start = time.monotonic()
    scorer = make_scorer(reward, [PairSet([], [], []), pairs])  # the first set is the one to train on
    states = found.states + time.monotonic() - start
    rewards = prefix_rewards(scorer, 1)
    accuracy = pair_accuracy(pairs, rewards)
    held = reward.info.metrics.get("shares", [])
    return {
        "name": run.name,
        "set": run.set,
        "backbone": run.backbone.name,
        "objective": run.objective,
        "seed": run.seed,
        "train_examples": found.examples,
        "test_pairs": accuracy["pairs"],
        "shares": accuracy["shares"],
        "held_out": {str(row["share"]): row["accuracy"] for row in held},
        "ece": honesty(reward, margins(pairs, rewards), pairs.prompts),
        "parameters": sum(p.numel() for p in reward.parameters() if p.requires_grad),
        "states_minutes": states / 60,
        "minutes": (found.seconds - found.states) / 60,
        "run_seconds": time.monotonic() - begin,
    }


def honesty(reward: RewardModel, found: Any, prompts: list[str]) -> dict[str, Any] | None:
    """Calibration error on the test split at half and at all of the response, at the stored temperatures."""
    stored = reward.calibration
    if stored is None:
        return None
    ends = stored.finished_temperature or stored.temperature
    return {
        str(share): calibration_error(found[SHARES.index(share)], found[0] * 0 + temperature, prompts)
        for share, temperature in ((0.5, stored.temperature), (1.0, ends))
        if temperature
    }


# Guiding


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rewards that guide: of seed 0 the six with the highest held-out accuracy at half of the response.

    At most two of a backbone, so that they differ; the trunk's prefix reward is always among them. Rewards of whole
    texts are left out: they are no guides of tokens.
    """
    found = [row for row in rows if row["seed"] == 0 and row["backbone"] != "MiniLM, all"]
    found.sort(key=lambda row: -row["held_out"]["0.5"])
    chosen = [row for row in found if (row["backbone"], row["objective"]) == (TRUNK, "prefix")]
    for row in found:
        if len(chosen) < BEST and row not in chosen and sum(c["backbone"] == row["backbone"] for c in chosen) < 2:
            chosen.append(row)
    return chosen


def guided(row: dict[str, Any], plain: Sequence[Generation], data: Path) -> dict[str, Any]:
    """Gold at each guidance KL under one reward."""
    gold, validation, test = continued(row["set"], data)
    lm = LanguageModel.load("smollm2")
    return {
        **{name: row[name] for name in ("name", "set", "backbone", "objective")},
        **steered(lm, guide_of(row, lm, data), gold, validation, test, plain),
    }


def guide_of(row: dict[str, Any], lm: LanguageModel, data: Path) -> Reward:
    """A row's reward on the language model's weights, trained again where it is gone."""
    trained(next(run for run in plan(row["set"]) if run.name == row["name"]), data)
    return load_reward(RUNS / kept_as(row["name"]), share_with=lm)


def timed(row: dict[str, Any], data: Path) -> dict[str, Any]:
    """Seconds of guided over those of plain decoding, by batch size: the mean of rounds, and its interval."""
    lm = NeverEnding.load("smollm2")  # as many tokens with a reward as without
    reward = guide_of(row, lm, data)
    prompts = continued(row["set"], data)[1]

    def seconds(guide: Reward | None, batch_size: int) -> float:
        begin = time.perf_counter()
        write(lm, prompts[:batch_size], guide, 1.0, new_tokens=TIMED_TOKENS, batch_size=batch_size)
        return time.perf_counter() - begin

    found: dict[str, Any] = {"backbone": row["backbone"], "ratio": {}}
    for batch_size in TIMED:
        ratios = []
        for number in range(TIMED_ROUNDS + 1):
            # The first of a round takes turns: a machine that slows down is neither's gain.
            order = (None, reward) if number % 2 else (reward, None)
            took = {guide is reward: seconds(guide, batch_size) for guide in order}
            ratios.append(took[True] / took[False])
        mean, interval = mean_interval(ratios[1:])  # the first round warms up
        found["ratio"][str(batch_size)] = {"mean": mean, "interval": interval}
    return found


# Results


def publish(name: str, results: dict[str, Any]) -> None:
    """Write results/NAME.json and README.md's tables."""
    write_results(RESULTS / f"{name}.json", results)
    fill_readme(HERE, check=False, tables=TABLES)


def main() -> None:
    parser = arguments(__doc__)
    known = f"{', '.join(SETS)}; all by default"
    parser.add_argument("sets", nargs="*", choices=[*SETS, []], metavar="SET", help=known)
    parser.add_argument("--hours", type=float, default=4.0, help="for all three sets; 4 by default")
    flags = parser.parse_args()
    for name in flags.sets or SETS:
        study(name, flags.data, 3600 * flags.hours / len(SETS))


def study(name: str, data: Path, seconds: float) -> None:
    """A set's pilot, grid, guides and timings; every result is on disk as soon as it is there."""
    results = begun(name)

    def add(part: str, row: dict[str, Any]) -> None:
        results[part].append(row)
        publish(name, results)

    runs = plan(name)
    pilot = list({run.backbone: run for run in reversed(runs)}.values())
    for run in left(pilot, results["rows"]):
        add("rows", judged(run, data))
    seconds_each = pilot_seconds(results["rows"])
    total = sum(seconds_each[run.backbone.name] for run in runs) / 3600
    # Half of the time is for guiding, whose cost the pilot does not know.
    budget = seconds / 2 if name in GUIDED else seconds
    print(
        f"{name}: by the pilot, all {len(runs)} runs take {total:.1f} h; they have {budget / 3600:.1f} h",
        file=sys.stderr,
        flush=True,
    )
    with progress("rewards", len(left(runs, results["rows"]))) as advance:
        while run := next_run(runs, results["rows"], budget):
            add("rows", judged(run, data))
            advance(1)
    results["left_out"] = [run.name for run in left(runs, results["rows"])]
    if name in GUIDED:
        guide(results, data, add)
    publish(name, results)
    plot(results_of(HERE), HERE / "objectives.png")


def begun(name: str) -> dict[str, Any]:
    """Return a set's results so far.

    Raises:
        MidcourseError: they are of ParaDetox as it was read before.
    """
    found = results_of(HERE).get(name, {})
    results = {part: found.get(part, []) for part in ("rows", "guided", "timed", "left_out")}
    if name != "paradetox":
        return results
    if found and found["paradetox"] != PARADETOX:
        raise MidcourseError(
            f"{RESULTS / 'paradetox.json'} is of ParaDetox {found['paradetox']}, which is now read {PARADETOX}; "
            "move it away to begin anew"
        )
    return {"paradetox": PARADETOX, **results}


def guide(results: dict[str, Any], data: Path, add: Callable[[str, dict[str, Any]], None]) -> None:
    """The best rewards of a set as guides: gold at equal guidance KL, and the time that each backbone takes."""
    chosen = best(results["rows"])
    have = {row["name"] for row in results["guided"]}
    wanted = [row for row in chosen if row["name"] not in have]
    if wanted:
        plain = write(LanguageModel.load("smollm2"), continued(chosen[0]["set"], data)[2], None, 0.0)
        for row in wanted:
            add("guided", guided(row, plain, data))
    for row in {row["backbone"]: row for row in results["guided"]}.values():
        if row["backbone"] not in {one["backbone"] for one in results["timed"]}:
            add("timed", timed(row, data))


if __name__ == "__main__":
    command(main)
