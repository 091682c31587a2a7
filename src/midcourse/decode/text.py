"""Token ids to text pieces: whole UTF-8 characters only, cut at stop strings."""

import copy
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """One row's text as it grows. The pieces joined are the text; no piece ever has to be taken back.

    A character whose bytes come in several tokens appears with its last token. Text that might become a stop string
    is held back until it cannot any more. Bytes that never become a character appear as U+FFFD once a character
    follows them.

    Example:
        >>> stream = TextStream(tokenizer, stop=["###"])
        >>> stream.push(token_id)
        ' la'
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped = False
        self._ids: list[int] = []
        self._start = 0  # the text of the ids before this is out
        self._context = 0  # they are decoded from here on, so that the next text has what its spaces depend on
        self._out = 0  # characters that are out of the text from `_start` on
        self._held = ""

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before this token."""
        self._ids.append(token_id)
        return self._release(self._decode_new())

    def finish(self) -> str:
        """What was held back; bytes of a character that never became whole are dropped."""
        piece, self._held = self._held, ""
        return "" if self.stopped else piece

    def copy(self) -> "TextStream":
        """The same text, to go on apart from this one."""
        other = copy.copy(self)
        other._ids = list(self._ids)
        return other

    def _decode_new(self) -> str:
        decode = self.tokenizer.decode
        context = decode(self._ids[self._context : self._start], skip_special_tokens=True)
        text = decode(self._ids[self._context :], skip_special_tokens=True)
        # Unfinished bytes decode to one U+FFFD, or to one each where a tokenizer falls back to bytes.
        whole = text.rstrip(_INCOMPLETE)
        new = whole[len(context) + self._out :]
        self._out += len(new)
        if new and whole == text:
            self._context, self._start, self._out = self._start, len(self._ids), 0
        return new

    def _release(self, new: str) -> str:
        text = self._held + new
        cuts = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if cuts:
            self.stopped, self._held = True, ""
            return text[: min(cuts)]
        keep = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
