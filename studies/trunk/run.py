"""Which head on the steered model's own states learns and guides best: form, layer, rank, steps, number of pairs.

    python -m studies.trunk.run --data DIR [SET ...]        (or MIDCOURSE_DATA=DIR)

Three sets: sentiment (SmolLM2's own continuations of film review openings, ordered by VADER), ParaDetox, and HH's
helpful pairs. Every head is trained on states that one pass per text computes for all layers, with three seeds, and
judged on validation prompts: by pair accuracy, and on sentiment by what it is worth as a guide (`worth`). The library's
head, and the one of f alone, then guide test openings that neither saw, at the weights that reach 2, 5 and 10 nats of
guidance KL on validation openings.

Everything is resumable: sampled texts, states and rows are found again in runs/. Writes results.json and README.md's
tables here. Texts of the data sets are not committed.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from midcourse import LanguageModel
from midcourse.data.comparisons import Comparison, split_by_prompt
from midcourse.data.encoded import EncodedRow, PairSet, encode, encode_rollouts
from midcourse.evaluate.accuracy import pair_accuracy
from midcourse.evaluate.intervals import mean_interval
from midcourse.evaluate.provenance import write_results
from midcourse.files import whole_file
from midcourse.lm.prefix_cache import pad
from midcourse.progress import progress
from midcourse.rewards.gold import load_gold
from midcourse.rewards.trunk import TrunkReward
from midcourse.train.batches import pair_rewards
from midcourse.train.objectives import prefix, sequence
from studies import sentiment
from studies.data import PARADETOX, arguments, command, comparisons, fitting, kept, kept_as
from studies.steering import steered, write
from studies.tables import fill_readme
from studies.trunk.forms import EVERYWHERE, FORMS, GUIDES, NATS, SETS, Fit
from studies.trunk.heads import Head, side_by_side
from studies.trunk.tables import TABLES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs/trunk"

MOST_PAIRS = {"paradetox": 2400, "hh_helpful": 900}  # of which a fifth is for validation
MAX_TOKENS = {"sentiment": 96, "paradetox": 64, "hh_helpful": 128}
LAYERS = (8, 12, 16, 20, 24, 30)
TOP_K = 10
BATCH = 32
SEEDS = (0, 1, 2)
VALIDATION_PROMPTS = 60


# The texts and their states


def examples(name: str, data: Path) -> tuple[list[Comparison], list[Comparison]]:
    """(training, validation) comparisons, no prompt in both."""
    if name == "sentiment":
        both = [sentiment.comparisons(sentiment.rollouts(data, part)) for part in ("train", "validation")]
        return both[0], both[1]
    rows = fitting(reader(), comparisons(name, data)[0], MAX_TOKENS[name])[: MOST_PAIRS[name]]
    return split_by_prompt(rows, 0.2, seed=0)


@cache
def reader() -> TrunkReward:
    """A trunk reward, for its tokens and templates."""
    reward = TrunkReward.create("smollm2", template="raw", layers=1, tune="head", head="trunk:1")
    assert isinstance(reward, TrunkReward)
    return reward


@cache
def model() -> LanguageModel:
    return LanguageModel.load("smollm2")


@cache
def embeddings() -> Tensor:
    """e(v), normalised."""
    return side_by_side([model().model.get_input_embeddings().weight.detach()])


@dataclass(frozen=True)
class Texts:
    """Responses, and what the LM computed before each of their tokens, in a file of one tensor per layer."""

    rows: list[EncodedRow]
    path: Path

    @cached_property
    def offsets(self) -> list[int]:
        return [0, *itertools.accumulate(len(row.response) for row in self.rows)]

    @cached_property
    def layers(self) -> dict[int, Tensor]:
        with safe_open(self.path, framework="pt") as file:
            return {layer: file.get_tensor(str(layer)) for layer in LAYERS}

    def layer(self, layer: int, rows: Sequence[int]) -> Tensor:
        """One layer's states before each response token of some rows, padded: (rows, tokens, hidden)."""
        found = [self.layers[layer][self.offsets[i] : self.offsets[i + 1]] for i in rows]
        return pad_sequence(found, batch_first=True).float()

    def states(self, layers: Sequence[int], rows: Sequence[int]) -> Tensor:
        """What a head reads: the layers' normalised states side by side."""
        return side_by_side([self.layer(layer, rows) for layer in layers])

    def token_ids(self, rows: Sequence[int]) -> Tensor:
        return pad([self.rows[i].response for i in rows], torch.device("cpu"))[0]

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(row.response) for row in self.rows])


@cache
def texts(name: str, part: str, data: Path) -> tuple[PairSet, Texts]:
    """The encoded pairs of a part, and their texts."""
    pairs = encode(reader(), examples(name, data)[part == "validation"], MAX_TOKENS[name])
    return pairs, with_states(pairs.rows, f"{name} {part}")


