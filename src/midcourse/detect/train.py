"""ReMoDetect's training: a reward of whole texts learns the order machine > mixed > human (Lee et al., 2024).

A detector is a reward like any other: a folder that `load_reward` loads, `score` shows, and judges and labels are made
of. Its texts stand alone, without a prompt.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from midcourse.data.comparisons import Comparison, prompt_groups
from midcourse.data.encoded import LadderSet
from midcourse.data.formats import DataError
from midcourse.data.ladders import Ladder, level_names
from midcourse.detect.disguise import plain
from midcourse.detect.measures import FEW, separation
from midcourse.evaluate.accuracy import outcome
from midcourse.evaluate.intervals import mean_interval
from midcourse.lm.prompt import as_messages
from midcourse.rewards.trained import TrainedReward
from midcourse.train.settings import Settings
from midcourse.train.training import train


def train_detector(
    reward: TrainedReward,
    ladders: Sequence[Ladder],
    out: str | Path,
    settings: Settings,
    *,
    replay: Sequence[Comparison] = (),
    as_written: bool = False,
    resume: bool = False,
    report_to: Sequence[str] = (),
) -> dict[str, Any]:
    """Train `reward` to order the levels of ladders and save it to `out`; returns its metrics on held-out ladders.

    A reward whose prompts were rendered by the chat template goes on with the template "mixed": chat prompts of what is
    replayed are rendered as they were, and texts stand alone.

    Args:
        reward: what is trained, in place; its objective is `ordered`. See `train.start.begin`.
        ladders: those that share a text or a group are held out together.
        out: folder of the detector.
        settings: how.
        replay: comparisons on which the reward is to stay what it is. As many of their responses as ladders are drawn.
        as_written: read texts with their white space and disguises, which `detect.disguise.plain` takes off otherwise.
        resume: go on from the last checkpoint in `out`.
        report_to: trackers, as of `train.training.train`.

    Returns:
        The metrics of `train`, and levels: a list of {upper, lower, pairs, accuracy, interval, ties}; machine_or_human:
        see `detect.measures.separation`.

    Raises:
        DataError: texts that are empty or equal without their disguise, or ladders that all belong together.
        ObjectiveError, TrainingError, Interrupted: as `train`.

    Examples:
        >>> reward = begin("smollm2", make_objective("ordered"), head="trunk")
        >>> train_detector(reward, read_ladders("pairs.jsonl"), "detector", Settings())["machine_or_human"]["auroc"]
    """
    texts = list(ladders) if as_written else plain_ladders(ladders)
    if len(set(prompt_groups(texts))) < 2:
        raise DataError(
            f"all of the {len(texts)} ladders belong together, since they share texts or a group, so none can be held "
            "out; add ladders on other sources"
        )
    if reward.info.template == "chat":
        reward.info = replace(reward.info, template="mixed")
        replay = [replace(one, prompt=as_messages(one.prompt)) for one in replay]
    return train(
        reward, texts, out, settings, resume=resume, report_to=report_to, replayed=replay, measure=level_figures
    )


def plain_ladders(ladders: Sequence[Ladder]) -> list[Ladder]:
    """Return the ladders with the disguise of their texts taken off.

    Raises:
        DataError: a text that is empty then, or equals another of its ladder.
    """
    made = [replace(ladder, levels=tuple(plain(level).text for level in ladder.levels)) for ladder in ladders]
    for number, ladder in enumerate(made, 1):
        if not all(ladder.levels):
            raise DataError(f"ladder {number} has a text of which nothing is seen; write one or remove the ladder")
        if len(set(ladder.levels)) < len(ladder.levels):
            raise DataError(
                f"two texts of ladder {number} ({ladder.levels[0][:40]!r} ...) differ in white space or disguise "
                "alone, so neither can come first; remove the ladder"
            )
    return made


def level_figures(data: LadderSet, rewards: Sequence[Tensor]) -> dict[str, Any]:
    """Return the accuracy of each pair of levels, and how well the first and the last are told apart.

    Args:
        data: ladders that were not trained on.
        rewards: for each of its rows, the rewards at its response positions.
    """
    ends = [float(row[-1]) for row in rewards]
    pairs: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for item, group in zip(data.items, data.prompts, strict=True):
        for (upper, a), (lower, b) in itertools.combinations(zip(level_names(len(item)), item, strict=True), 2):
            pairs.setdefault((upper, lower), []).append((ends[a] - ends[b], group))
    # A text that stands in several ladders counts once.
    machines, humans = (
        {item[end]: group for item, group in zip(data.items, data.prompts, strict=True)} for end in (0, -1)
    )
    return {
        "levels": [{"upper": upper, "lower": lower, **_accuracy(found)} for (upper, lower), found in pairs.items()],
        "machine_or_human": separation(
            [ends[row] for row in humans],
            [ends[row] for row in machines],
            list(humans.values()),
            list(machines.values()),
        ),
    }


def _accuracy(margins: Sequence[tuple[float, str]]) -> dict[str, Any]:
    outcomes = [outcome(margin) for margin, _ in margins]
    groups = [group for _, group in margins]
    mean, found = mean_interval(outcomes, groups, proportion=True)
    interval = found if len(set(groups)) >= FEW else None
    ties = float(np.mean([margin == 0 for margin, _ in margins]))
    return {"pairs": len(outcomes), "accuracy": mean, "interval": interval, "ties": ties}
