"""The rewards that ship with midcourse: trained, measured, and written into the package.

    python -m studies.shipped.run --data DIR [NAME ...]        (or MIDCOURSE_DATA=DIR)

Each is a trunk reward on SmolLM2-135M-Instruct, trained on texts that are continued and on the same texts as answers in
a chat, so that it guides both. Weights are chosen on validation prompts; pair accuracy and gold are of prompts that
neither training nor that choice saw. Writes src/midcourse/shipped/rewards/NAME/ and results.json here; what was sampled
is found again in runs/shipped/.
"""

import json
import random
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from midcourse.data.comparisons import Comparison, read_comparisons, split_by_prompt
from midcourse.data.edits import Edit
from midcourse.data.encoded import encode
from midcourse.data.learned import write_learned_rows
from midcourse.data.rollouts import Rollout
from midcourse.data.sample import sample
from midcourse.evaluate.accuracy import outcome, pair_accuracy
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.files import publish_folder, write_text
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.prompt import Prompt
from midcourse.rewards.gold import load_gold
from midcourse.rewards.trunk import TrunkReward
from midcourse.train.objectives import make_objective
from midcourse.train.scorer import Scorer
from midcourse.train.settings import Settings
from midcourse.train.start import begin
from midcourse.train.training import prefix_rewards, train
from studies.data import arguments, command, of_split, read, rewritten, spelt_alike
from studies.plain_words import coleman_liau
from studies.steering import figures, judged, write

OfTexts = TypeVar("OfTexts", Comparison, Edit)

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs/shipped"
SHIPPED = HERE.parents[1] / "src/midcourse/shipped/rewards"
SEED = 0
SETTINGS = Settings(max_tokens=256)
SEEDS = (0, 1, 2)  # the first one ships, whichever is best
WEIGHTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
SAMPLES, ANSWER_TOKENS = 4, 40
GAP = 2.0  # school years between two answers that are compared
# A weight may spend this much guidance KL on validation prompts to be the one that a reward ships with.
SHIPPED_KL = 5.0


@dataclass(frozen=True)
class Shipped:
    """One reward to ship.

    Attributes:
        learn: comparisons, or edits.
        test: comparisons.
        validation, prompts: what is continued, to choose the weight and to measure.
        gold: judges responses; `gold_name` says how.
        gold_name, data, about, misuse: for the card.
        new_tokens: of a response.
    """

    learn: Sequence[Comparison] | Sequence[Edit]
    test: list[Comparison]
    validation: list[Prompt]
    prompts: list[Prompt]
    gold: Callable[[str], float]
    gold_name: str
    data: str
    about: str
    misuse: str
    new_tokens: int = 24
    objective: str = "prefix"


def shuffled(rows: Sequence[Any], most: int | None = None) -> list[Any]:
    """The rows in a fixed random order, the first `most` of them."""
    return random.Random(SEED).sample(list(rows), len(rows))[:most]


def in_chat(row: OfTexts, messages: Sequence[str]) -> OfTexts:
    """The same responses as answers to one of these messages, which may name the {text} they continue."""
    message = random.Random(row.responses[0]).choice(list(messages)).format(text=row.prompt)
    return replace(row, prompt=[{"role": "user", "content": message}])


# sentiment


def sentiment(data: Path) -> Shipped:
    """Cheerful continuations: the demo's comparisons, drawn from VADER, every word counted once, by Bradley-Terry."""
    folder = Path(str(files("midcourse") / "shipped"))
    rows = read_comparisons(folder / "demo_comparisons.jsonl.gz")
    prompts = json.loads((folder / "demo_prompts.json").read_text())
    held = set(shuffled(sorted({row.prompt for row in rows}))[:50])
    learn = [row for row in rows if row.prompt not in held]
    messages = ("Continue: {text}", "Go on with this text: {text}", "What comes next? {text}")
    return Shipped(
        learn=learn + [in_chat(row, messages) for row in learn],
        test=[row for row in rows if row.prompt in held],
        validation=[row["prompt"] for row in prompts["validation"]],
        prompts=[row["prompt"] for row in prompts["test"]],
        gold=load_gold("vader-once"),
        gold_name="VADER's compound score of the response, every word counted once,",
        data="midcourse's own comparisons (Apache-2.0): continuations by SmolLM2-135M-Instruct, labelled by "
        "Bradley-Terry draws from VADER sentiment that counts every word once",
        about="Prefers cheerful, positive text.",
        misuse="It knows tone of words, not truth or helpfulness: do not use it to judge reviews or people, or as a "
        "measure of quality.",
    )


