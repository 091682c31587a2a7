"""Prefix accuracy of any reward: how well it orders the two responses of a comparison, from their first tokens on.

Pair accuracy by share of the response and by subset, beside ties, the length-only baseline, pairs of equal length and
the calibration of the probabilities. Subsets that are RewardBench's (Lambert et al., 2024, arXiv 2403.13787) are also
gathered into its sections, at every share; at 100% those are the scores of its first version, but for ties, which
count one half here and nothing there.
"""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from midcourse.data.comparisons import COLUMNS, Comparison, comparison_of, fingerprint, one_each, prompt_groups
from midcourse.data.encoded import EncodedRow, PairSet, encode
from midcourse.data.formats import BadRow, DataError, Problem, Renamed, optional_text, read_rows, short
from midcourse.evaluate.accuracy import SHARES, cut_at, length_baseline, pair_accuracy
from midcourse.evaluate.best_of import Choice, best_of
from midcourse.evaluate.calibration import calibration_error, cross_fitted, margins
from midcourse.evaluate.intervals import interval_of, resamples
from midcourse.evaluate.scoring import BATCH_TOKENS, score_rows
from midcourse.files import whole_file
from midcourse.lm.prompt import PromptError, prompt_ids, render, response_ids
from midcourse.progress import progress
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import Text
from midcourse.rewards.info import RewardError
from midcourse.rewards.text import TextReward
from midcourse.rewards.token_ids import TokenReward

MAX_TOKENS = 2048  # RewardBench's own limit
BATCH_TEXTS = 256
Reward: TypeAlias = TokenReward | TextReward

# RewardBench's sections, and the weight of each subset in its section: its number of comparisons, but for math-prm (447
# of them), which weighs as much as the six programming languages together.
SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        **{f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
}


# Files to comparisons


@dataclass(frozen=True)
class Benchmark:
    """Comparisons to measure a reward on.

    Attributes:
        comparisons: in the order of the files.
        subsets: the subset of each.
        choices: of each what row of several responses it is of, None if it is a row of its own; empty if all are.
        left_out: how many rows are not among them, by reason: identical, empty, bad.
    """

    comparisons: list[Comparison]
    subsets: list[str]
    choices: list[Choice | None] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


class _Judged(NamedTuple):
    """A row: its comparison and subset, or why it cannot be measured on."""

    comparison: Comparison | None
    subset: str
    reason: str | None
    choice: Choice | None = None


def read_benchmark(
    paths: Sequence[str | Path],
    *,
    reward: Reward | None = None,
    subset_field: str = "subset",
    limit: int | None = None,
    rejects: list[BadRow] | None = None,
    renamed: Renamed | None = None,
) -> Benchmark:
    """Read the comparisons of files in the formats of `read_comparisons`, RewardBench's among them.

    A row's subset is its `subset_field`; if it has none, the file's name. A row of several rejected responses
    (RewardBench 2) is a comparison with each. Rows whose responses are equal, or one of them empty, are left out and
    counted.

    Args:
        reward: whose prompts these are to be; a prompt that it cannot render makes a bad row.
        subset_field: a name other than "subset" has to be in every row.
        limit: at most so many comparisons of each subset, whole rows at random.
        rejects: bad rows are appended to it and reading goes on.
        renamed: fields that the files have by other names.

    Raises:
        DataError: a file that cannot be read, a bad row without `rejects`, or nothing to measure on.
    """
    bad: list[BadRow] | None = None if rejects is None else []
    rows: list[_Judged] = []
    numbers = itertools.count()
    for path, name in zip(paths, _file_names(paths), strict=True):

        def parse(fields: dict[str, Any], name: str = name) -> list[_Judged]:
            judged = [_judged(one, subset_field, name) for one in one_each(fields)]
            return _of_one_row(judged, fields, next(numbers)) if len(judged) > 1 else judged

        def problem(judged: list[_Judged]) -> str | None:
            prompts = [one.comparison for one in judged if one.comparison is not None]
            return None if reward is None or not prompts else _prompt_problem(reward, prompts[0])

        found = read_rows(
            path, parse, "comparisons", (*COLUMNS, subset_field), limit=problem, rejects=bad, renamed=renamed
        )
        rows += itertools.chain.from_iterable(found)
    kept = [row for row in rows if row.comparison is not None]
    reasons = Counter(row.reason for row in rows if row.reason)
    left_out = {"identical": reasons["identical"], "empty": reasons["empty"], "bad": len(bad or [])}
    if rejects is not None:
        rejects += bad or []
    if not kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise DataError(f"{', '.join(map(str, paths))}: no comparison to measure on ({counts}); name other files")
    if limit is not None:
        kept = _some_of_each(kept, limit)
    comparisons = [row.comparison for row in kept if row.comparison is not None]
    return Benchmark(comparisons, [row.subset for row in kept], [row.choice for row in kept], left_out)


