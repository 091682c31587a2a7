"""Figures of a detector whose scores are known: how often a text says "indeed"."""

import numpy as np
import pytest
import torch

from midcourse.detect.attacks import ATTACKS
from midcourse.detect.calibrate import calibrate
from midcourse.detect.evaluate import (
    attacked,
    baselines,
    by_length,
    cells,
    compared,
    found,
    judged,
    realised,
    reliability,
)
from midcourse.detect.texts import LabelledText
from midcourse.rewards.likelihood import STATISTICS, TokenFigures, token_figures
from midcourse.rewards.text import FunctionReward
from midcourse.testing import tiny_language_model
from tests.detect.test_detector import share, text_of


def human(number, times, domain="news", words=60, group="") -> LabelledText:
    return LabelledText(text_of(number, times, words), "human", group, domain)


def machine(number, times, model="m", domain="news", words=60, group="") -> LabelledText:
    return LabelledText(text_of(number, times, words), "machine", group, domain, model)


@pytest.fixture(scope="module")
def detector():
    return calibrate(
        FunctionReward(share),
        [*(human(i, i % 4) for i in range(120)), *(machine(i, 2 + i % 9) for i in range(1000, 1120))],
    )


def test_cells_are_of_domain_and_model_and_keep_to_their_own_sources(detector):
    texts = [
        *(human(i, i % 2, group=f"g{i}") for i in range(10)),
        *(machine(i, 9, "strong", group=f"g{i}") for i in range(10)),
        *(human(i, 20, group=f"other{i}") for i in range(10, 20)),  # beside another model's texts alone
        *(machine(i, 0, "weak", group=f"other{i}") for i in range(10, 20)),
        *(human(i, 1, "letters") for i in range(20, 25)),
    ]
    rows = cells(judged(detector, texts))
    assert [(row["domain"], row["model"], row["auroc"]) for row in rows] == [
        ("news", "strong", 1.0),
        ("news", "weak", 0.0),
    ]
    assert rows[0]["humans"] == rows[0]["machines"] == 10


def test_a_human_text_beside_several_machines_counts_once(detector):
    one = human(0, 0, group="g")
    texts = [
        one,
        machine(1, 5, group="g"),
        one,
        machine(2, 5, group="g"),
        human(3, 9, group="h"),
        machine(4, 5, group="h"),
    ]
    (row,) = cells(judged(detector, texts))
    assert (row["humans"], row["machines"], row["auroc"]) == (2, 3, 0.5)


def test_realised_rates_are_of_each_domain_by_itself(detector):
    texts = [*(human(i, i % 4) for i in range(200, 300)), *(human(i, 9, "speeches") for i in range(40))]
    news, speeches = realised(judged(detector, texts, fpr=0.05))
    assert news["machine"] <= 0.05
    assert speeches["machine"] == 1  # thresholds of other people's texts flag all who say "indeed" often
    assert speeches["interval"][0] > 0.9
    assert news["human"] + news["machine"] + news["cannot tell"] == pytest.approx(1)


def test_what_is_found_is_of_each_model_by_itself(detector):
    shy = [machine(i, 20, "shy") for i in range(19)] + [machine(99, 0, "shy")]
    texts = [*(human(i, 0) for i in range(20)), *(machine(i, 20, "loud") for i in range(30)), *shy]
    rows = {row["model"]: row for row in found(judged(detector, texts, fpr=0.05))}
    assert (rows["loud"]["texts"], rows["loud"]["machine"]) == (30, 1)
    assert (rows["shy"]["texts"], rows["shy"]["machine"]) == (20, 19 / 20)


def test_lengths_cut_texts(detector):
    texts = [*(human(i, 0, words=100) for i in range(10)), *(machine(i, 20, words=100) for i in range(10))]
    assert [row["words"] for row in by_length(detector, texts)] == [30, 60, 90]
    assert by_length(detector, texts)[0]["auroc"] == 1


def test_attacks_at_an_unchanged_threshold(detector):
    texts = [machine(i, 30) for i in range(20)]
    gone = {"gone": lambda text, random: text.replace("indeed", "yes")}
    rows = {row["attack"]: row for row in attacked(detector, texts, ATTACKS | gone, fpr=0.05)}
    assert rows["gone"]["before"] == 1
    assert rows["gone"]["after"] == rows["gone"]["kept"] == 0
    for name in ("homoglyphs", "zero-width", "white-space", "sentence-order"):
        assert rows[name]["kept"] == 1, name
    sure = attacked(detector, texts, gone, fpr=0.01, guarantee="confidence")  # takes 299 texts
    assert sure[0]["before"] == 0 and sure[0]["kept"] is None
    again = attacked(detector, texts, ATTACKS, fpr=0.05)
    assert [row["after"] for row in again] == [rows[name]["after"] for name in ATTACKS]


def test_a_domain_with_texts_of_one_kind_has_no_cell(detector):
    texts = [human(1, 0), machine(2, 9), machine(3, 9, domain="speeches"), human(4, 0, "letters")]
    assert [row["domain"] for row in cells(judged(detector, texts))] == [texts[0].domain]


def test_reliability_by_hand(detector):
    """Probabilities that are right have no error, whatever the share of machine texts in the data."""
    texts = [*(human(i, i % 4) for i in range(300, 700)), *(machine(i, 2 + i % 9) for i in range(2000, 2090))]
    figures = reliability(judged(detector, texts))
    assert figures["error"] < 0.12
    assert sum(row["texts"] for row in figures["bins"]) == len(texts)
    turned = [
        LabelledText(t.text, "machine" if t.label == "human" else "human", domain=t.domain, model="m") for t in texts
    ]
    assert reliability(judged(detector, turned))["error"] > 0.5
    assert reliability(judged(detector, texts[:5])) == {"bins": None, "error": None}


def test_baselines_are_the_statistics_of_each_text():
    lm = tiny_language_model("llama")
    texts = [human(1, 1, words=12), machine(2, 3, words=30), human(3, 0, words=7)]
    found = baselines(lm, texts)
    for number, text in enumerate(texts):
        ids = torch.tensor([lm.tokenizer(text.text, add_special_tokens=False).input_ids[:256]])
        with torch.no_grad():
            logits = lm.model(ids).logits[0, :-1].clone()
        figures = TokenFigures(*token_figures(lambda same: same, logits, ids[0, 1:]).double().numpy().T)
        for name, statistic in STATISTICS.items():
            assert found[name][number] == pytest.approx(statistic(figures), rel=1e-4), name
        assert found["length"][number] == len(text.text.split())
    (row,) = compared(texts, {"length": found["length"], "constant": np.zeros(3)})
    assert (row["length"], row["constant"]) == (1.0, 0.5)
