"""Token ids to text as the tokens come: whole characters only.

TextStream     what is written out, in pieces that never have to be taken back; cut at stop strings
ResponseText   the text after every token, with steps back: what rewards of texts read

The text of a response is what the language model's tokenizer decodes its tokens to, without special tokens and without
a last character whose bytes are not all there yet: a token that leaves one incomplete leaves the text as it was before
that character. A token that ends the response adds nothing to its text, and finishes it.

Of a tokenizer that puts a space before every text and takes it off again (SentencePiece), the text is what follows the
prompt in what both together decode to, without the white space that a chat template has before a response.
"""

import copy
from collections.abc import Collection, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from midcourse.lm.prompt import spaces_before

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_NEAR = 8  # tokens of the prompt that a response's text may depend on


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, ...]:
    """Return what each token writes within a text, special tokens by their names."""
    if not spaces_before(tokenizer):
        return tuple(tokenizer.decode([token]) for token in token_ids)
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    known = len(tokenizer.decode(before))
    return tuple(tokenizer.decode([*before, token])[known:] for token in token_ids)


def _near(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> list[int]:
    """Return the tokens of a prompt that the text of a response is decoded with."""
    return list(prompt_ids[-_NEAR:]) if spaces_before(tokenizer) else []


class TextStream:
    """One row's text as it grows. The pieces joined are the text; no piece ever has to be taken back.

    A character whose bytes come in several tokens appears with its last token. Text that might become a stop string
    is held back until it cannot any more. Bytes that never become a character appear as U+FFFD once a character
    follows them.

    Args:
        stop: strings before the first of which the text ends; one that is a special token ends it as that token.
        prompt_ids: the prompt's tokens.
        lead: white space that belongs to the prompt's template, not to the text.

    Examples:
        >>> stream = TextStream(tokenizer, stop=["###"])
        >>> stream.push(token_id)
        ' la'
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        prompt_ids: Sequence[int] = (),
        lead: str = "",
    ):
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.stopped = False
        # Special tokens write no text to match. Some tokenizers have thousands: they are looked through only if needed.
        added = tokenizer.added_tokens_decoder.items() if self.stop else ()
        self._stop_ids = {number for number, token in added if token.content in self.stop}
        self._ids = _near(tokenizer, prompt_ids)
        self._lead = lead
        self._start = len(self._ids)  # the text of the ids before this is out
        self._context = 0  # they are decoded from here on, so that the next text has what its spaces depend on
        self._out = 0  # characters that are out of the text from `_start` on
        self._held = ""

    def push(self, token_id: int) -> str:
        """Append a token, and return the text that is certain now and was not before."""
        if token_id in self._stop_ids:
            piece, self._held, self.stopped = self._held, "", True
            return piece
        self._ids.append(token_id)
        return self._release(self._without_lead(self._decode_new()))

    def finish(self) -> str:
        """Return what was held back; bytes of a character that never became whole are dropped."""
        piece, self._held = self._held, ""
        return "" if self.stopped else piece

    def copy(self) -> "TextStream":
        """Return the same text, to go on apart from this one."""
        other = copy.copy(self)
        other._ids = list(self._ids)
        return other

    def _decode_new(self) -> str:
        decode = self.tokenizer.decode
        context = decode(self._ids[self._context : self._start], skip_special_tokens=True)
        text = decode(self._ids[self._context :], skip_special_tokens=True)
        # Unfinished bytes decode to one U+FFFD, or to one each if a tokenizer falls back to bytes.
        whole = text.rstrip(_INCOMPLETE)
        new = whole[len(context) + self._out :]
        self._out += len(new)
        if new and whole == text:
            self._context, self._start, self._out = self._start, len(self._ids), 0
        return new

    def _without_lead(self, new: str) -> str:
        if not self._lead or not new:
            return new
        if self._lead.startswith(new) and new != self._lead:
            self._lead = self._lead[len(new) :]
            return ""
        lead, self._lead = self._lead, ""
        return new.removeprefix(lead)

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
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class _Anchor(NamedTuple):
    """A place to decode from: the tokens from `begin` to `end` decode to `known`, which follows the text `head`.

    Decoding starts at tokens that are known already, since the spaces of the next depend on them.
    """

    begin: int
    end: int
    head: str
    known: str


class Point(NamedTuple):
    """A response after one of its tokens: its text, whether that is finished, and where to decode the next from.

    Attributes:
        whole: the text, behind what is decoded with it.
        before: how many characters of `whole` are not the response's.
    """

    whole: str
    finished: bool
    complete: bool
    anchor: _Anchor
    before: int = 0

    @property
    def text(self) -> str:
        """Return the response's text."""
        return self.whole[self.before :]


class ResponseText:
    """A response's tokens and its text after each of them; see above for what that is.

    Args:
        eos_token_ids: the tokens that finish the text; they add nothing to it.
        token_ids: with which the response begins.
        prompt_ids: the prompt's tokens.
        lead: white space that belongs to the prompt's template, not to the text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Collection[int],
        token_ids: Sequence[int] = (),
        prompt_ids: Sequence[int] = (),
        lead: str = "",
    ):
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.token_ids: list[int] = []
        self.lead = lead
        self._ids = _near(tokenizer, prompt_ids)  # of the prompt's end, and all of the response's
        self._prompt = self._decode(self._ids) if self._ids else ""
        begin = _Anchor(0, len(self._ids), "", self._prompt)
        self.points = [Point(self._prompt, False, True, begin, len(self._prompt))]
        for token in token_ids:
            self.push(token)

    @property
    def now(self) -> Point:
        """Return the text as it stands."""
        return self.points[-1]

    def after(self, token_id: int) -> Point:
        """Return the text as it would be if this token came next."""
        now = self.now
        if token_id in self.eos_token_ids:
            return now._replace(finished=True)
        anchor = now.anchor
        near = self._decode([*self._ids[anchor.begin :], token_id])
        # Some tokenizers take characters back while bytes are missing: then all tokens are decoded.
        text = anchor.head + near if near.startswith(anchor.known) else self._decode([*self._ids, token_id])
        whole = text.rstrip(_INCOMPLETE)
        before = len(self._prompt)
        before += len(self.lead) if whole.startswith(self.lead, before) else 0
        if whole == text:
            return Point(whole, False, True, anchor, before)
        return Point(max(now.whole, whole, key=len), False, False, anchor, before)

    def push(self, token_id: int) -> None:
        """Append a token."""
        point = self.after(token_id)
        self.token_ids.append(token_id)
        self._ids.append(token_id)
        self.points.append(point._replace(anchor=self._next_anchor(point)))

    def rewind(self, count: int) -> None:
        """Take that many tokens off the end."""
        kept = len(self.token_ids) - count
        del self._ids[len(self._ids) - count :], self.token_ids[kept:], self.points[kept + 1 :]

    def copy(self) -> "ResponseText":
        """Return the same response, to go on in another way."""
        other = copy.copy(self)
        other.token_ids, other.points, other._ids = list(self.token_ids), list(self.points), list(self._ids)
        return other

    def _next_anchor(self, point: Point) -> _Anchor:
        """Return the anchor behind the last token if new characters are complete with it; else the one before."""
        anchor, text = point.anchor, point.whole
        # A tokenizer that cleans up spaces changes text far from where it decodes: there every text is decoded whole.
        grown = point.complete and not point.finished and text != anchor.head + anchor.known
        if not grown or self.tokenizer.clean_up_tokenization_spaces:
            return anchor
        known = self._decode(self._ids[anchor.end :])
        if not text.endswith(known):
            return anchor
        return _Anchor(anchor.end, len(self._ids), text[: len(text) - len(known)], known)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
