"""Scripts of edits, and what they say of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.data.alignment import (
    Change,
    Labels,
    align,
    applied,
    distance,
    labels_of,
    token_labels,
    word_labels,
    word_spans,
)

KEPT, ADDED, DELETED, SUBSTITUTED, OMISSION = Change
TEXTS = st.text(st.sampled_from("abé👍🏽\u200d \n你"), max_size=12)


def reference_distance(a, b) -> int:
    """The textbook's table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@given(TEXTS, TEXTS)
def test_a_script_makes_the_edited_text_of_the_original_at_the_least_cost(original, edited):
    script = align(original, edited)
    assert "".join(applied(script, original, edited)) == edited
    assert distance(script) == reference_distance(original, edited)


@given(TEXTS, TEXTS)
def test_the_way_back_deletes_what_was_added(original, edited):
    there, back = (labels_of(align(a, b), len(a), len(b)) for a, b in ((original, edited), (edited, original)))
    counts = [
        (labels.original.count(DELETED), labels.edited.count(ADDED), labels.original.count(SUBSTITUTED))
        for labels in (there, back)
    ]
    # Which of two equal tokens was deleted is open, and so is what stands for what; the numbers' difference is not.
    assert counts[0][0] - counts[0][1] == counts[1][1] - counts[1][0]
    assert sum(counts[0]) == sum(counts[1])


def test_equal_and_empty_sides():
    assert align("", "") == []
    assert token_labels([], []) == Labels((), ())
    assert token_labels([1, 2], [1, 2]) == Labels((KEPT, KEPT), (KEPT, KEPT))
    assert token_labels([], [1, 2]) == Labels((), (ADDED, ADDED))
    assert token_labels([1, 2], []) == Labels((DELETED, DELETED), ())


def test_labels_by_hand():
    labels = token_labels([1, 2, 3, 4], [1, 9, 3, 5, 4])
    assert labels.original == (KEPT, SUBSTITUTED, KEPT, OMISSION)
    assert labels.edited == (KEPT, SUBSTITUTED, KEPT, ADDED, KEPT)


def test_what_is_missing_at_the_end_is_marked_at_the_end_of_text():
    script = align([1, 2], [1, 2, 3])
    assert labels_of(script, 2, 3).original == (KEPT, KEPT)
    assert labels_of(script, 3, 4) == Labels((KEPT, KEPT, OMISSION), (KEPT, KEPT, ADDED, KEPT))


def test_of_a_cut_side_the_first_labels_stay():
    script = align([1, 2, 3, 4], [1, 9, 3, 5])
    assert labels_of(script, 2, 3) == Labels((KEPT, SUBSTITUTED), (KEPT, SUBSTITUTED, KEPT))


def spans(*pieces: str) -> list[tuple[int, int]]:
    ends = [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
    return [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]


def test_tokens_have_the_labels_of_their_words():
    before, after = ("The", " fer", "ry", " was", " late", "."), ("The", " boat", " was", " very", " late", ".")
    labels = word_labels("".join(before), "".join(after), (spans(*before), spans(*after)))
    assert labels.original == (KEPT, SUBSTITUTED, SUBSTITUTED, KEPT, OMISSION, KEPT)
    assert labels.edited == (KEPT, SUBSTITUTED, KEPT, ADDED, KEPT, KEPT)


def test_white_space_changes_no_word():
    before, after = ("a", "  ", "b"), ("a", "\n", "b")
    labels = word_labels("".join(before), "".join(after), (spans(*before), spans(*after)))
    assert labels == Labels((KEPT,) * 3, (KEPT,) * 3)


def test_a_token_of_several_words_is_changed_with_any_of_them():
    labels = word_labels("to do it", "to see it", ([(0, 5), (5, 8)], [(0, 6), (6, 9)]))
    assert labels == Labels((SUBSTITUTED, KEPT), (SUBSTITUTED, KEPT))


@pytest.mark.parametrize("text", ["", "  ", "héllo wörld", "👍🏽 ok!", "don't", "你好。世界"])
def test_words_cover_all_but_white_space(text):
    covered = "".join(text[begin:end] for begin, end in word_spans(text))
    assert covered == "".join(text.split())
