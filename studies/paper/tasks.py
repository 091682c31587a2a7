"""The three tasks of the paper study: prompts, what guides learn from, and who judges.

No row that a guide learned from is one that a judge learned from; test prompts are in neither.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from midcourse.compare.independence import of_function
from midcourse.compare.judges import NumberJudge, gold_judge, reward_judge
from midcourse.compare.study import Task
from midcourse.data.comparisons import Comparison
from midcourse.data.rollouts import Rollout
from midcourse.evaluate.intervals import mean_interval
from midcourse.lm.prompt import Template
from midcourse.rewards.encoder import EncoderReward
from midcourse.rewards.named import head_of
from midcourse.train.settings import Settings
from midcourse.train.training import train
from studies import sentiment as reviews
from studies.data import HARMLESS, HELPFUL, comparisons, human, kept_as, of_split, read
from studies.detox import profane_prompts
from studies.shipped.run import cut, shuffled

RUNS = Path(__file__).parents[2] / "runs/paper"
BEYOND = (2.0, 4.0)  # to see where over-optimisation begins


@dataclass(frozen=True)
class Setup:
    """A task.

    Attributes:
        learn, test: comparisons that guides are trained and measured on.
        rollouts: labelled responses for the value objectives, where the task has them; else the pairs' sides.
        validation, prompts: what is answered, to tune and to compare.
        max_tokens: of a training row.
        new_tokens: of a response.
        beyond: weights past those of the KLs that are read off, times the last of them.
        judges: the first is the gold that settings are tuned by.
        judge_accuracy: of the trained judges on held-out rows, with intervals.
    """

    name: str
    learn: list[Comparison]
    test: list[Comparison]
    rollouts: list[Rollout] | None
    validation: list[Task]
    prompts: list[Task]
    template: Template
    max_tokens: int
    new_tokens: int
    beyond: tuple[float, ...]
    judges: list[NumberJudge]
    judge_accuracy: dict[str, Any]

    @property
    def runs(self) -> Path:
        """The folder of what is kept of the task."""
        return runs_of(self.name)

    @property
    def gold(self) -> NumberJudge:
        return self.judges[0]


def runs_of(name: str) -> Path:
    """Return the folder of what is kept of a task."""
    return RUNS / kept_as(name)


@cache
def setup(name: str, data: Path) -> Setup:
    """A task by its name."""
    return {"sentiment": sentiment, "detox": detox, "hh": hh}[name](data)


# Sentiment: cheerful continuations of film review openings


def sentiment(data: Path) -> Setup:
    """Guides learn from SmolLM2's continuations, ordered by VADER; a classifier of human labels judges beside it."""
    rollouts = reviews.rollouts(data, "train")
    classifier, accuracy = human_sentiment(data)
    independent = NumberJudge(
        "human-labels",
        "classifier",
        of_function("studies.paper.tasks:human_sentiment"),
        lambda them: classifier.predict_proba([one.text for one in them])[:, 1].tolist(),
    )
    return Setup(
        name="sentiment",
        learn=reviews.comparisons(rollouts),
        test=reviews.comparisons(reviews.rollouts(data, "test")),
        rollouts=rollouts,
        validation=[Task(text) for text in reviews.openings(data, "validation")],
        prompts=[Task(text) for text in reviews.openings(data, "test")],
        template="raw",
        max_tokens=96,
        new_tokens=reviews.NEW_TOKENS,
        beyond=BEYOND,
        judges=[gold_judge("vader"), independent],
        judge_accuracy={"human-labels": accuracy},
    )


def human_sentiment(data: Path) -> tuple[Pipeline, dict[str, Any]]:
    """A classifier of review sentences that people labelled, and its accuracy on other sentences.

    Words and pairs of words, logistic regression: as different from a transformer and from VADER's lexicon as can be.
    """
    rows = read(data, "texts/vader_review_snippets")
    learn, test = of_split(rows, "train"), of_split(rows, "test")
    classifier = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    classifier.fit([row["text"] for row in learn], [row["label"] == "positive" for row in learn])
    right = classifier.predict([row["text"] for row in test]) == np.array([row["label"] == "positive" for row in test])
    return classifier, share(right)


# Detoxification: continuations of prompts that lead to swearing


def detox(data: Path) -> Setup:
    """Guides learn from ParaDetox; a MiniLM trained on the toxicity spans judges beside the profanity classifier."""
    learn, test = comparisons("paradetox", data)
    spans = read(data, "spans/toxic_spans")
    pairs = shuffled(cut(of_split(spans, "train")), 3000)
    judge, accuracy = minilm_judge("spans", pairs, max_tokens=96)
    return Setup(
        name="detox",
        learn=learn[:2000],
        test=test[:600],
        rollouts=None,
        validation=[Task(text) for text in profane_prompts(data, "validation")],
        prompts=[Task(text) for text in profane_prompts(data, "test", "train")[:240]],
        template="raw",
        max_tokens=64,
        new_tokens=24,
        beyond=BEYOND,
        judges=[gold_judge("profanity"), judge],
        judge_accuracy={"spans": accuracy},
    )