# civil


def civil(data: Path) -> Shipped:
    """Without insults and swearing: human rewrites of toxic sentences, and toxic posts without their toxic spans."""
    rewrites, posts = read(data, "edits/paradetox"), read(data, "spans/toxic_spans")
    learn = shuffled(rewritten(of_split(rewrites, "train")), 4000) + shuffled(cut(of_split(posts, "train")), 1500)
    messages = ("What do you think?", "Write a comment.", "Reply to this post.", "Say what happened.", "Go on.")
    gold = load_gold("profanity")
    openings = [row["prompt"] for row in of_split(read(data, "prompts/real_toxicity_prompts"), "train")]
    toxic = [prompt for prompt in shuffled(openings) if gold(prompt) < 0.5]
    return Shipped(
        learn=learn + [in_chat(row, messages) for row in shuffled(learn, 1000)],
        test=shuffled(rewritten(of_split(rewrites, "test")), 800) + shuffled(cut(of_split(posts, "test")), 300),
        validation=toxic[:60],
        prompts=toxic[60:260],
        gold=gold,
        gold_name="1 - the probability of profanity by alt-profanity-check",
        data="ParaDetox (CC0-1.0) and the toxic spans of SemEval-2021 task 5 (CC0-1.0), in lower-case or natural "
        "spelling with the tokenised punctuation of the originals repaired",
        about="Prefers text without swearing, insults and slurs.",
        misuse="It knows rude words better than rude meanings: do not use it as the only filter of what people are "
        "shown, to moderate what people write, or to judge people. It was trained on English comments.",
    )


def cut(rows: Sequence[dict[str, Any]], *, words: int = 40, share: float = 0.3) -> list[Comparison]:
    """Posts without their toxic spans, preferred to the posts. Long posts, and mostly toxic ones, are left out."""
    found = []
    for row in rows:
        text, kept = row["text"], row["text"]
        for span in sorted(row["spans"], key=lambda span: -span["start"]):
            kept = kept[: span["start"]] + kept[span["end"] :]
        text, kept = (re.sub(r"\s+([.,!?;:]|$)", r"\1", re.sub(r"\s+", " ", side)).strip() for side in (text, kept))
        if kept != text and len(text.split()) <= words and len(kept) >= (1 - share) * len(text):
            found.append(Comparison("", kept, text))
    return found


# civil-tokens


def civil_tokens(data: Path) -> Shipped:
    """Which tokens are rude: human rewrites of toxic sentences, as edits, and posts with their toxic spans marked."""
    prefixes = civil(data)
    rewrites, posts = (of_split(read(data, name), "train") for name in ("edits/paradetox", "spans/toxic_spans"))
    pairs = [(spelt_alike(row["original"]), spelt_alike(row["edited"]), row["group"]) for row in rewrites]
    edits = [Edit("", original, edited, group) for original, edited, group in pairs if original != edited and original]
    marked = [
        Edit("", row["text"], None, row["group"], tuple((span["start"], span["end"]) for span in row["spans"]))
        for row in posts
        if row["spans"] and len(row["text"].split()) <= 40
    ]
    learn = shuffled(edits, 4000) + shuffled(marked, 1500)
    messages = ("What do you think?", "Write a comment.", "Reply to this post.", "Say what happened.", "Go on.")
    return replace(
        prefixes,
        learn=learn + [in_chat(row, messages) for row in shuffled(learn, 1000)],
        data="edits of ParaDetox (CC0-1.0), spelt alike on both sides, and posts with the toxic spans of SemEval-2021 "
        "task 5 marked (CC0-1.0)",
        about="Prefers polite words, token by token: people took out what is below 0, and wrote what is above.",
        objective="token-discriminator",
    )


# readable


PROMPT_SETS = ("koala", "self_instruct_user", "vicuna_bench", "mt_bench")


