"""What text can hide: characters nobody sees, letters of other alphabets that look Latin, and spacing.

A detector reads texts without their disguise. What was taken off is said beside the verdict.
"""

import re
import unicodedata
from typing import NamedTuple

# Zero-width characters, joiners, variation selectors, empty letters, marks of direction and the soft hyphen: nothing of
# them is seen in a Latin text. Behind a picture a selector or joiner makes it another picture.
_PICTURE = "[\u00a9\u00ae\u203c\u2049\u2122-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]"
UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u206a-\u206f\u3164\ufeff"
    "\ufe00-\ufe0e\U000e0000-\U000e01ef]"
    f"|(?<!{_PICTURE})\ufe0f|(?<!{_PICTURE})(?<!{_PICTURE}\ufe0f)\u200d"
)

# Letters of other alphabets that look like Latin ones, each followed by what it looks like.
_PAIRS = (
    "АAВBЕEЅSІIЈJКKМMНHОOРPСCТTХXУYаaеeоoрpсcуyхxіiјjѕsԁdԛqԝwһhԌGԜWӀI"  # Cyrillic
    "ΑAΒBΕEΖZΗHΙIΚKΜMΝNΟOΡPΤTΥYΧXοoνvιiυuρpκk"  # Greek
    "օoսuցgԼLՕOՏSո" + "n"  # Armenian
    "ıiȷj"  # without their dots
)
LOOKALIKES = dict(zip(_PAIRS[::2], _PAIRS[1::2], strict=True))
_LETTERS = "".join(LOOKALIKES)
# A word with a Latin letter in it, or of lookalikes alone between words that have one.
_WORD = re.compile(r"\w+")
_LATIN = re.compile("[A-Za-z]")


class Plain(NamedTuple):
    """A text without its disguise.

    Attributes:
        text: what the detector reads.
        unseen: how many characters that nobody sees were taken out.
        lookalikes: how many letters were replaced by the Latin ones they look like.
    """

    text: str
    unseen: int
    lookalikes: int


def plain(text: str) -> Plain:
    """Take a text's disguise off.

    White space becomes single spaces (NFKC makes wide letters and odd spaces plain ones). Lookalikes are replaced in
    words that also have Latin letters; if most letters of the text are Latin, in all words. A text in another alphabet
    stays as it is.
    """
    shown, unseen = UNSEEN.subn("", text)
    words = unicodedata.normalize("NFKC", shown)
    latin = len(_LATIN.findall(words))
    mostly = latin > sum(letter.isalpha() for letter in words) / 2
    replaced = 0

    def latinised(match: re.Match[str]) -> str:
        nonlocal replaced
        word = match.group()
        if not (mostly or _LATIN.search(word)):
            return word
        new = "".join(LOOKALIKES.get(letter, letter) for letter in word)
        # A word of another alphabet that has letters of its own is a word of that alphabet.
        if not _LATIN.search(word) and any(letter.isalpha() and not letter.isascii() for letter in new):
            return word
        replaced += sum(a != b for a, b in zip(word, new, strict=True))
        return new

    return Plain(" ".join(_WORD.sub(latinised, words).split()), unseen, replaced)