def with_states(rows: list[EncodedRow], title: str) -> Texts:
    """The rows with their states, which are computed once and kept in runs/trunk/."""
    path = RUNS / f"{kept_as(title).replace(' ', '-')}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        with whole_file(path) as temporary:
            save_file(computed(rows, title), temporary)
    return Texts(rows, path)


@torch.inference_mode()
def computed(rows: Sequence[EncodedRow], title: str) -> dict[str, Tensor]:
    """The states of every layer before each response token, one forward of each row."""
    found: list[dict[int, Tensor]] = [{} for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt) + len(rows[i].response))
    with progress(f"states, {title}", len(rows)) as advance:
        for batch in batched(order, BATCH):
            ids, mask = pad([rows[i].prompt + rows[i].response for i in batch], model().model.device)
            output = model().model.base_model(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            for place, i in enumerate(batch):
                first, length = len(rows[i].prompt) - 1, len(rows[i].response)
                for layer in LAYERS:
                    found[i][layer] = output.hidden_states[layer][place, first : first + length].half()
            advance(len(batch))
    return {str(layer): torch.cat([states[layer] for states in found]) for layer in LAYERS}


# Heads


def trained(fit: Fit, pairs: PairSet, learn: Texts) -> Head:
    """A head, trained as the library trains it: AdamW, cosine to 0 after 10 % warm-up, gradients cut at norm 1."""
    torch.manual_seed(fit.seed)
    head = Head(embeddings().shape[1], len(fit.layers), fit.rank, fit.parts, fit.mlp, fit.attention)
    pool = torch.randperm(len(pairs.pairs))[: fit.pairs]
    steps = fit.epochs * math.ceil(len(pool) / BATCH)
    optimizer = torch.optim.AdamW(head.parameters(), lr=fit.lr, weight_decay=0.05)
    rate = lambda step: min((step + 1) / (0.1 * steps), 1) * 0.5 * (1 + math.cos(math.pi * step / steps))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(fit.epochs):
        for batch in pool[torch.randperm(len(pool))].split(BATCH):
            optimizer.zero_grad()
            loss(fit, head, learn, torch.tensor([pairs.pairs[i] for i in batch])).backward()
            clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return head.requires_grad_(False)


def loss(fit: Fit, head: Head, learn: Texts, pairs: Tensor) -> Tensor:
    """The mean loss of some pairs of row numbers."""
    rows, items = pairs.unique(return_inverse=True)
    rewards = head.rewards(learn.states(fit.layers, rows.tolist()), embeddings()[learn.token_ids(rows.tolist())])
    finished = torch.tensor([learn.rows[i].finished for i in rows])
    objective = {"prefix": prefix, "sequence": sequence}[fit.objective]
    return objective(pair_rewards(rewards, items, learn.lengths[rows], finished)).mean()


def scored(head: Head, fit: Fit, held: Texts) -> list[Tensor]:
    """The rewards of every prefix of every row."""
    found: list[Tensor] = []
    for batch in batched(range(len(held.rows)), 64):
        rewards = head.rewards(held.states(fit.layers, batch), embeddings()[held.token_ids(batch)])
        found += [row[: len(held.rows[i].response)] for i, row in zip(batch, rewards, strict=True)]
    return found


def judged(name: str, fit: Fit, data: Path) -> dict[str, Any]:
    """A trained head's pair accuracy by share of the response on validation prompts; on sentiment its worth too."""
    learn, (pairs, held) = texts(name, "train", data), texts(name, "validation", data)
    begin = time.monotonic()
    head = trained(fit, *learn)
    seconds = time.monotonic() - begin
    accuracy = pair_accuracy(pairs, scored(head, fit, held))
    row = {
        "set": name,
        **asdict(fit),
        "train_pairs": min(fit.pairs or len(learn[0].pairs), len(learn[0].pairs)),
        "held_pairs": accuracy["pairs"],
        "shares": accuracy["shares"],
        "parameters": sum(p.numel() for p in head.parameters()),
        "seconds": seconds,
    }
    if name == "sentiment":
        row["worth"], row["worth_interval"] = worth(head, fit, data)
    return row


# What a head is worth as a guide


@dataclass(frozen=True)
class Samples:
    """Unguided validation continuations: the LM's short list before every token, their gold and opening."""

    texts: Texts
    top_ids: Tensor
    top_logprobs: Tensor
    gold: Tensor
    opening: Tensor


@cache
def samples(data: Path) -> Samples:
    found = encode_rollouts(reader(), sentiment.rollouts(data, "validation"), MAX_TOKENS["sentiment"])
    held = with_states(found.rows, "sentiment samples")
    # Behind the last layer the states are those that the vocabulary's matrix reads.
    with torch.inference_mode():
        final = held.layer(max(LAYERS), range(len(held.rows)))
        top = model().model.lm_head(final).log_softmax(-1).topk(TOP_K)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(found.prompts))}
    of_row = {row: i for i, (row,) in enumerate(found.items)}  # equal samples of an opening share their row
    items = [of_row[row] for row in range(len(held.rows))]
    return Samples(
        held,
        top.indices.clone(),
        top.values.clone(),
        torch.tensor([found.labels[i] for i in items]),
        torch.tensor([numbers[found.prompts[i]] for i in items]),
    )


