"""A language so small that every text is listed: laws, losses and divergences are exact sums, in fp64.

A prefix is a node of a tree. Prefixes that can go on (inner nodes) are numbered first, shorter ones before longer ones,
the empty prefix being node 0; whole texts follow. Rewards and other tables hold one number per node.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from midcourse.decode.candidates import Candidates, short_list
from midcourse.decode.choice import normalise
from midcourse.decode.guidance import add_reward
from midcourse.train.batches import pair_rewards
from midcourse.train.objectives import LabelledRewards, Loss, NextRewards, PairRewards

Prefix = tuple[int, ...]


@dataclass(frozen=True)
class Language:
    """All texts over a few tokens up to a length, and a random language model of them.

    Attributes:
        vocab: number of tokens.
        length: tokens of a text; with `eos` (a token that ends the text) the most a text can have.
        eos: None where all texts are equally long.
        seed: of the language model.
    """

    seed: int
    vocab: int = 3
    length: int = 4
    eos: int | None = None

    @cached_property
    def prefixes(self) -> list[Prefix]:
        """The prefix of each node."""
        shortest_first = (
            tokens for n in range(self.length + 1) for tokens in itertools.product(range(self.vocab), repeat=n)
        )
        return sorted((tokens for tokens in shortest_first if self.eos not in tokens[:-1]), key=self.is_whole)

    def is_whole(self, prefix: Prefix) -> bool:
        """Whether a prefix is a whole text."""
        return len(prefix) == self.length or (self.eos is not None and prefix[-1:] == (self.eos,))

    @cached_property
    def inner(self) -> int:
        """The number of inner nodes, and the first whole text's node."""
        return [self.is_whole(prefix) for prefix in self.prefixes].index(True)

    @cached_property
    def node(self) -> dict[Prefix, int]:
        """The node of each prefix."""
        return {prefix: number for number, prefix in enumerate(self.prefixes)}

    @cached_property
    def children(self) -> Tensor:
        """The node that each token leads to, of shape (inner, vocab)."""
        return torch.tensor([[self.node[*p, v] for v in range(self.vocab)] for p in self.prefixes[: self.inner]])

    @cached_property
    def depth(self) -> Tensor:
        """The length of each node's prefix."""
        return torch.tensor([len(prefix) for prefix in self.prefixes])

    @cached_property
    def lengths(self) -> Tensor:
        """The length of each text, its EOS included."""
        return self.depth[self.inner :]

    @cached_property
    def paths(self) -> Tensor:
        """The nodes through which each text goes, of shape (texts, length); past a text's end its last one again."""
        texts = self.prefixes[self.inner :]
        return torch.tensor([[self.node[text[: i + 1]] for i in range(self.length)] for text in texts])

    @cached_property
    def pairs(self) -> Tensor:
        """Every ordered pair of texts."""
        return torch.cartesian_prod(torch.arange(len(self.lengths)), torch.arange(len(self.lengths)))

    @cached_property
    def logprobs(self) -> Tensor:
        """log pi(v | prefix) of the language model, of shape (inner, vocab)."""
        return normals("language", self.seed, self.inner * self.vocab).view(self.inner, -1).log_softmax(1)


def normals(what: str, seed: int, number: int) -> Tensor:
    """Standard normal numbers of their own for each use and seed."""
    rng = np.random.default_rng([seed, *what.encode()])
    return torch.from_numpy(rng.standard_normal(number))


# ---- rewards ----


def random_text_rewards(language: Language, seed: int, scale: float = 2.0) -> Tensor:
    """R of every whole text."""
    return scale * normals("texts", seed, len(language.lengths))


def random_prefix_rewards(language: Language, text_rewards: Tensor, seed: int, scale: float = 2.0) -> Tensor:
    """A reward for every node: R on whole texts, anything on proper prefixes."""
    return torch.cat([scale * normals("prefixes", seed, language.inner), text_rewards])