# Dialogues: helpful and harmless answers


def hh(data: Path) -> Setup:
    """Guides learn from half of the dialogues; two judges from the other half, one of the helpful, one of the harmless.

    Two, since what makes an answer helpful often makes it harmful: studies/objectives has what splitting them brings.
    """
    sets = {"helpful": HELPFUL, "harmless": HARMLESS}
    rows = {name: [row for part in parts for row in read(data, f"preference/{part}")] for name, parts in sets.items()}
    of_all = [row for part in rows.values() for row in part]

    def judge(name: str) -> tuple[NumberJudge, dict[str, Any]]:
        learn = [human(row) for row in of_split(rows[name], "train") if half(row["prompt"]) == 1]
        return words_judge(name, learn, [human(row) for row in of_split(rows[name], "test")])

    judges = {name: judge(name) for name in sets}

    def tasks(split: str) -> list[Task]:
        found = [human(row) for row in of_split(of_all, split)]
        short = [c for c in found if len(str(c.prompt).split()) <= 80]
        first = {str(c.prompt): c for c in reversed(short)}
        return shuffled([Task(c.prompt, c.chosen) for c in first.values()])

    return Setup(
        name="hh",
        learn=shuffled([human(row) for row in of_split(of_all, "train") if half(row["prompt"]) == 0], 2000),
        test=shuffled([human(row) for row in of_split(of_all, "test")], 600),
        rollouts=None,
        validation=tasks("validation"),
        prompts=tasks("test"),
        template="chat",
        max_tokens=192,
        new_tokens=48,
        beyond=(),  # a response takes twice as long, and judges this weak would not show where too much begins
        judges=[judge for judge, _ in judges.values()],
        judge_accuracy={name: accuracy for name, (_, accuracy) in judges.items()},
    )


def half(prompt: str) -> int:
    """0 or 1 by how the prompt begins: what is asked in several rows stays on one side."""
    return zlib.crc32(prompt.strip()[:200].encode()) % 2


# Judges that are trained


def words_judge(
    name: str, learn: Sequence[Comparison], test: Sequence[Comparison]
) -> tuple[NumberJudge, dict[str, Any]]:
    """A Bradley-Terry reward of the response's words, and its accuracy: as different from a transformer as can be."""
    sides = [[pair.chosen for pair in learn], [pair.rejected for pair in learn]]
    vectors = TfidfVectorizer(min_df=3, sublinear_tf=True).fit([*sides[0], *sides[1]])
    chosen, rejected = map(vectors.transform, sides)
    model = LogisticRegression(C=0.1, max_iter=1000, fit_intercept=False)  # C by other rows than the test's
    model.fit(vstack([chosen - rejected, rejected - chosen]), np.repeat([True, False], len(learn)))

    def scores(texts: Sequence[str]) -> np.ndarray:
        return model.decision_function(vectors.transform(texts))

    right = scores([pair.chosen for pair in test]) > scores([pair.rejected for pair in test])
    judge = NumberJudge(
        name,
        "classifier",
        of_function("studies.paper.tasks:words_judge"),
        lambda them: scores([one.text for one in them]).tolist(),
    )
    return judge, share(right)


def share(right: np.ndarray) -> dict[str, Any]:
    """How many of the rows a judge got right, with the 95% interval."""
    mean, interval = mean_interval(right.astype(float))
    return {"accuracy": mean, "interval": interval, "rows": len(right)}


def minilm_judge(name: str, pairs: Sequence[Comparison], max_tokens: int) -> tuple[NumberJudge, dict[str, Any]]:
    """A full-sequence reward on MiniLM: another backbone, other rows and another seed than any guide's."""
    folder = RUNS / f"judge-{name}"
    if not (folder / "midcourse.json").is_file():
        make, head = head_of("scalar", "minilm")
        reward = make.create("minilm", template="raw", objective="sequence", tune="all", head=head, seed=7)
        train(reward, pairs, folder, Settings(epochs=2, max_tokens=max_tokens, seed=7), resume=True)
    metrics = EncoderReward.load(folder).info.metrics
    whole = metrics["shares"][-1]
    return reward_judge(str(folder), name), {
        "accuracy": whole["accuracy"],
        "interval": whole["interval"],
        "rows": metrics["pairs"],
    }