def _of_one_row(judged: Sequence[_Judged], fields: dict[str, Any], number: int) -> list[_Judged]:
    """Return the comparisons of a row of several responses, each with its place there."""
    rejected = fields["rejected"]
    sides = len(rejected) if isinstance(rejected, list) and all(isinstance(text, str) for text in rejected) else 1
    name = str(fields.get("id") or "")
    return [one._replace(choice=Choice(number, name, place % sides, len(judged))) for place, one in enumerate(judged)]


def _judged(fields: dict[str, Any], subset_field: str, name: str) -> _Judged:
    subset = _subset(fields, subset_field, name)
    sides = [fields.get(side) for side in ("chosen", "rejected")]
    if sides[0] == sides[1] and all(isinstance(side, str | list) for side in sides):
        return _Judged(None, subset, "identical")
    comparison = comparison_of(fields)
    if not all(response.strip() for response in comparison.responses):
        return _Judged(None, subset, "empty")
    if comparison.chosen == comparison.rejected:
        return _Judged(None, subset, "identical")
    return _Judged(comparison, subset, None)


def _subset(fields: dict[str, Any], subset_field: str, name: str) -> str:
    subset = optional_text(fields, subset_field)
    if not subset and subset_field != "subset":
        raise Problem(subset_field, "the field is to name the subset, and is missing or empty; name another")
    return subset or name


def _prompt_problem(reward: Reward, comparison: Comparison) -> str | None:
    try:
        if isinstance(reward, TextReward):  # it has templates of its own, if any
            reward.lost(Text(comparison.prompt, "", False))
        else:
            prompt_ids(reward.tokenizer, comparison.prompt, reward.rendering)
    except PromptError as error:
        return str(error)
    return None


def _file_names(paths: Sequence[str | Path]) -> list[str]:
    """Return each file's name without its endings; its whole path if two share a name."""
    names = [Path(path).name.partition(".")[0] or Path(path).name for path in paths]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def _some_of_each(rows: list[_Judged], limit: int) -> list[_Judged]:
    if limit < 1:
        raise DataError(f"limit is {limit}; use 1 or more comparisons of each subset")
    whole: dict[object, list[int]] = {}
    for number, row in enumerate(rows):
        whole.setdefault(("of several", row.choice.row) if row.choice else number, []).append(number)
    units = list(whole.values())
    random.Random(0).shuffle(units)
    taken: Counter[str] = Counter()
    kept: list[int] = []
    for unit in units:
        subset = rows[unit[0]].subset
        if taken[subset] + len(unit) <= limit:
            taken[subset] += len(unit)
            kept += unit
    return [rows[number] for number in sorted(kept)]


# Comparisons to figures