def expectation(language: Language, logprobs: Tensor, of_texts: Tensor) -> Tensor:
    """E[f(text) | prefix] under a tokenwise policy, for every node."""
    found = torch.cat([torch.zeros(language.inner, dtype=torch.float64), of_texts])
    for number in reversed(range(language.inner)):  # a prefix is numbered before those that extend it
        found[number] = logprobs[number].exp() @ found[language.children[number]]
    return found


def mean_value(language: Language, text_rewards: Tensor) -> Tensor:
    """E_pi[R | prefix]."""
    return expectation(language, language.logprobs, text_rewards)


def soft_value(language: Language, text_rewards: Tensor, weight: float) -> Tensor:
    """(1 / w) log E_pi[exp(w R) | prefix]."""
    return expectation(language, language.logprobs, (weight * text_rewards).exp()).log() / weight


def expectile_value(language: Language, text_rewards: Tensor, expectile: float) -> Tensor:
    """The expectile of R given the prefix: the mean in which R above it weighs tau and R below it 1 - tau."""
    goes_through = torch.zeros(len(language.prefixes), len(text_rewards), dtype=torch.float64)
    goes_through[0] = 1.0
    goes_through.scatter_(0, language.paths.T, 1.0)
    mass = goes_through * law(language, language.logprobs).exp()
    found = mean_value(language, text_rewards)
    for _ in text_rewards:  # Newton's method on a piecewise linear equation: exact once it knows who lies above
        weights = mass * torch.where(text_rewards < found[:, None], 1 - expectile, expectile)
        found = weights @ text_rewards / weights.sum(1)
    return found


# ---- laws ----


def guided(language: Language, rewards: Tensor, weight: float) -> Tensor:
    """The tokenwise policy at every inner node, of shape (inner, vocab), over all tokens at temperature 1."""
    return normalise(add_reward(language.logprobs, rewards[language.children], weight), 1.0)


def prefix_logprobs(language: Language, logprobs: Tensor) -> Tensor:
    """log q(prefix) of every node under a tokenwise policy."""
    found = torch.zeros(len(language.prefixes), dtype=torch.float64)
    for number, children in enumerate(language.children):
        found[children] = found[number] + logprobs[number]
    return found


def law(language: Language, logprobs: Tensor) -> Tensor:
    """log q(text) of every whole text under a tokenwise policy."""
    return prefix_logprobs(language, logprobs)[language.inner :]


def tilted(base: Tensor, rewards: Tensor, weight: float) -> Tensor:
    """log of pi exp(w r) / Z over a whole list of texts or prefixes: the RLHF policy over them."""
    return (base + weight * rewards).log_softmax(0)


def greedy_text(language: Language, logprobs: Tensor) -> Prefix:
    """The text of the likeliest tokens."""
    number = 0
    while number < language.inner:
        number = int(language.children[number, logprobs[number].argmax()])
    return language.prefixes[number]


def total_variation(first: Tensor, second: Tensor) -> float:
    """Half the L1 distance of two laws, given as logs."""
    return float((first.exp() - second.exp()).abs().sum() / 2)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of two laws, given as logs."""
    possible = first > float("-inf")
    return (first.exp() * (first - second))[possible].sum()


def over_vocabulary(language: Language, candidates: Candidates, logprobs: Tensor) -> Tensor:
    """A policy over each inner node's candidates as one over all tokens, others being impossible."""
    nothing = torch.full((language.inner, language.vocab), float("-inf"), dtype=torch.float64)
    return nothing.scatter_reduce(1, candidates.token_ids, logprobs, "amax")


def candidates_of(language: Language, top_k: int) -> Candidates:
    """The short list of every inner node; EOS, where there is one, is always offered."""
    always = None if language.eos is None else torch.tensor([language.eos])
    return short_list(language.logprobs, top_k, always)


# ---- learning ----


def random_preferences(language: Language, seed: int) -> Tensor:
    """Any distribution over ordered pairs (chosen, rejected): one probability per row of `pairs`."""
    return normals("preferences", seed, len(language.pairs)).softmax(0)


