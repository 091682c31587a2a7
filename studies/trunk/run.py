"""Which head on the steered model's own states guides best: layer, rank, learning rate, objective, number of pairs.

    python -m studies.trunk.run --data DIR        (or MIDCOURSE_DATA=DIR)

Sentiment: SmolLM2's own continuations of film review openings, ordered by VADER where it differs by more than GAP.
Every head is trained on states that one pass per text computes for all layers, and judged on the validation openings:
by pair accuracy, and by what it is worth as a guide (`worth`). Two heads, the library's default and a smaller one that
takes smaller steps, then guide on validation openings, and once on the test openings, each at the weight that is NATS
of guidance KL to first order.

Everything is resumable: sampled texts, states and rows are found again in runs/trunk/. Writes results.json and
README.md's tables here. Texts of the data sets are not committed.
"""

import argparse
import gzip
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midcourse import LanguageModel, generate, stream
from midcourse.decode.steps import Generation
from midcourse.errors import MidcourseError
from midcourse.evaluate.gold import load_gold
from midcourse.evaluate.metrics import perplexity, repeated_bigrams
from midcourse.evaluate.results import write_results
from midcourse.files import whole_file, write_text
from midcourse.intervals import mean_interval
from midcourse.prefix_cache import pad
from midcourse.progress import progress
from midcourse.train.accuracy import SHARES, outcome
from midcourse.train.objectives import prefix, sequence
from midcourse.train.prefixes import pair_rewards
from midcourse.trunk_reward import TrunkHead, TrunkReward, normed
from studies.tables import fill, markdown, number, with_interval

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs/trunk"

OPENINGS, OPENING_WORDS, SAMPLES, NEW_TOKENS = 326, 8, 4, 24
TEST_FROM_TRAIN = 160  # openings at the end of the train split's order that are never trained on
GAP = 0.1
LAYERS = (8, 12, 16, 18, 20, 22, 24, 27, 30)
TOP_K = 10
BATCH = 32
NATS = 5.0  # guidance KL at which `worth` is quoted
VALIDATION_PROMPTS = 100


@dataclass(frozen=True)
class Fit:
    """How one head is trained; objective "value" regresses every prefix to its text's gold, less its opening's mean."""

    layer: int = 20
    rank: int = 4
    lr: float = 3e-4
    epochs: int = 2
    objective: str = "prefix"
    pairs: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        return "-".join(f"{value}" for value in asdict(self).values())


DEFAULT, GENTLE = Fit(rank=16, lr=1e-3), Fit()
SEEDS = (0, 1, 2)
SWEEP = list(
    dict.fromkeys(
        [
            *(Fit(rank=fit.rank, lr=fit.lr, seed=seed) for seed in SEEDS for fit in (DEFAULT, GENTLE)),
            *(Fit(objective=objective) for objective in ("sequence", "value")),
            *(Fit(layer=layer) for layer in (12, 16, 24, 30)),
            *(Fit(pairs=pairs) for pairs in (300, 1000)),
            Fit(rank=16),
            Fit(rank=1),
        ]
    )
)


# The texts and their states