def reward_bench(
    reward: Reward,
    benchmark: Benchmark,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, Any]:
    """Measure how well a reward orders the comparisons of a benchmark.

    A reward that adds up over tokens (log-probabilities, implicit rewards) is summed up to the prefix's end. A reward
    of whole texts reads a prefix as the text of its tokens.

    Args:
        reward: what `load_reward` gives, or any `TextReward`.
        tokenizer: for a reward of whole texts: what cuts responses into tokens.
        max_tokens: longest prompt and response together; by default what the reward can read, at most 2048. Those with
            a longer side are left out. A classifier reads the end of a long prompt instead, and those are left out
            whose response is longer alone; for a function only the response counts.
        batch_tokens: of one forward, padding included.

    Returns:
        What `pair_accuracy` gives; with it
        left_out: by reason; cut_prompts: comparisons of which a classifier has not read the whole prompt;
        length_baseline: of preferring the longer response, or the shorter if more of these are chosen;
        calibration: {temperature, finished_temperature (those stored with the reward, else None), shares: a list of
        {share, temperature (the stored one, else 1), given, fitted}}, each a `calibration_error`: at that temperature,
        and at one that was fitted on the other half of the prompts (None for a single prompt);
        subsets: the same figures but the calibration for each subset;
        sections: {sections: a list of {section, subsets, missing, shares: a list of {share, score, interval}},
        total: a list of {share, score, interval}, None if a subset is missing}; None without RewardBench's subsets;
        best_of: how often the right response of several is put first, RewardBench 2's score; see `best_of`.

    Raises:
        RewardError: a reward that is no finite number, or limits that leave nothing.
    """
    if max_tokens is not None and max_tokens < 2:
        raise RewardError(f"max-tokens {max_tokens} leaves no room for a prompt and a response; use 16 or more")
    if isinstance(reward, TextReward):
        if tokenizer is None:
            raise RewardError(f"{reward.name} reads whole texts; pass the tokenizer that cuts them")
        kept, pairs, cut_prompts, rewards = _of_texts(reward, benchmark.comparisons, tokenizer, max_tokens)
    else:
        kept, pairs, rewards = _of_ids(reward, benchmark.comparisons, max_tokens, batch_tokens)
        cut_prompts = 0
    gaps = margins(pairs, rewards)
    _refuse_no_numbers(gaps, [benchmark.comparisons[number] for number in kept], reward.name)
    subsets = [benchmark.subsets[number] for number in kept]
    choices = [benchmark.choices[number] for number in kept] if benchmark.choices else []
    return {
        **pair_accuracy(pairs, rewards),
        "length_baseline": length_baseline(pairs, pairs),
        "left_out": {**benchmark.left_out, "too_long": len(benchmark.comparisons) - len(kept)},
        "cut_prompts": cut_prompts,
        "calibration": _calibration(reward.calibration, gaps, pairs),
        "subsets": {
            name: {**pair_accuracy(part, rewards), "length_baseline": length_baseline(pairs, part)}
            for name in dict.fromkeys(subsets)
            for part in [_part(pairs, [n for n, subset in enumerate(subsets) if subset == name])]
        },
        "sections": section_scores(0.5 + 0.5 * np.sign(gaps), subsets, pairs.prompts),
        "best_of": best_of(choices, gaps[-1].tolist(), subsets, pairs.prompts),
        "data_fingerprint": fingerprint(benchmark.comparisons),
    }


def _refuse_no_numbers(gaps: Float[np.ndarray, "shares pairs"], comparisons: Sequence[Comparison], name: str) -> None:
    broken = np.flatnonzero(~np.isfinite(gaps).all(0))
    if len(broken):
        raise RewardError(
            f"{len(broken)} comparisons have rewards that are no finite numbers, the first with the prompt "
            f"{short(comparisons[broken[0]].prompt)}; restore the weights of {name}, train it again, "
            "or try --dtype float32"
        )


def _part(pairs: PairSet, numbers: Sequence[int]) -> PairSet:
    return PairSet(pairs.rows, [pairs.pairs[n] for n in numbers], [pairs.prompts[n] for n in numbers])


def _none_left(count: int, limit: str) -> RewardError:
    return RewardError(f"all {count} comparisons are longer than {limit}; raise --max-tokens, or use another reward")


# Rewards of token ids


def _of_ids(
    reward: TokenReward,
    comparisons: Sequence[Comparison],
    max_tokens: int | None,
    batch_tokens: int,
) -> tuple[list[int], PairSet, list[Tensor]]:
    """Return (numbers of the comparisons that fit, these encoded, the rewards at their response positions)."""
    room = min(reward.context_length, MAX_TOKENS if max_tokens is None else max_tokens)

    def tokens(comparison: Comparison) -> int:
        prompt = render(reward.tokenizer, comparison.prompt, reward.rendering)
        after = [response_ids(reward.tokenizer, text, finished=True, after=prompt) for text in comparison.responses]
        return len(prompt.token_ids) + max(map(len, after))

    kept = [number for number, comparison in enumerate(comparisons) if tokens(comparison) <= room]
    if not kept:
        raise _none_left(len(comparisons), f"the {room} tokens that are read")
    pairs = encode(reward, [comparisons[number] for number in kept], room, keep_equal=True)
    rewards = score_rows(reward, pairs.rows, batch_tokens)
    return kept, pairs, [row.cumsum(0) for row in rewards] if reward.additive else rewards


# Rewards of texts