def bradley_terry_preferences(language: Language, text_rewards: Tensor, text_logprobs: Tensor) -> Tensor:
    """Two texts drawn from one law, the preference between them by Bradley-Terry on R."""
    mass = text_logprobs.exp()
    first, second = language.pairs.T
    # (a, b) and (b, a) are drawn equally often, and a may win in both.
    return 2 * mass[first] * mass[second] * torch.sigmoid(text_rewards[first] - text_rewards[second])


def rewards_of_pairs(language: Language, rewards: Tensor) -> PairRewards:
    """The rewards of every ordered pair of texts as the objectives take them; all texts are finished."""
    finished = torch.ones(len(language.lengths), dtype=torch.bool)
    return pair_rewards(rewards[language.paths], language.pairs, language.lengths, finished)


def expected_loss(language: Language, objective: Loss, rewards: Tensor, preferences: Tensor) -> Tensor:
    """The population loss."""
    return preferences @ objective(rewards_of_pairs(language, rewards))


def labelled_texts(language: Language, rewards: Tensor, text_rewards: Tensor) -> LabelledRewards:
    """The rewards of every text's prefixes as the objectives of labelled responses take them."""
    mean_length = float(law(language, language.logprobs).exp() @ language.lengths.double())
    return LabelledRewards(rewards[language.paths], language.lengths, text_rewards, mean_length)


def expected_label_loss(language: Language, loss: Loss, rewards: Tensor, text_rewards: Tensor) -> Tensor:
    """The population loss on texts that the language model writes, labelled by R."""
    return law(language, language.logprobs).exp() @ loss(labelled_texts(language, rewards, text_rewards))


def next_rewards(language: Language, rewards: Tensor) -> NextRewards:
    """The rewards of every text's prefixes, and of the best token where each of their tokens stands."""
    best = rewards.clone()
    for children in language.children:
        best = best.index_copy(0, children, rewards[children].amax().expand(len(children)))
    return NextRewards(rewards[language.paths], best[language.paths], language.lengths)


def max_value(language: Language, text_rewards: Tensor) -> Tensor:
    """The best R that each prefix can end with."""
    found = torch.cat([torch.zeros(language.inner, dtype=torch.float64), text_rewards])
    for number in reversed(range(language.inner)):
        found[number] = found[language.children[number]].max()
    return found


def token_logprobs(language: Language, text_logprobs: Tensor) -> Tensor:
    """log q(last token | prefix before it) at every node but the root, of a law over whole texts."""
    mass = torch.cat([torch.zeros(language.inner, dtype=torch.float64), text_logprobs.exp()])
    for number in reversed(range(language.inner)):
        mass[number] = mass[language.children[number]].sum()
    found = torch.zeros_like(mass)
    for number, children in enumerate(language.children):
        found[children] = (mass[children] / mass[number]).log()
    return found


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a smooth function is least, found by L-BFGS."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(point)
        value.backward()
        return value

    optimizer.step(closure)
    return point.detach()


def fit(language: Language, objective: Loss, preferences: Tensor, seed: int) -> Tensor:
    """The rewards at which the population loss is least, found by L-BFGS from a random start."""
    start = normals("start", seed, len(language.prefixes))
    # Rare prefixes have little curvature: in these units all have about as much.
    unit = frequencies(language, preferences).rsqrt()
    scaled = (start / unit).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=500, tolerance_grad=1e-11, tolerance_change=0, history_size=50, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = expected_loss(language, objective, unit * scaled, preferences)
        value.backward()
        return value

    optimizer.step(loss)
    return (unit * scaled).detach()


def frequencies(language: Language, preferences: Tensor) -> Tensor:
    """How often each prefix is compared, about; 1 for the empty one, whose reward no loss reads."""
    texts = torch.zeros(len(language.lengths), dtype=torch.float64)
    texts.index_add_(0, language.pairs.flatten(), preferences.repeat_interleave(2))
    found = torch.zeros(len(language.prefixes), dtype=torch.float64)
    found.index_add_(0, language.paths.flatten(), texts.repeat_interleave(language.length))
    found[0] = 1.0
    return found
