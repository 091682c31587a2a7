import copy

import numpy as np
import pytest
import torch

from midcourse.detect.evaluate import baselines
from midcourse.detect.texts import LabelledText
from midcourse.detect.two_models import PairFigures, TwoModelsError, binoculars, implicit, pair_figures
from midcourse.lm.language_model import LanguageModel
from midcourse.testing import tiny_language_model

TEXTS = ["The ferry was late.", "a", "", "We waited, and nobody minded at all." * 9]


@pytest.fixture(scope="module")
def models():
    return tiny_language_model("llama", dtype=torch.float64), tiny_language_model("llama", dtype=torch.float64, seed=1)


def test_by_hand():
    tokens = PairFigures(*map(np.array, ([-1.0, -3.0], [-2.0, -2.5], [-4.0, -6.0])))
    assert binoculars(tokens) == pytest.approx(-2.0 / 5.0)
    assert implicit(tokens) == pytest.approx(-4.0 + 4.5)


@torch.no_grad()
def test_figures_are_those_of_two_plain_forwards(models):
    """Of a text longer than the context, window by window."""
    instruct, base = models
    for number, found in pair_figures(instruct, base, TEXTS):
        ids = instruct.tokenizer(TEXTS[number], add_special_tokens=False).input_ids
        want = []
        for begin in range(0, max(len(ids), 1), 256):
            row = torch.tensor([ids[begin : begin + 256] or [0]])
            i, b = (lm.model(row).logits[0, :-1].log_softmax(-1) for lm in models)
            targets = row[0, 1:, None]
            want.append(torch.stack([i.gather(1, targets)[:, 0], b.gather(1, targets)[:, 0], (b.exp() * i).sum(1)], 1))
        assert np.stack(found, 1) == pytest.approx(torch.cat(want).numpy(), abs=1e-5)


def test_a_model_beside_itself_says_nothing_of_its_own(models):
    """The implicit reward is 0; Binoculars compares log-probabilities with minus the entropy."""
    lm = models[0]
    for _, found in pair_figures(lm, lm, TEXTS[:1]):
        assert implicit(found) == 0
        assert (found.expected < 0).all()


def test_a_text_without_tokens_has_no_figures(models):
    ((number, found),) = pair_figures(*models, [""])
    assert number == 0 and all(len(row) == 0 for row in found)


def test_they_stand_among_the_baselines(models):
    texts = [LabelledText(text, "human") for text in TEXTS]
    found = baselines(models[0], texts, base=models[1])
    for number, figures in pair_figures(*models, TEXTS):
        if len(figures.base):
            assert found["binoculars"][number] == pytest.approx(binoculars(figures))
            assert found["implicit"][number] == pytest.approx(implicit(figures))
        else:
            assert found["binoculars"][number] == found["implicit"][number] == 0
    assert "binoculars" not in baselines(models[0], texts)


def test_models_of_other_tokens_are_refused(models):
    lm = models[0]
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_tokens(["ferry"])
    with pytest.raises(TwoModelsError, match=r"tiny llama and other have other tokens; name two models"):
        list(pair_figures(lm, LanguageModel(lm.model, tokenizer, "other"), TEXTS))