def openings(data: Path, part: str) -> list[str]:
    """The first words of reviews, each once, in a fixed random order; test has the end of the train split's too."""
    with gzip.open(data / "texts/imdb_reviews.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    def distinct(split: str) -> list[str]:
        words = (row["text"].split()[:OPENING_WORDS] for row in rows if row["split"] == split)
        found = list(dict.fromkeys(map(" ".join, words)))
        return [found[i] for i in np.random.default_rng(0).permutation(len(found))]

    if part == "train":
        return distinct("train")[:OPENINGS]
    return distinct(part) + (distinct("train")[-TEST_FROM_TRAIN:] if part == "test" else [])


def sampled(data: Path, part: str) -> list[dict[str, Any]]:
    """SAMPLES continuations of each opening by the plain LM, kept in runs/trunk/."""
    path = RUNS / f"continuations-{part}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    asked = [opening for opening in openings(data, part) for _ in range(SAMPLES)]
    done = {json.loads(line)["row"] for line in path.read_text().splitlines()}
    left = [row for row in range(len(asked)) if row not in done]
    settings = {"method": "plain", "top_k": 50, "max_new_tokens": NEW_TOKENS, "template": "raw", "batch_size": 96}
    if left:
        with progress(f"sampling {part}", len(left)) as advance, path.open("a") as file:
            for place, event in stream(model(), [asked[row] for row in left], seed=left, **settings):
                if isinstance(event, Generation):
                    ids = [step.token_id for step in event.steps]
                    row = {"row": left[place], "prompt": event.prompt, "text": event.text, "ids": ids}
                    file.write(json.dumps(row) + "\n")
                    file.flush()
                    advance(1)
    rows = map(json.loads, path.read_text().splitlines())
    return sorted((row for row in rows if row["row"] < len(asked) and row["text"].strip()), key=lambda row: row["row"])


@dataclass(frozen=True)
class Texts:
    """Sampled texts and what the LM computed before each of their tokens.

    Attributes:
        states: normalised, by layer.
        token_ids, lengths, gold, opening: of each text.
        top_ids, top_logprobs: the LM's short list at each position.
    """

    states: dict[int, Tensor]
    token_ids: Tensor
    lengths: Tensor
    gold: Tensor
    opening: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    @cached_property
    def pairs(self) -> Tensor:
        """(chosen, rejected) text numbers, the texts of an opening ordered by gold."""
        by_opening = itertools.groupby(range(len(self.gold)), key=lambda i: int(self.opening[i]))
        found = (pair for _, group in by_opening for pair in itertools.permutations(group, 2))
        return torch.tensor([(a, b) for a, b in found if self.gold[a] - self.gold[b] > GAP])

    @cached_property
    def advantage(self) -> Tensor:
        """Each text's gold less the mean of its opening's texts."""
        same = (self.opening[:, None] == self.opening).float()
        return self.gold - same @ self.gold / same.sum(1)

    @cached_property
    def inside(self) -> Tensor:
        return torch.arange(self.token_ids.shape[1]) < self.lengths[:, None]


@cache
def texts(data: Path, part: str) -> Texts:
    """The sampled texts of a part with their states, from runs/trunk/ where they were computed before."""
    path = RUNS / f"states-{part}-{OPENINGS}.pt"
    if not path.is_file():
        with whole_file(path) as temporary:
            torch.save(computed(sampled(data, part), part), temporary)
    return Texts(**torch.load(path, weights_only=True))


@torch.inference_mode()
def computed(rows: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """The fields of Texts, by one forward of each text."""
    gold, lm = load_gold("vader"), model()
    prompts = [lm.tokenizer(row["prompt"])["input_ids"] for row in rows]
    width = max(len(row["ids"]) for row in rows)
    shape = (len(rows), width)
    states = {layer: torch.zeros(*shape, lm.model.config.hidden_size, dtype=torch.float16) for layer in LAYERS}
    top_ids, top_logprobs = torch.zeros(*shape, TOP_K, dtype=torch.long), torch.full((*shape, TOP_K), -1e9)
    order = sorted(range(len(rows)), key=lambda i: len(prompts[i]) + len(rows[i]["ids"]))
    with progress(f"states {part}", len(rows)) as advance:
        for begin in range(0, len(order), 64):
            batch = order[begin : begin + 64]
            ids, mask = pad([prompts[i] + rows[i]["ids"] for i in batch], lm.model.device)
            output = lm.model.base_model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            for place, i in enumerate(batch):
                first, length = len(prompts[i]) - 1, len(rows[i]["ids"])
                found = [hidden[place, first : first + length] for hidden in output.hidden_states]
                for layer in LAYERS:
                    states[layer][i, :length] = normed(found[layer]).half()
                top = lm.model.lm_head(found[-1]).log_softmax(-1).topk(TOP_K)
                top_ids[i, :length], top_logprobs[i, :length] = top.indices, top.values
            advance(len(batch))
    return {
        "states": states,
        "token_ids": pad([row["ids"] for row in rows], torch.device("cpu"))[0],
        "lengths": torch.tensor([len(row["ids"]) for row in rows]),
        "gold": torch.tensor([gold(row["text"]) for row in rows]),
        "opening": torch.tensor([row["row"] // SAMPLES for row in rows]),
        "top_ids": top_ids,
        "top_logprobs": top_logprobs,
    }


@cache
def model() -> LanguageModel:
    return LanguageModel.load("smollm2")


def embeddings(token_ids: Tensor) -> Tensor:
    return model().model.get_input_embeddings().weight.detach()[token_ids]


# Heads


def trained(fit: Fit, data: Path) -> TrunkHead:
    """A head, trained as the library trains it: AdamW, cosine to 0 after 10 % warm-up."""
    learn = texts(data, "train")
    torch.manual_seed(fit.seed)
    states = learn.states[fit.layer]
    head = TrunkHead(states.shape[-1], fit.rank, torch.device("cpu"), torch.float32)
    everything = len(learn.gold) if fit.objective == "value" else len(learn.pairs)
    pool = torch.randperm(everything)[: fit.pairs]
    steps = fit.epochs * math.ceil(len(pool) / BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=fit.lr, weight_decay=0.05)
    rate = lambda step: min((step + 1) / (0.1 * steps), 1) * 0.5 * (1 + math.cos(math.pi * step / steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(fit.epochs):
        for batch in pool[torch.randperm(len(pool))].split(BATCH):
            optimizer.zero_grad()
            loss(fit, head, learn, batch).backward()
            optimizer.step()
            schedule.step()
    return head.requires_grad_(False)


def loss(fit: Fit, head: TrunkHead, learn: Texts, batch: Tensor) -> Tensor:
    """The mean loss of some pairs, or of some texts for the objective "value"."""
    if fit.objective == "value":
        rewards = head(learn.states[fit.layer][batch].float(), embeddings(learn.token_ids[batch]))
        errors = (rewards - learn.advantage[batch, None]).pow(2) * learn.inside[batch]
        return (errors.sum(1) / learn.lengths[batch]).mean()
    rows, pairs = learn.pairs[batch].unique(return_inverse=True)
    rewards = head(learn.states[fit.layer][rows].float(), embeddings(learn.token_ids[rows]))
    finished = torch.ones(len(rows), dtype=torch.bool)
    objective = {"prefix": prefix, "sequence": sequence}[fit.objective]
    return objective(pair_rewards(rewards, pairs, learn.lengths[rows], finished)).mean()


def judged(fit: Fit, data: Path) -> dict[str, Any]:
    """A trained head's pair accuracy by share of the response, and its worth, on the validation openings."""
    begin = time.monotonic()
    head, held = trained(fit, data), texts(data, "validation")
    rewards = head(held.states[fit.layer].float(), embeddings(held.token_ids))
    worth_mean, interval, spread = worth(head, held, fit.layer)
    return {
        **asdict(fit),
        "train_pairs": min(fit.pairs or len(texts(data, "train").pairs), len(texts(data, "train").pairs)),
        "held_pairs": len(held.pairs),
        "shares": [accuracy(held, rewards, share) for share in SHARES],
        "worth": worth_mean,
        "worth_interval": interval,
        "spread": spread,
        "seconds": time.monotonic() - begin,
    }


def accuracy(held: Texts, rewards: Tensor, share: float) -> dict[str, Any]:
    """Pair accuracy at a share of the response, as midcourse.train.accuracy defines it."""
    chosen, rejected = held.pairs.T
    shorter = torch.minimum(held.lengths[chosen], held.lengths[rejected])
    cut = (share * shorter).ceil().long().clamp(min=1) - 1
    places = (cut, cut) if share < 1 else (held.lengths[chosen] - 1, held.lengths[rejected] - 1)
    margins = rewards[chosen, places[0]] - rewards[rejected, places[1]]
    mean, interval = mean_interval([outcome(float(d)) for d in margins], held.opening[chosen].tolist())
    return {"share": share, "accuracy": mean, "interval": interval}


def worth(head: TrunkHead, held: Texts, layer: int) -> tuple[float, tuple[float, float], float]:
    """(gain in gold per response at NATS of guidance KL, its 95 % interval over openings, the head's spread).

    To first order in the weight w, guidance moves a response's expected gold by w times the sum over its positions of
    E[gold A], and its KL is w^2 / 2 times that of E[A^2], where A is the reward less its mean over the LM's short
    list. So the gain at K nats is sqrt(2 K) sum E[gold A] / sqrt(sum E[A^2]), which the unguided samples estimate; the
    other samples' mean gold is subtracted from a text's to lower the variance. `spread` is sqrt(sum E[A^2]).
    """
    rewards = head(held.states[layer].float()[:, :, None], embeddings(held.top_ids))
    base = held.top_logprobs.softmax(-1)
    relative = rewards - (base * rewards).sum(-1, keepdim=True)
    taken = held.top_ids == held.token_ids[..., None]
    inside = held.inside & taken.any(-1)
    others = (held.opening[:, None] == held.opening).float()
    others.fill_diagonal_(0)
    gold = held.gold - others @ held.gold / others.sum(1).clamp(min=1)
    gains = ((taken * relative).sum(-1) * inside).sum(1) * gold
    spread = ((base * relative.pow(2)).sum(-1) * inside).sum(1).mean().sqrt()
    mean, interval = mean_interval((gains * math.sqrt(2 * NATS) / spread).numpy(), held.opening.tolist())
    return mean, interval, float(spread)


# Guiding


def steered(fit: Fit | None, weight: float, prompts: list[str], data: Path) -> dict[str, Any]:
    """Gold, KL, perplexity and repetition of continuing `prompts` under a head at a weight (None: the LM alone)."""
    gold, reward = load_gold("vader"), guide(fit, data) if fit else None
    begin = time.monotonic()
    found = generate(
        model(),
        prompts,
        reward,
        method="pargs" if reward else "plain",
        reward_weight=weight,
        top_k=TOP_K,
        template="raw",
        max_new_tokens=NEW_TOKENS,
        batch_size=100,
    )
    mean, interval = mean_interval([gold(text.text) for text in found])
    return {
        "guide": asdict(fit) if fit else None,
        "weight": weight,
        "prompts": len(prompts),
        "gold": mean,
        "gold_interval": interval,
        "guidance_kl": fmean(text.guidance_kl for text in found),
        "total_kl": fmean(text.total_kl for text in found),
        "perplexity": perplexity(found),
        "repeated_bigrams": fmean(repeated_bigrams(text.text) for text in found),
        "seconds": time.monotonic() - begin,
    }


def guide(fit: Fit, data: Path) -> TrunkReward:
    """A trunk reward with that head."""
    head = f"trunk:{fit.rank}"
    reward = TrunkReward.create("smollm2", template="raw", layers=fit.layer, tune="head", head=head)
    reward.head.load_state_dict(trained(fit, data).state_dict())
    return reward.eval()


# Results


def table_sweep(root: Path) -> str:
    rows = json.loads((HERE / "results.json").read_text())["sweep"]
    same = lambda row: (row["objective"], row["layer"], row["rank"], row["lr"], row["epochs"], row["train_pairs"])  # noqa: E731
    lines = []
    for key, group in itertools.groupby(sorted(rows, key=same), key=same):
        runs = list(group)
        means = [number(fmean(run["shares"][i]["accuracy"] for run in runs)) for i in range(len(SHARES))]
        # Seeds share their texts, so the interval is that of one seed, the first.
        gain = (
            f"{number(fmean(r['worth'] for r in runs))} ({with_interval(runs[0]['worth'], runs[0]['worth_interval'])})"
        )
        lines.append(
            [key[0], str(key[1]), str(key[2]), f"{key[3]:g}", *map(str, key[4:]), str(len(runs)), *means, gain]
        )
    shares = [f"{share:.0%}" for share in SHARES]
    header = ["objective", "layer", "rank", "lr", "epochs", "pairs", "seeds", *shares]
    return markdown([*header, f"worth at {NATS:g} nats: mean (first seed [95%])"], lines)


def table_guided(root: Path) -> str:
    rows = json.loads((HERE / "results.json").read_text())["guided"]
    lines = []
    for row in rows:
        fit = row["guide"]
        lines.append(
            [
                row["split"],
                f"layer {fit['layer']}, rank {fit['rank']}, lr {fit['lr']:g}" if fit else "none",
                str(row["prompts"]),
                f"{row['weight']:.1f}",
                with_interval(row["gold"], row["gold_interval"]),
                number(row["guidance_kl"], 1),
                number(row["total_kl"], 1),
                number(row["perplexity"], 1),
                number(row["repeated_bigrams"], 3),
            ]
        )
    header = ["split", "head", "prompts", "weight", "gold [95%]", "guidance KL", "total KL", "perplexity"]
    return markdown([*header, "repeated bigrams"], lines)


def publish(results: dict[str, list]) -> None:
    """Write results.json, and the tables made from it."""
    write_results(HERE / "results.json", results)
    readme = HERE / "README.md"
    write_text(readme, fill(readme.read_text(), ROOT, {"sweep": table_sweep, "guided": table_guided})[0])


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from runs/trunk/ where it was made before."""
    path = RUNS / f"{name}.json"
    if not path.is_file():
        found = make()
        write_text(path, json.dumps(found))
        print(name, {key: round(found[key], 3) for key in ("worth", "gold", "guidance_kl") if key in found}, flush=True)
    return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("MIDCOURSE_DATA"), help="folder of the data sets")
    data = parser.parse_args().data
    if not data or not (Path(data) / "texts/imdb_reviews.jsonl.gz").is_file():
        parser.error("name the folder of the data sets with --data DIR or MIDCOURSE_DATA")
    data = Path(data)
    results: dict[str, list] = {"sweep": [], "guided": []}
    with progress("heads", len(SWEEP)) as advance:
        for fit in SWEEP:
            results["sweep"].append(swept(fit, data))
            advance(1)
    publish(results)
    for row in guiding(data):
        results["guided"].append(row)
        publish(results)


def swept(fit: Fit, data: Path) -> dict[str, Any]:
    return kept(f"head-{fit.name}", lambda: judged(fit, data))


def guiding(data: Path) -> Iterator[dict[str, Any]]:
    """Plain decoding, the gentler and the default head, at the weights that are NATS to first order."""

    def guided(split: str, fit: Fit | None, weight: float) -> dict[str, Any]:
        prompts = openings(data, split)[: VALIDATION_PROMPTS if split == "validation" else None]
        name = f"guided-{split}-{fit.name if fit else 'plain'}-{weight:.2f}"
        return {"split": split, **kept(name, lambda: steered(fit, weight, prompts, data))}

    weights = {fit: math.sqrt(2 * NATS) / swept(fit, data)["spread"] for fit in (GENTLE, DEFAULT)}
    for fit, weight in weights.items():
        yield guided("validation", fit, weight)
    yield guided("test", None, 0.0)
    for fit, weight in weights.items():
        yield guided("test", fit, weight)


if __name__ == "__main__":
    try:
        main()
    except MidcourseError as error:
        sys.exit(f"{error}")