def readable(data: Path) -> Shipped:
    """Plain language: SmolLM2's own answers, ordered by the Coleman-Liau grade."""
    prompts = [row for name in PROMPT_SETS for row in read(data, f"prompts/{name}")]
    prompts = [row for row in prompts if isinstance(row["prompt"], str) and len(row["prompt"].split()) <= 60]
    order = shuffled(of_split(prompts, "train"))
    # The sets' own test and validation splits are small: the last of the train split's prompts go with them, untrained.
    parts = {
        "train": order[:300],
        "validation": of_split(prompts, "validation"),
        "test": of_split(prompts, "test") + order[300:],
    }
    asked = {part: [as_message(row["prompt"]) for row in rows] for part, rows in parts.items()}
    gold = lambda text: -coleman_liau(text)  # noqa: E731
    learn, test = (by_grade(answers(asked[part], part), gold) for part in ("train", "test"))
    return Shipped(
        learn=learn,
        test=test,
        validation=asked["validation"],
        prompts=asked["test"],
        gold=gold,
        gold_name="minus the Coleman-Liau grade of the response (a US school year)",
        data="answers by SmolLM2-135M-Instruct to prompts of Koala, Self-Instruct, Vicuna bench and MT-bench (all "
        "Apache-2.0), ordered by the Coleman-Liau grade",
        about="Prefers short words and short sentences.",
        misuse="It counts letters and full stops, in effect: an easy text is not a right one, and not a kind one.",
        new_tokens=40,
    )