def _of_texts(
    reward: TextReward,
    comparisons: Sequence[Comparison],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int | None,
) -> tuple[list[int], PairSet, int, list[Tensor]]:
    """Return (numbers of the comparisons that fit, these in tokens, how many prompts are cut, their rewards).

    Each response is a row of its own, and its rewards are nan except where pair accuracy reads them.
    """
    if max_tokens is not None:
        reward = reward.within(max_tokens)
    kept, sides, cut_prompts = [], [], 0
    for number, comparison in enumerate(comparisons):
        texts = _whole_texts(comparison)
        rows = [
            EncodedRow((), tuple(response_ids(tokenizer, t.response, finished=t.finished)), t.finished) for t in texts
        ]
        if (lost := _lost(reward, texts, rows, max_tokens)) is None:
            continue
        kept.append(number)
        cut_prompts += bool(lost)
        sides += list(zip(texts, rows, strict=True))
    if not kept:
        limit = f"the {reward.room} tokens that {reward.name} reads" if reward.room is not None else None
        raise _none_left(len(comparisons), limit or f"max-tokens {max_tokens}")
    numbers = [(n, n + 1) for n in range(0, len(sides), 2)]
    pairs = PairSet([row for _, row in sides], numbers, prompt_groups([comparisons[number] for number in kept]))
    return kept, pairs, cut_prompts, _score_texts(reward, pairs, [text for text, _ in sides], tokenizer)


def _whole_texts(comparison: Comparison) -> list[Text]:
    finished = comparison.chosen_finished, comparison.rejected_finished
    return [Text(comparison.prompt, *side) for side in zip(comparison.responses, finished, strict=True)]


def _lost(reward: TextReward, texts: Sequence[Text], rows: Sequence[EncodedRow], max_tokens: int | None) -> int | None:
    """Return how many of the prompt's tokens are not read; None if a response does not fit."""
    if reward.room is None:
        longest = max(row.text_length for row in rows)
        return None if max_tokens is not None and longest > max_tokens else 0
    try:
        return max(map(reward.lost, texts))
    except RewardError:
        return None


def _score_texts(
    reward: TextReward, pairs: PairSet, whole: Sequence[Text], tokenizer: PreTrainedTokenizerBase
) -> list[Tensor]:
    asked: dict[tuple[int, int], Text] = {}
    for sides in pairs.pairs:
        for number in sides:
            ids = pairs.rows[number].response
            for share in SHARES[:-1]:
                at = cut_at(pairs, sides, share)
                asked[number, at] = Text(whole[number].prompt, prefix_text(tokenizer, ids[: at + 1]), False)
    # The whole text last: an unfinished one may end where a cut lies.
    asked |= {(number, len(row.response) - 1): whole[number] for number, row in enumerate(pairs.rows)}
    distinct = list({repr(text): text for text in asked.values()}.values())
    distinct.sort(key=lambda text: len(text.response))
    known: dict[str, float] = {}
    with progress("scoring", len(distinct)) as advance:
        for begin in range(0, len(distinct), BATCH_TEXTS):
            part = distinct[begin : begin + BATCH_TEXTS]
            known |= zip(map(repr, part), reward.ask(part), strict=True)
            advance(len(part))
    rewards = [torch.full((len(row.response),), torch.nan) for row in pairs.rows]
    for (number, at), text in asked.items():
        rewards[number][at] = known[repr(text)]
    return rewards


def prefix_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of a response's first tokens, without a last character that is not whole."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")


# Calibration


def _calibration(stored: Calibration | None, gaps: Float[np.ndarray, "shares pairs"], pairs: PairSet) -> dict[str, Any]:
    prefix, finished = (getattr(stored, name, None) for name in ("temperature", "finished_temperature"))
    ends = finished if any(pairs.rows[number].finished for sides in pairs.pairs for number in sides) else prefix
    temperatures = [prefix] * (len(SHARES) - 1) + [ends]
    # Prefixes of all lengths share one temperature, finished texts have their own.
    fitted = [cross_fitted(part, pairs.prompts) for part in (gaps[:-1], gaps[-1:]) for _ in part]

    def error(row: Float[np.ndarray, " pairs"], at: Float[np.ndarray, " pairs"] | None) -> dict[str, Any] | None:
        return None if at is None else calibration_error(row, at, pairs.prompts)

    shares = [
        {
            "share": share,
            "temperature": temperature or 1.0,
            "given": error(row, np.full(len(row), temperature or 1.0)),
            "fitted": error(row, other),
        }
        for share, row, temperature, other in zip(SHARES, gaps, temperatures, fitted, strict=True)
    ]
    return {"temperature": prefix, "finished_temperature": finished, "shares": shares}


