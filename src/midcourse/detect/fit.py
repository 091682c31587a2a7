"""A detector in minutes: a linear head on what a frozen language model computes of labelled texts anyway.

The head is Fisher's linear discriminant on each text's mean features (see `midcourse.rewards.pooled`):

    w_n = (C + (k / n) I)^-1 d, for texts of n tokens that count

d is the mean over domains of the machine texts' mean less the human texts' mean, both of the domain, and C how features
scatter among texts of one kind and domain, on average over these; features are in units of that scatter. So a domain
counts once, whatever the number of its texts, and what tells domains apart plays no part. Domains with texts of one
kind only, say with human texts that nobody imitated, still say how texts scatter.

Detectors meet texts of kinds that they were not trained on. So the ridge k is high, which is best for such texts
(`studies/detect`), and how well texts are told apart in each domain without it is measured along the way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from midcourse.detect.detector import DetectorError
from midcourse.detect.disguise import plain
from midcourse.detect.texts import LabelledText, check_labels
from midcourse.evaluate.separation import auroc
from midcourse.lm.language_model import LanguageModel
from midcourse.lm.weights import loaded_fingerprint
from midcourse.progress import progress
from midcourse.rewards.info import RewardInfo
from midcourse.rewards.pooled import Head, PooledReward, Reader

PART = 64
RIDGE = 400.0  # tokens
LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Examples:
    """Texts to learn from, as features.

    Attributes:
        features: mean features of each text.
        tokens: how many tokens of it count.
        machine: whether a machine wrote it.
        domains: what kind of text it is.
    """

    features: Float[np.ndarray, "texts features"]
    tokens: Int[np.ndarray, " texts"]
    machine: Bool[np.ndarray, " texts"]
    domains: np.ndarray

    def of(self, mine: Bool[np.ndarray, " texts"]) -> "Examples":
        """Return those texts."""
        return Examples(self.features[mine], self.tokens[mine], self.machine[mine], self.domains[mine])

    @property
    def both(self) -> list[str]:
        """Return the domains with texts of both kinds."""
        return [str(d) for d in np.unique(self.domains) if len(set(self.machine[self.domains == d])) == 2]


class Moments(NamedTuple):
    """What Fisher's discriminant needs to know of texts.

    Attributes:
        middle: between the human and the machine texts of a domain, on average over domains.
        difference: of the two, d of the module, in units of `scale`.
        correlation: C of the module, in these units.
        scale: how far a feature scatters among texts of one kind and domain.
    """

    middle: Float[np.ndarray, " features"]
    difference: Float[np.ndarray, " features"]
    correlation: Float[np.ndarray, "features features"]
    scale: Float[np.ndarray, " features"]


def fit(
    lm: LanguageModel,
    texts: Sequence[LabelledText],
    *,
    layers: Sequence[int] | None = None,
    surprise: bool = True,
    ridge: float = RIDGE,
) -> tuple[PooledReward, dict[str, Any]]:
    """Return a reward of texts that tells machines' from people's, and how it was chosen.

    Args:
        texts: labelled ones; mixed ones are left out. Best are several domains, and in each texts of both kinds.
        layers: behind which of the model's layers states are read; by default behind four fifths of them.
        surprise: whether tokens count by their surprise.
        ridge: k of the module, over 0, in tokens.

    Returns:
        The reward, and {"ridge", "humans", "machines", "domains", "left_out": {domain: AUROC without it}}; the last
        is empty with fewer than two domains of both kinds.

    Raises:
        DetectorError: no domain has texts of both kinds, a layer that the model does not have, or a ridge that is
            none.
    """
    if not 0 < ridge < math.inf:
        raise DetectorError(f"ridge {ridge:g} is not a number over 0; use {RIDGE:g}, say")
    count = lm.model.config.get_text_config().num_hidden_layers
    layers = tuple(layers) if layers is not None else (round(count * 0.8),)
    if not layers or not all(1 <= layer <= count for layer in layers):
        raise DetectorError(f"layers {list(layers)} are none of {lm.name}'s; name some of 1 to {count}")
    reader = Reader(lm, layers, surprise)
    return fit_examples(reader, examples_of(reader, texts), ridge)


def fit_examples(reader: Reader, examples: Examples, ridge: float = RIDGE) -> tuple[PooledReward, dict[str, Any]]:
    """Return what `fit` does, of texts that were read before."""
    metrics = {
        "ridge": ridge,
        "humans": int((~examples.machine).sum()),
        "machines": int(examples.machine.sum()),
        "domains": sorted(set(examples.domains.tolist())),
        "left_out": left_out(examples, ridge),
    }
    return PooledReward(reader, _info(reader, metrics), head_of(moments_of(examples), ridge)), metrics


def examples_of(reader: Reader, texts: Sequence[LabelledText]) -> Examples:
    """Read labelled texts; those without a token that counts are left out."""
    texts = [text for text in texts if text.label in ("human", "machine")]
    check_labels(texts)
    features, tokens = np.zeros((len(texts), reader.width)), np.zeros(len(texts), dtype=int)
    with progress("reading", len(texts)) as advance:
        for begin in range(0, len(texts), PART):
            part = [plain(text.text).text for text in texts[begin : begin + PART]]
            features[begin : begin + PART], tokens[begin : begin + PART], _ = reader.means(part, advance)
    machine = np.array([text.label == "machine" for text in texts], dtype=bool)
    domains = np.array([text.domain for text in texts], dtype=str)
    found = Examples(features, tokens, machine, domains).of(tokens > 0)
    for kind, there in (("human", ~found.machine), ("machine", found.machine)):
        if not there.any():
            raise DetectorError(f"there is no {kind} text to learn from; give texts with label {kind}")
    return found


def moments_of(examples: Examples) -> Moments:
    """Return what the texts say; `head_of` makes a head of it.

    Raises:
        DetectorError: no domain has texts of both kinds, or no kind of text of a domain has two.
    """
    if not examples.both:
        raise DetectorError(
            "no domain has texts of both people and machines; give both kinds of one domain, or none a domain"
        )
    width = examples.features.shape[1]
    means, covariance, cells = {}, np.zeros((width, width)), 0
    for domain in np.unique(examples.domains):
        for machine in (False, True):
            mine = examples.features[(examples.domains == domain) & (examples.machine == machine)]
            if len(mine):
                means[domain, machine] = mine.mean(0)
            if len(mine) > 1:
                covariance += np.cov(mine.T, bias=True)
                cells += 1
    if not cells:
        raise DetectorError(
            "there is one text of each kind and domain, which does not say how texts scatter; give more"
        )
    covariance /= cells
    pairs = np.array([(means[domain, False], means[domain, True]) for domain in examples.both])
    scale = np.sqrt(np.diag(covariance)) + LEAST_SPREAD
    difference = (pairs[:, 1] - pairs[:, 0]).mean(0) / scale
    return Moments(pairs.mean((0, 1)), difference, covariance / np.outer(scale, scale), scale)


def head_of(moments: Moments, ridge: float) -> Head:
    """Return Fisher's discriminant, see the module; a text in the middle between people and machines is worth 0."""
    scatter, directions = np.linalg.eigh(moments.correlation)
    along = directions.T @ moments.difference
    return Head(moments.middle, directions.T / moments.scale, np.maximum(scatter, 0), along, ridge)