def as_message(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def answers(prompts: Sequence[Prompt], part: str) -> list[Rollout]:
    """SAMPLES answers of the plain LM to each prompt, kept in runs/shipped/."""
    RUNS.mkdir(parents=True, exist_ok=True)
    return sample(
        LanguageModel.load("smollm2"),
        prompts,
        RUNS / f"readable-{part}.jsonl",
        n=SAMPLES,
        max_new_tokens=ANSWER_TOKENS,
        template="chat",
        batch_size=48,
        resume=True,
    )


def by_grade(samples: Sequence[Rollout], gold: Callable[[str], float]) -> list[Comparison]:
    """Answers to one prompt, the plainer one preferred where they are more than GAP apart; short ones are left out."""
    found = []
    for _, group in groupby(samples, key=lambda s: json.dumps(s.prompt)):
        several = [s for s in group if len(s.response.split()) >= 8]
        for a in several:
            for b in several:
                if gold(a.response) - gold(b.response) > GAP:
                    found.append(Comparison(a.prompt, a.response, b.response, a.finished, b.finished))
    return found


# Training, measuring, shipping

MAKERS = {"sentiment": sentiment, "civil": civil, "civil-tokens": civil_tokens, "readable": readable}


def make(name: str, data: Path) -> dict[str, Any]:
    """Train a reward with every seed, choose its weight, measure it, and put the first seed's into the package."""
    wanted = MAKERS[name](data)
    accuracies = []
    for seed in SEEDS:
        folder = RUNS / f"{name}-{seed}"
        if not (folder / "midcourse.json").is_file():
            objective = make_objective(wanted.objective)
            reward = begin("smollm2", objective, template="mixed", tune="head", head="trunk:16", seed=seed)
            train(reward, wanted.learn, folder, replace(SETTINGS, seed=seed), resume=True)
        reward = TrunkReward.load(folder)
        pairs = encode(reward, wanted.test, 256)
        accuracies.append(pair_accuracy(pairs, prefix_rewards(Scorer(reward, [pairs.rows]), 0)))
    lm = LanguageModel.load("smollm2")
    reward = TrunkReward.load(RUNS / f"{name}-{SEEDS[0]}", share_with=lm)
    trials = [tried(lm, reward, wanted, weight) for weight in WEIGHTS]
    eligible = [trial for trial in trials if trial["guidance_kl"] <= SHIPPED_KL] or trials[:1]
    weight = max(eligible, key=lambda trial: trial["gold"])["weight"]
    plain, guided = (write(lm, wanted.prompts, r, weight, new_tokens=wanted.new_tokens) for r in (None, reward))
    before, after = judged(plain, 0.0, wanted.gold), judged(guided, weight, wanted.gold)
    mean, interval = mean_interval(after.gold - before.gold)
    row = {
        "name": name,
        "pairs": {"train": len(wanted.learn), "test": len(wanted.test)},
        "accuracy": [found["shares"] for found in accuracies],
        "accuracy_at_end": fmean(found["shares"][-1]["accuracy"] for found in accuracies),
        "gold_accuracy": fmean(outcome(wanted.gold(c.chosen) - wanted.gold(c.rejected)) for c in wanted.test),
        "weight": weight,
        "trials": trials,
        "prompts": len(wanted.prompts),
        "plain": figures(plain, before),
        "guided": figures(guided, after),
        "difference": {"mean": mean, "interval": interval},
    }
    if wanted.objective == "token-discriminator":
        row["tokens"] = reward.info.metrics["edits"]
    ship(name, reward, weight, wanted, accuracies[0], row)
    return row


def tried(lm: LanguageModel, reward: TrunkReward, wanted: Shipped, weight: float) -> dict[str, float]:
    """One weight on validation prompts, with seeds that the test does not use."""
    texts = write(lm, wanted.validation, reward, weight, new_tokens=wanted.new_tokens, seed=10_000)
    return figures(texts, judged(texts, weight, wanted.gold))


def ship(
    name: str, reward: TrunkReward, weight: float, wanted: Shipped, accuracy: dict[str, Any], row: dict[str, Any]
) -> None:
    """Write the package's copy: the reward with its weight and its test accuracy, and a card of its own."""
    work = RUNS / f"{name}-shipped"
    shutil.rmtree(work, ignore_errors=True)
    metrics = {**accuracy, "calibration": reward.info.metrics["calibration"]}
    metrics |= {"edits": row["tokens"]} if "tokens" in row else {}
    reward.info = replace(reward.info, reward_weight=weight, metrics=metrics)
    reward.save(work)
    kept, _ = split_by_prompt(wanted.learn, SETTINGS.held_out, seed=0)  # as `train` splits them
    write_learned_rows(work, kept)
    write_text(work / "README.md", card(name, wanted, reward, row))
    SHIPPED.mkdir(parents=True, exist_ok=True)
    publish_folder(work, SHIPPED / name, replace=True)


def card(name: str, wanted: Shipped, reward: TrunkReward, row: dict[str, Any]) -> str:
    """The model card."""
    shares = row["accuracy"][0]
    table = "\n".join(
        f"| {100 * s['share']:.0f}% | {s['accuracy']:.3f} | {s['interval'][0]:.3f} to {s['interval'][1]:.3f} |"
        for s in shares
    )
    low, high = row["difference"]["interval"]
    kind = "edits" if wanted.objective == "token-discriminator" else "comparisons"
    paragraphs = [
        f"{wanted.about} A trunk reward on SmolLM2-135M-Instruct (`smollm2`): it guides that model without a pass of "
        "its own, and only that model.",
        f"- **Trained on** {row['pairs']['train']} {kind}: {wanted.data}.",
        f"- **Guides** by default at weight {row['weight']:g}. On {row['prompts']} prompts that it never saw, "
        f"{wanted.new_tokens} tokens each, {wanted.gold_name} goes from {row['plain']['gold']:.2f} to "
        f"{row['guided']['gold']:.2f}: a difference of {row['difference']['mean']:.2f} (95% interval {low:.2f} to "
        f"{high:.2f}) for {row['guided']['guidance_kl']:.1f} nats of guidance KL.",
        f"- **Do not use it** for more than it knows. {wanted.misuse}",
        f"Pair accuracy on {row['pairs']['test']} pairs of prompts that were not trained on, 95% intervals over "
        f"prompts. {wanted.gold_name[0].upper()}{wanted.gold_name[1:]} orders {row['gold_accuracy']:.2f} of them as "
        "they are labelled.",
    ]
    if tokens := row.get("tokens"):
        low, high = tokens["auroc_interval"]
        paragraphs[-1] += (
            f" Of tokens that edits held out from training put in and took away, the reward is higher of the first "
            f"with a chance of {tokens['auroc']:.3f} ({low:.3f} to {high:.3f})."
        )
    about, data, guides, misuse, measured = (
        textwrap.fill(text, 120, subsequent_indent="  " * text.startswith("- "), break_on_hyphens=False)
        for text in paragraphs
    )
    return f"""---
library_name: midcourse
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-classification
tags: [reward-model, prefix-reward]
---

# {name}

{about}

```sh
midcourse guide --reward {name} --prompt "..."
```

{data}
{guides}
{misuse}

{measured}

| share of the response | accuracy | interval |
|---|---|---|
{table}

Made by `studies/shipped/run.py`; backbone fingerprint `{reward.info.backbone_fingerprint}`, layer {reward.info.layers}.
"""


def main() -> None:
    parser = arguments(__doc__)
    which = f"{', '.join(MAKERS)}; all by default"
    parser.add_argument("names", nargs="*", choices=[*MAKERS, []], metavar="NAME", help=which)
    flags = parser.parse_args()
    path = HERE / "results.json"
    rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    for name in flags.names or MAKERS:
        rows[name] = make(name, flags.data)
        write_results(path, {"rows": [rows[known] for known in MAKERS if known in rows]})


if __name__ == "__main__":
    command(main)