# RewardBench


def section_scores(
    outcomes: Float[np.ndarray, "shares pairs"], subsets: Sequence[str], prompts: Sequence[str]
) -> dict[str, Any] | None:
    """Return RewardBench's scores at every share of the response; see `reward_bench` for their form.

    A section's score is the mean of its subsets' accuracies, weighted as in `SECTIONS`, over the subsets that are
    there; the total is the plain mean of the four sections. Intervals resample the prompts of each subset.

    Args:
        outcomes: 1 if the chosen response wins, 0 if it loses, one half for a tie.
        subsets: of each pair.
        prompts: of each pair.
    """
    names = np.array(subsets)
    sections: list[dict[str, Any]] = []
    drawn: list[np.ndarray] = []
    groups: list[int] = []
    for section, weights in SECTIONS.items():
        present = {name: weight for name, weight in weights.items() if name in subsets}
        if not present:
            continue
        rows = [np.flatnonzero(names == name) for name in present]
        weight = np.array(list(present.values())) / sum(present.values())
        means = np.stack([outcomes[:, row].mean(1) for row in rows], 1) @ weight
        samples = np.stack(
            [_resampled(outcomes[:, row], [prompts[int(n)] for n in row], seed) for seed, row in enumerate(rows)], 2
        )
        drawn.append(samples @ weight)
        groups.append(len({prompts[int(n)] for row in rows for n in row}))
        sections.append(
            {
                "section": section,
                "subsets": list(present),
                "missing": [name for name in weights if name not in present],
                "shares": _scores(means, drawn[-1], groups[-1]),
            }
        )
    if not sections:
        return None
    whole = len(sections) == len(SECTIONS) and not any(section["missing"] for section in sections)
    scores = np.array([[row["score"] for row in section["shares"]] for section in sections])
    return {"sections": sections, "total": _scores(scores.mean(0), np.mean(drawn, 0), sum(groups)) if whole else None}


def _resampled(outcomes: Float[np.ndarray, "shares pairs"], prompts: Sequence[str], seed: int) -> np.ndarray:
    """Return the means of bootstrap samples of prompts, of shape (resamples, shares)."""
    _, group = np.unique(list(prompts), return_inverse=True)
    sums = np.stack([np.bincount(group, row) for row in outcomes], 1)
    times = resamples(len(sums), seed=seed)
    return (times @ sums) / (times @ np.bincount(group))[:, None]


def _scores(means: np.ndarray, samples: np.ndarray, prompts: int) -> list[dict[str, Any]]:
    return [
        {"share": share, "score": float(mean), "interval": interval_of(drawn, prompts, proportion=True)}
        for share, mean, drawn in zip(SHARES, means, samples.T, strict=True)
    ]


# For people


def plot_shares(figures: dict[str, Any], path: Path) -> None:
    """Plot accuracy by share of the response with its interval, and that of the sections, or of the subsets if few."""
    figure = Figure(figsize=(7.2, 4), layout="constrained")
    axes = figure.subplots()
    percent = [100 * share for share in SHARES]
    if sections := figures["sections"]:
        lines = {row["section"]: [one["score"] for one in row["shares"]] for row in sections["sections"]}
    else:
        lines = {name: [one["accuracy"] for one in row["shares"]] for name, row in figures["subsets"].items()}
    if 1 < len(lines) <= 10:
        for name, values in lines.items():
            axes.plot(percent, values, linewidth=1, label=name)
    rows = figures["shares"]
    if rows[0]["interval"] is not None:
        low, high = zip(*(row["interval"] for row in rows), strict=True)
        axes.fill_between(percent, low, high, color="#135", alpha=0.15, linewidth=0)
    label = f"all {figures['pairs']} pairs, 95%"
    axes.plot(percent, [row["accuracy"] for row in rows], color="#135", marker="o", label=label)
    axes.axhline(0.5, color="#999", linestyle=":", linewidth=1)
    axes.set(xlabel="% of the response", ylabel="pair accuracy", xticks=percent)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
