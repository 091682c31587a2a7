import numpy as np
import pytest
import torch

from midcourse.detect.detector import DetectorError
from midcourse.detect.fit import Examples, examples_of, fit, head_of, left_out, moments_of
from midcourse.detect.texts import LabelledText
from midcourse.evaluate.separation import auroc
from midcourse.lm.language_model import LanguageModel
from midcourse.rewards.contract import Text
from midcourse.rewards.named import load_reward
from midcourse.rewards.pooled import Reader
from midcourse.testing import tiny_language_model


def drawn(count=400, seed=0) -> Examples:
    """Texts of two domains far apart along the first feature; machines differ along the second."""
    random = np.random.default_rng(seed)
    machine, late = np.arange(count) % 2 == 1, np.arange(count) % 4 >= 2
    features = random.normal(size=(count, 3)) + np.outer(late, [20, 0, 0]) + np.outer(machine, [0, 3, 0])
    return Examples(features, np.full(count, 100), machine, np.where(late, "news", "abstract"))


def scores(head, features, tokens=100) -> np.ndarray:
    return head(torch.from_numpy(features), torch.full([len(features)], tokens)).numpy()


def test_a_head_by_hand():
    """Two domains, far apart along the first feature, with one text of each kind 1 beside its mean along both."""
    scatter = np.array([[1.0, 1.0], [-1.0, -1.0]])
    means = np.array([[0.0, 0.0], [0.0, 2.0], [9.0, 1.0], [9.0, 5.0]])  # people and machines of two domains
    features = np.concatenate([mean + scatter for mean in means])
    machine, domains = np.repeat([False, True, False, True], 2), np.repeat(["a", "b"], 4)
    moments = moments_of(Examples(features, np.full(8, 9), machine, domains))
    assert moments.middle == pytest.approx([4.5, 2])
    assert moments.difference == pytest.approx([0, 3], abs=1e-4)
    assert moments.correlation == pytest.approx(np.ones((2, 2)), abs=1e-4)
    # With k / n = 1: ((2, 1), (1, 2))^-1 (0, 3) = (-1, 2), over sqrt((-1 + 2)^2). The higher n, the more so.
    head = head_of(moments, 5.0)
    asked = np.array([[4.5, 2.0], [5.5, 3.0], [4.5, 3.0]])
    assert scores(head, asked, 5) == pytest.approx(np.array([0, 1, 2]), abs=1e-3)
    # With k / n = 1/2: ((3/2, 1), (1, 3/2))^-1 (0, 3) = (-12/5, 18/5), over 6/5.
    assert scores(head, asked, 10) == pytest.approx(np.array([0, 1, 3]), abs=1e-3)
    assert not scores(head, asked, 0).any()


def test_of_few_tokens_every_direction_counts_alike():
    """And of many the head is Fisher's discriminant without a ridge."""
    examples = drawn()
    moments = moments_of(examples)
    head, directions = head_of(moments, 400.0), np.eye(3) * moments.scale
    few, many = (scores(head, directions + moments.middle, tokens) for tokens in (1, 10**12))
    assert few / few[1] == pytest.approx(moments.difference / moments.difference[1], abs=0.01)
    fisher = np.linalg.solve(moments.correlation, moments.difference)
    assert many / many[1] == pytest.approx(fisher / fisher[1], abs=1e-6)


def test_a_domain_counts_once_and_one_kind_alone_says_how_texts_scatter():
    examples = drawn()
    often = np.concatenate([np.arange(400), np.repeat(np.flatnonzero(examples.domains == "news"), 5)])
    repeated = Examples(
        *(part[often] for part in (examples.features, examples.tokens, examples.machine, examples.domains))
    )
    for have, want in zip(moments_of(repeated), moments_of(examples), strict=True):
        assert have == pytest.approx(want)
    people = Examples(
        np.concatenate([examples.features, [[50.0, 50.0, 50.0], [50.0, 50.0, 70.0]]]),
        np.full(402, 100),
        np.append(examples.machine, [False, False]),
        np.append(examples.domains, ["letters", "letters"]),
    )
    assert moments_of(people).middle == pytest.approx(moments_of(examples).middle)
    assert moments_of(people).scale[2] ** 2 == pytest.approx((4 * moments_of(examples).scale[2] ** 2 + 100) / 5)
    assert people.both == ["abstract", "news"]


