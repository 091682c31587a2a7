import unicodedata
from random import Random

import pytest

from midcourse.detect.attacks import ATTACKS, sentences_of
from midcourse.detect.disguise import LOOKALIKES, plain

TEXT = (
    "The night train to the coast was full, and Peter Hoxha said so. It was late! Behind us somebody who had been "
    'asleep since the last stop but one woke up, looked at the sea, and asked: "Is this where we get off?" It was not.'
)


def test_lookalikes_are_letters_of_other_alphabets():
    for foreign, latin in LOOKALIKES.items():
        assert latin.isascii()
        assert not foreign.isascii()
        assert unicodedata.name(foreign).split()[0] in ("CYRILLIC", "GREEK", "ARMENIAN") or foreign in "ıȷ", foreign


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attack", ["homoglyphs", "zero-width", "white-space"])
def test_a_disguise_is_taken_off_whole(attack, seed):
    hidden = ATTACKS[attack](TEXT, Random(seed))
    assert hidden != TEXT
    assert plain(hidden).text == TEXT


def test_what_was_taken_off_is_counted():
    assert plain("l\ufe0fe\U000e0101ft\u3164\u115f a\ufe0f\u200db") == ("left ab", 6, 0)
    assert plain("well \u2764\ufe0f\u200d\U0001f525 done").unseen == 0  # one picture
    assert plain("a\u200bb\ufeff c\u0430t") == ("ab cat", 2, 1)
    assert plain("ｗｉｄｅ\u00a0space\n\n here") == ("wide space here", 0, 0)


@pytest.mark.parametrize(
    "text",
    ["Привет, это обычный русский текст о сосне.", "Ένα κείμενο στα ελληνικά.", "He wrote Привет to her, and Ορος."],
)
def test_other_alphabets_stay_as_they_are(text):
    assert plain(text).text == text


def test_accents_and_emoji_stay():
    assert plain("Café naïve, Ångström 🙂").text == "Café naïve, Ångström 🙂"


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_keep_what_the_text_says(attack):
    changed = ATTACKS[attack](TEXT, Random(0))
    assert changed != TEXT
    assert changed == ATTACKS[attack](TEXT, Random(0))  # a seed decides
    have, want = (sorted(plain(text).text.split()) for text in (changed, TEXT))
    if attack == "typos":
        assert 0 < sum(a != b for a, b in zip(plain(changed).text.split(), TEXT.split(), strict=True)) < 12
    else:
        assert have == want
    assert ATTACKS[attack]("", Random(0)) == ""


def test_sentences():
    assert sentences_of(TEXT)[1] == "It was late!"
    assert len(sentences_of(TEXT)) == 4
    assert sentences_of("At 3.5 p.m. it was 1.5 km. Then more.") == ["At 3.5 p.m. it was 1.5 km.", "Then more."]
