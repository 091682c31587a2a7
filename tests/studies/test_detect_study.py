"""The study of detection: no source is on two sides, and its figures are what they say."""

import os
from pathlib import Path

import numpy as np
import pytest

from midcourse.detect.humans import Scored
from midcourse.detect.texts import LabelledText
from studies.detect import heads, run, shipped
from studies.detect.features import Features
from studies.detect.plot import plot

DATA = os.environ.get("MIDCOURSE_DATA")


def scored(count: int, group: str, seed: int) -> Scored:
    scores = np.random.default_rng(seed).normal(size=count)
    return Scored(scores, np.full(count, 120), np.full(count, group), np.ones(count, dtype=bool))


def together(*parts: Scored) -> Scored:
    return Scored(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("scores", "words", "groups", "whole"))
    )


def test_draws_of_exchangeable_texts_hold_the_rate():
    own = together(scored(400, "news", 0), scored(400, "essays", 1))
    sources = np.arange(800).astype(str)
    found = run._draws(own, sources, ["essays", "news"], 0.05, "confidence", known=True)
    for row in found:
        assert row["mean_rate"] < 0.05
        assert row["draws_above"] < 0.05
        assert row["without_threshold"] == 0
    few = run._draws(own, sources, ["news"], 0.001, "confidence", known=True)
    assert few[0]["without_threshold"] == 1 and few[0]["mean_rate"] == 0


def test_folds_keep_sources_together():
    texts = [LabelledText(f"text {n}", "human", f"source {n % 10}") for n in range(40)]
    folds = run.folds_of(texts)
    assert all(len(set(folds[n::10])) == 1 for n in range(10))
    assert len(set(folds)) > 1


@pytest.fixture
def telling(monkeypatch):
    """Features in which machines' texts have the higher first state, of two domains far apart in the second."""

    def features_of(text: str) -> Features:
        random = np.random.default_rng(len(text) + sum(map(ord, text)))
        state = random.normal(size=(31, 4))
        state[:, 0] += 3 * ("machine" in text)
        state[:, 1] += 20 * ("news" in text)
        figures = np.abs(random.normal(size=(60, 4))) + 1
        return Features(state, state, state, state[19] + random.normal(size=(9, 4)), figures)

    monkeypatch.setattr(heads, "features_of", features_of)
    return [
        LabelledText(f"{label} {domain} {n}", label, f"{domain} {n}", domain, label)
        for label in ("human", "machine")
        for domain in ("news", "essays", "letters")
        for n in range(40)
    ]


@pytest.mark.parametrize("name", [heads.OURS, "last state", f"attention, layer {heads.TOKENS_LAYER}"])
def test_detectors_tell_a_domain_that_they_did_not_see(telling, name):
    asked = [text for text in telling if text.domain == "news"]
    scores = heads.DETECTORS[name]([text for text in telling if text.domain != "news"], asked)
    [row] = run.cells(asked, scores, name, "news")
    assert row["auroc"] > 0.9
    assert (row["humans"], row["machines"]) == (40, 40)


@pytest.mark.skipif(not DATA, reason="the data sets are not here; name their folder in MIDCOURSE_DATA")
def test_no_source_is_both_learned_from_and_calibrated_on(monkeypatch):
    monkeypatch.setattr(shipped, "distinct", lambda texts: list(texts))
    data = Path(DATA)
    learned = shipped.learned_from(data)
    calibrated = shipped.calibrated_on(data, learned)
    assert not {text.group for text in learned} & {text.group for text in calibrated}
    assert not {text.text for text in learned} & {text.text for text in calibrated}
    humans = [text for text in calibrated if text.label == "human"]
    assert len({text.group for text in humans}) == len(humans)


def test_the_study_is_drawn_from_its_results(tmp_path):
    plot(run.HERE, tmp_path / "detect.png")
    assert (tmp_path / "detect.png").read_bytes().startswith(b"\x89PNG")