def test_a_head_tells_domains_that_it_did_not_see():
    examples = drawn()
    assert left_out(examples).keys() == {"abstract", "news"}
    alone = examples.of(examples.domains == "news")
    assert left_out(alone) == {}
    origin, along, beside = scores(head_of(moments_of(alone), 400.0), np.array([[0.0, 0, 0], [0, 1, 0], [1, 0, 0]]))
    assert abs(along - origin) > 5 * abs(beside - origin)
    without = moments_of(examples.of(examples.domains == "abstract"))
    news = scores(head_of(without, 50.0), alone.features)
    assert left_out(examples, 50.0)["news"] == auroc(news[~alone.machine], news[alone.machine]) > 0.9


def test_what_is_fitted_is_a_reward_that_is_saved_and_loaded(model_folder, tmp_path):
    folder = model_folder()
    lm = LanguageModel.load(folder, dtype="float64")
    texts = [LabelledText(f"the ferry was late {i}, and we waited", "human", domain="d") for i in range(8)]
    texts += [LabelledText(f"INDEED, ONE MAY NOTE {i}, AND MOREOVER", "machine", domain="d") for i in range(8)]
    texts.append(LabelledText("neither one", "mixed", domain="d"))
    reward, metrics = fit(lm, texts, layers=(2,), ridge=90.0)
    assert (metrics["humans"], metrics["machines"], metrics["left_out"]) == (8, 8, {})
    human, machine = reward.rate([Text("", "the ferry is late, and we wait", True), Text("", "INDEED, NOTE", True)])
    assert human < 0 < machine
    reward.save(tmp_path / "reward")
    again = load_reward(tmp_path / "reward", dtype="float64")
    assert again.rate([Text("", "INDEED, NOTE", True)]) == pytest.approx([machine], rel=1e-4)


def test_what_is_fitted_says_how_it_does_without_each_domain():
    lm = tiny_language_model("llama")
    texts = [
        LabelledText(f"{word} {'the ferry was late' if label == 'human' else 'INDEED MOREOVER'} {i}", label, "", word)
        for word in ("news", "abstract")
        for label in ("human", "machine")
        for i in range(6)
    ]
    _, metrics = fit(lm, texts, layers=(2,))
    assert metrics["domains"] == ["abstract", "news"]
    assert metrics["left_out"] == left_out(examples_of(Reader(lm, (2,)), texts))


def test_what_cannot_be_learned_is_refused():
    lm = tiny_language_model("llama")
    with pytest.raises(DetectorError, match="no machine text to learn from"):
        fit(lm, [LabelledText("the ferry", "human")])
    with pytest.raises(DetectorError, match=r"layers \[0, 9\] are none of tiny llama's; name some of 1 to 3"):
        fit(lm, [LabelledText("the ferry", "human")], layers=(0, 9))
    with pytest.raises(DetectorError, match=r"layers \[\] are none"):
        fit(lm, [LabelledText("the ferry", "human")], layers=())
    with pytest.raises(DetectorError, match="one text of each kind and domain"):
        fit(lm, [LabelledText("the ferry", "human"), LabelledText("INDEED", "machine")])
    with pytest.raises(DetectorError, match="ridge 0 is not a number over 0; use 400, say"):
        fit(lm, [LabelledText("the ferry", "human")], ridge=0.0)
    with pytest.raises(DetectorError, match="no domain has texts of both people and machines"):
        fit(lm, [LabelledText("the ferry", "human", domain="a"), LabelledText("INDEED", "machine", domain="b")])
