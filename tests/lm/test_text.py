"""Text as it grows: whole characters only, stop strings cut, and the pieces joined are the text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from midcourse.lm.text import TextStream
from midcourse.testing import byte_tokenizer

BYTES = byte_tokenizer()
LOST = "\N{REPLACEMENT CHARACTER}"
FACE = "\N{GRINNING FACE}"

texts = st.text(st.characters(codec="utf-8"), max_size=30)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words that begin with a space mark, bytes as a fallback, and a decoder that strips the first space."""
    vocab = {"<s>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁": 257, "▁la": 258, "le": 259}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def merged_bytes(pieces: list[bytes]) -> PreTrainedTokenizerFast:
    """Byte-level tokens that hold several bytes: token n is `pieces[n]`."""
    characters = BYTES.convert_ids_to_tokens(range(256))
    vocab = {"".join(characters[byte] for byte in piece): number for number, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def pieces_of(ids, tokenizer=BYTES, stop=()) -> list[str]:
    """The pieces of a whole response, up to its stop."""
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces
    return [*pieces, stream.finish()]


@given(texts.filter(lambda text: LOST not in text))
def test_pieces_are_the_text(text):
    pieces = pieces_of(text.encode())
    assert "".join(pieces) == text
    assert not any(LOST in piece for piece in pieces)


def test_character_appears_with_its_last_byte():
    assert pieces_of(f"é{FACE}!".encode()) == ["", "é", "", "", "", FACE, "!", ""]


@given(texts)
@example(f"a{LOST}b{LOST}{LOST}c")
def test_replacement_characters_of_the_text_survive(text):
    assert "".join(pieces_of(f"{text}.".encode())) == f"{text}."


@given(st.lists(st.integers(0, 255), max_size=40))
@example([0xFF, 0xFF, 0xFF, *"é".encode()])
@example([*b"a", 0xF0, 0x9F, 0x98])
@example([0x80] * 40)
def test_bytes_that_are_no_text(ids):
    joined = "".join(pieces_of(ids))
    assert joined == BYTES.decode(ids).rstrip(LOST)


def test_invalid_bytes_are_not_waited_for():
    # They might only become a character with the bytes that follow them.
    assert pieces_of([0xFF, 0xFF, *b"a", 0xC3, *b"b"]) == ["", "", f"{LOST}{LOST}a", "", f"{LOST}b", ""]


@given(st.data())
def test_tokens_may_end_in_the_middle_of_characters(data):
    text = f"{FACE}{FACE}é{FACE} ü{FACE}{FACE}"
    whole = text.encode()
    cuts = data.draw(st.lists(st.integers(1, len(whole) - 1), unique=True).map(sorted))
    tokens = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    vocab = sorted(set(tokens))
    pieces = pieces_of([vocab.index(token) for token in tokens], merged_bytes(vocab))
    assert "".join(pieces) == text
    assert not any(LOST in piece for piece in pieces)


@given(texts.filter(lambda text: LOST not in text))
def test_byte_fallback(text):
    tokenizer = sentencepiece_like()
    ids = [259, *(byte + 1 for byte in text.encode()), 258, 259]
    pieces = pieces_of(ids, tokenizer)
    assert "".join(pieces) == tokenizer.decode(ids) == f"le{text} lale"
    assert not any(LOST in piece for piece in pieces)


def test_spaces_survive_special_tokens():
    assert "".join(pieces_of([259, 258, 0, 258, 0, 0, 259, 258], sentencepiece_like())) == "le la lale la"


def test_special_tokens_are_no_text():
    assert pieces_of([*b"a", 256, *b"b", 257]) == ["a", "", "b", "", ""]


def cut_at_first(text: str, stops: list[str]) -> str:
    """The text before the first stop string to be complete; of those that end together, the longest."""
    for end in range(1, len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
@example("aab", ["ab"])
@example("abab", ["bb", "aba"])
@example("aaab", ["aab"])
def test_stop_strings(text, stops):
    pieces = pieces_of(text.encode(), stop=stops)
    assert "".join(pieces) == cut_at_first(text, stops)


@pytest.mark.parametrize(
    ("text", "stop", "want"),
    [
        ("one###two", ["###"], "one"),
        ("one##", ["###"], "one##"),
        ("one###", ["###"], "one"),
        ("###", ["###"], ""),
        ("one\n\nHuman: two", ["\n\nHuman:", "\n\n"], "one"),
        (f"é{FACE}é", [FACE], "é"),
    ],
)
def test_stop_strings_by_hand(text, stop, want):
    assert "".join(pieces_of(text.encode(), stop=stop)) == want


def test_text_that_may_become_a_stop_string_waits():
    assert pieces_of(b"a##b###", stop=["###"]) == ["a", "", "", "##b", "", "", ""]


def test_stop_string_inside_one_token():
    pieces = [b"one", b"two ### three", b"four"]
    stream = TextStream(merged_bytes(pieces), ["###"])
    assert [stream.push(0), stream.push(1)] == ["one", "two "]
    assert stream.stopped
    assert stream.finish() == ""
