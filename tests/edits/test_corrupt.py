"""Texts made worse by rules: what is wrong is known."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.data.alignment import Change, Labels, align, applied
from midcourse.edits.corrupt import KINDS, Corrupted, CorruptError, corrupt, known_labels

KEPT, ADDED, DELETED, SUBSTITUTED, OMISSION = Change
TEXT = "The ferry was not late in 1987, as the captain had said, and 12 of us were there."


def undone(made: Corrupted) -> str:
    """The corrupted text with every corruption taken back by its spans."""
    text, right = made.edit.original, made.edit.edited
    for one in reversed(made.corruptions):
        text = text[: one.original[0]] + right[slice(*one.edited)] + text[one.original[1] :]
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_what_it_says(kind):
    made = corrupt(TEXT, kinds=[kind])
    (one,) = made.corruptions
    assert made.edit.edited == TEXT != made.edit.original
    assert undone(made) == TEXT
    wrong, right = made.edit.original[slice(*one.original)], TEXT[slice(*one.edited)]
    match kind:
        case "typo" | "swap":
            assert sorted(wrong) == sorted(right) and wrong != right
        case "negation":
            assert {wrong, right} == {"", " not"}
        case "number":
            assert wrong != right and (wrong + right).isdigit()
        case "omission":
            assert wrong == "" and right in (", as the captain had said", ", and 12 of us were there")


@given(st.integers(0, 200), st.integers(1, 8))
def test_several_at_a_time_do_not_touch_and_are_undone(seed, count):
    made = corrupt(TEXT, count=count, seed=seed)
    assert 1 <= len(made.corruptions) <= count
    assert undone(made) == TEXT
    spans = [one.edited for one in made.corruptions]
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    assert corrupt(TEXT, count=count, seed=seed) == made


def letters(text: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(text))]


@given(st.integers(0, 200))
def test_known_labels_turn_one_text_into_the_other(seed):
    """The letters that are kept on both sides are the same, in order; an omission marks what follows it."""
    made = corrupt(TEXT, count=3, seed=seed)
    worse, better = made.edit.original, made.edit.edited
    labels = known_labels(made, (letters(worse), letters(better)))
    assert [c for c, of in zip(worse, labels.original, strict=True) if of.kept] == [
        c for c, of in zip(better, labels.edited, strict=True) if of.kept
    ]
    for one in made.corruptions:
        if one.original[0] == one.original[1]:
            assert labels.original[one.original[0]] in (OMISSION, SUBSTITUTED)
    assert "".join(applied(align(worse, better), worse, better)) == better


def test_a_token_with_a_wrong_letter_is_wrong():
    made = corrupt("It was 1987.", kinds=["number"])
    assert known_labels(made, ([(0, 2), (2, 6), (6, 11), (11, 12)], [(0, 2), (2, 6), (6, 11), (11, 12)])) == Labels(
        (KEPT, KEPT, SUBSTITUTED, KEPT), (KEPT, KEPT, SUBSTITUTED, KEPT)
    )


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("", {}, "no typo or negation or number or swap or omission can be made in ''; give a longer text"),
        ("a b", {"kinds": ["number"]}, "no number can be made in 'a b'"),
        (TEXT, {"kinds": ["noise"]}, "kind 'noise' is unknown; use some of: typo, negation"),
        (TEXT, {"count": 0}, "count 0 corrupts nothing; use 1 or more"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(text, settings, message):
    with pytest.raises(CorruptError, match=message):
        corrupt(text, **settings)