@torch.no_grad()
def worth(head: Head, fit: Fit, data: Path) -> tuple[float, tuple[float, float]]:
    """(gain in gold per response at NATS of guidance KL, its 95 % interval over openings).

    To first order in the weight w, guidance moves a response's expected gold by w times the sum over its positions of
    E[gold A], and its KL is w^2 / 2 times that of E[A^2], where A is the reward less its mean over the LM's short
    list. So the gain at K nats is sqrt(2 K) sum E[gold A] / sqrt(sum E[A^2]), which the unguided samples estimate; the
    other samples' mean gold is subtracted from a text's to lower the variance.
    """
    held = samples(data)
    everything = range(len(held.texts.rows))
    rewards = head.candidates(held.texts.states(fit.layers, everything), embeddings()[held.top_ids])
    base = held.top_logprobs.softmax(-1)
    relative = rewards - (base * rewards).sum(-1, keepdim=True)
    token_ids = held.texts.token_ids(everything)
    taken = held.top_ids == token_ids[..., None]
    inside = (torch.arange(token_ids.shape[1]) < held.texts.lengths[:, None]) & taken.any(-1)
    others = (held.opening[:, None] == held.opening).float()
    others.fill_diagonal_(0)
    gold = held.gold - others @ held.gold / others.sum(1).clamp(min=1)
    gains = ((taken * relative).sum(-1) * inside).sum(1) * gold
    spread = ((base * relative.pow(2)).sum(-1) * inside).sum(1).mean().sqrt()
    return mean_interval((gains * math.sqrt(2 * NATS) / spread).numpy(), held.opening.tolist())


# Guiding


def guided(fit: Fit, data: Path) -> dict[str, Any]:
    """Gold at 2, 5 and 10 nats of guidance KL on test openings."""
    test, validation = sentiment.openings(data, "test"), sentiment.openings(data, "validation")[:VALIDATION_PROMPTS]
    plain = write(model(), test, None, 0.0, template="raw")
    found = steered(model(), guide(fit, data), load_gold("vader"), validation, test, plain)
    return {"guide": asdict(fit), **found}


def guide(fit: Fit, data: Path) -> TrunkReward:
    """A trunk reward with that head; one of f alone has a g of zero."""
    (layer,) = fit.layers
    reward = TrunkReward.create("smollm2", template="raw", layers=layer, tune="head", head=f"trunk:{fit.rank}")
    head = trained(fit, *texts("sentiment", "train", data))
    for name, tensor in reward.head.named_parameters():
        learned = head.get_parameter(name).data
        tensor.data = torch.cat([learned, torch.zeros_like(learned)]) if fit.parts == "f" else learned
    return reward.requires_grad_(False).eval()


def batched(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))


# Results


def publish(results: dict[str, Any]) -> None:
    """Write results.json, and the tables made from it."""
    write_results(HERE / "results.json", results)
    fill_readme(HERE, check=False, tables=TABLES)


def once(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from runs/trunk/ where it was made before."""
    return kept(RUNS / f"{kept_as(name)}.json", make)


def begun(names: Sequence[str]) -> dict[str, Any]:
    """Return the results that these sets are added to: what is there of the other sets."""
    path = HERE / "results.json"
    found = json.loads(path.read_text()) if path.is_file() else {"paradetox": PARADETOX, "sweep": [], "guided": []}
    return {
        "paradetox": PARADETOX if "paradetox" in names else found["paradetox"],
        "sweep": [row for row in found["sweep"] if row["set"] not in names],
        "guided": [] if "sentiment" in names else found["guided"],
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "sets", nargs="*", choices=[*SETS, []], metavar="SET", help=f"{', '.join(SETS)}; all by default"
    )
    flags = parser.parse_args()
    data, names = flags.data, flags.sets or SETS
    results = begun(names)
    for name in names:
        forms = FORMS if name == "sentiment" else EVERYWHERE
        with progress(f"heads, {name}", len(forms) * len(SEEDS)) as advance:
            for form in forms:
                for fit in (replace(form, seed=seed) for seed in SEEDS):
                    results["sweep"].append(once(f"{name}-{fit.name}", partial(judged, name, fit, data)))
                    advance(1)
        publish(results)
    for fit in GUIDES if "sentiment" in names else ():
        results["guided"].append(once(f"guided-{fit.name}", partial(guided, fit, data)))
        publish(results)


if __name__ == "__main__":
    command(main)
