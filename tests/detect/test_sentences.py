"""Where sentences stand, and new ones in their places."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midcourse.detect.sentences import sentences_of, spans_of, splice


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("  One.\n Two", ["One.", "Two"]),
        ("no end at all", ["no end at all"]),
        ("It cost 3.50 euros, e.g. at the pier. 12 came.", ["It cost 3.50 euros, e.g. at the pier.", "12 came."]),
        ("“Late?” she said. “Yes.” He left.", ["“Late?” she said.", "“Yes.”", "He left."]),
        ("Mr. J. R. Smith met Dr. Jones. He did.", ["Mr. J. R. Smith met Dr. Jones.", "He did."]),
        ("So did I. Then it rained.", ["So did I.", "Then it rained."]),
        ("A heading\n\nThe first. the second", ["A heading", "The first. the second"]),
        ("A heading\r\n\t\r\nThe first.", ["A heading", "The first."]),
        ("Was?! Ärger. Österreich... Ja.", ["Was?!", "Ärger.", "Österreich...", "Ja."]),
        ("船晚了。我们走吧！好", ["船晚了。", "我们走吧！", "好"]),
        (" \n ", []),
    ],
)
def test_sentences(text, sentences):
    assert sentences_of(text) == sentences


@pytest.mark.parametrize("piece", [".", ". ", "!?", '"', "\n", "\n \n", ". \n", "a", '."'])
def test_a_megabyte_on_one_line_is_no_trap(piece):
    text = "Begin. " + piece * (10**6 // len(piece)) + "E"
    assert "".join("".join(sentences_of(text)).split()) == "".join(text.split())


TEXTS = st.text(st.sampled_from('aAbB1.!?"”( \n\r\t。é\u00a0'), max_size=60)


@given(TEXTS)
def test_what_is_between_sentences_is_white_space(text):
    at = 0
    for begin, end in [*spans_of(text), (len(text), len(text))]:
        assert at <= begin and not text[at:begin].strip()
        assert text[begin:end] == text[begin:end].strip()
        at = end


@given(TEXTS, st.dictionaries(st.integers(1, 9), st.sampled_from(["", "x", "A new one."])))
def test_a_splice_moves_nothing(text, drawn):
    spans = spans_of(text)
    new = {number: said for number, said in drawn.items() if number <= len(spans)}
    at, have = 0, splice(text, spans, new)
    for number, (begin, end) in enumerate(spans, 1):  # reads both from the left, piece by piece
        said = new.get(number, text[begin:end])
        before = text[spans[number - 2].end if number > 1 else 0 : begin]
        assert have[at : at + len(before) + len(said)] == before + said
        at += len(before) + len(said)
    assert have[at:] == text[spans[-1].end if spans else 0 :]
