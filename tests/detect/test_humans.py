import numpy as np

from midcourse.detect.humans import (
    LENGTHS,
    Scored,
    bound_of,
    cut_to,
    length_name,
    length_of,
    lengths_of,
    lengths_within,
)


def scored(scores, words=120, groups="", whole=True) -> Scored:
    n = len(scores)
    return Scored(np.array(scores, dtype=float), np.full(n, words), np.full(n, groups), np.full(n, whole))


def together(*parts: Scored) -> Scored:
    names = ("scores", "words", "groups", "whole")
    return Scored(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def test_lengths():
    assert [length_of(words) for words in (0, 24, 25, 49, 50, 299, 300, 9000)] == [0, 0, 1, 1, 2, 6, 6, 6]
    assert lengths_of([24, 25, 9000]).tolist() == [0, 1, 6]
    assert [length_name(n) for n in (0, 1, 6)] == ["under 25 words", "25 to 49 words", "200 words or more"]
    assert lengths_within(76) == [25, 50]  # for the third length it stands itself
    assert lengths_within(74) == [25]
    assert lengths_within(10) == lengths_within(30) == []
    assert cut_to("a b  c\nd", 3) == "a b c"
    assert all(length_of(edge) == length_of(edge - 1) + 1 for edge in LENGTHS)


def test_a_text_has_to_exceed_the_threshold_of_its_group_at_its_length():
    news, essays = scored(range(99), groups="news"), scored(range(1000, 1099), groups="essays")
    humans = together(news, essays)
    assert bound_of(humans, 120, 0.05, group="news").score == 94  # the 5th of its 99
    assert bound_of(humans, 120, 0.05, group="news").rests_on == ("news, 100 to 149 words", "news")
    assert bound_of(humans, 120, 0.05, group="essays").score == 1094  # the 5th of its 99
    unknown = bound_of(humans, 120, 0.05)
    assert unknown.score == 1094  # the strictest group's
    assert unknown.texts == 99
    assert unknown.rests_on == ("essays, 100 to 149 words", "essays", "news, 100 to 149 words", "news")


def test_the_rate_of_a_group_is_held_whatever_the_lengths():
    """Above its length's threshold is not enough: what lengths flag could add up to more than the rate."""
    humans = together(scored(range(60), 30, "news"), scored(range(1000, 1060), 120, "news"))
    short = bound_of(humans, 30, 0.05, group="news")
    assert short.score == 1054  # the 6th of 120; of those of its length it is 57
    assert bound_of(humans, 120, 0.05, group="news").score == 1057
    flagged = [score > bound_of(humans, int(words), 0.05, group="news").score for score, words in
               zip(humans.scores, humans.words, strict=True)]  # fmt: skip
    assert sum(flagged) <= 0.05 * 121


def test_a_group_with_few_texts_of_a_length_has_to_exceed_all_of_that_length_too():
    news, long = scored(range(99), 120, "news"), scored(range(1000, 1099), 400, "essays")
    humans = together(news, long, scored(range(500, 515), 120, "essays"))
    bound = bound_of(humans, 120, 0.05, group="essays")
    assert bound.rests_on == ("100 to 149 words", "essays")
    assert bound.score == 1094  # the 5th of all 114 essays; of the 114 texts of this length it is 510
    assert bound_of(Scored(), 120, 0.05).missing.endswith("of 100 to 149 words, 19 needed")


def test_too_few_texts_resolve_nothing():
    humans = together(scored(range(150), groups="news"), scored(range(30), groups="essays"))
    assert bound_of(humans, 120, 0.01, group="news").score is not None
    for group in ("essays", None):  # what may be an essay is not flagged either
        few = bound_of(humans, 120, 0.01, group=group)
        assert few.score is None
        assert few.missing == "not resolvable at this rate: 30 calibration texts of essays, 99 needed"
    short = bound_of(humans, 30, 0.01)
    assert short.missing == "not resolvable at this rate: 0 calibration texts of 25 to 49 words, 99 needed"
    assert bound_of(humans, 120, 0.01, "confidence").missing.endswith("100 to 149 words, 299 needed")
    assert bound_of(Scored(), 120, 0.01).score is None


def test_beginnings_count_in_their_length_and_not_again_in_their_group():
    whole, begun = scored(range(99), 120, "news"), scored(range(500, 599), 50, "news", whole=False)
    humans = together(whole, begun)
    assert bound_of(humans, 120, 0.01, group="news").score == 98
    assert bound_of(humans, 60, 0.01, group="news").score == 598
    assert bound_of(humans, 60, 0.05, group="news").score == 594
    assert len(humans.of_group("news")) == 99
    assert humans.turned.scores[0] == 0
    assert humans.turned.scores[1] == -1