def left_out(examples: Examples, ridge: float = RIDGE) -> dict[str, float]:
    """Return the AUROC on each domain's texts of a head fitted without them; nothing with fewer than two domains."""
    found: dict[str, float] = {}
    for domain in examples.both if len(examples.both) > 1 else ():
        mine = examples.of(examples.domains == domain)
        head = head_of(moments_of(examples.of(examples.domains != domain)), ridge)
        scores = head(torch.from_numpy(mine.features), torch.from_numpy(mine.tokens)).numpy()
        found[domain] = auroc(scores[~mine.machine], scores[mine.machine])
    return found


def _info(reader: Reader, metrics: dict[str, Any]) -> RewardInfo:
    lm = reader.lm
    reading = {"layers": list(reader.layers), "surprise": reader.surprise, "burn_in": reader.burn_in}
    return RewardInfo(
        backbone=lm.name,
        backbone_fingerprint=loaded_fingerprint(lm.model) or "",
        layers=max(reader.layers, default=0),
        tune="head",
        template="raw",
        objective="discriminant",
        objective_settings={"reading": reading, "ridge": metrics["ridge"]},
        eos_token_id=min(lm.eos_token_ids),
        eos_token_ids=tuple(lm.eos_token_ids),
        tokenizer=lm.tokens,
        head=PooledReward.KIND,
        backbone_layers=lm.model.config.get_text_config().num_hidden_layers,
        metrics=metrics,
    )
