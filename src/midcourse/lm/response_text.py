"""A response's text as its tokens come, with steps back: what rewards of texts read.

The text of a response is what the language model's tokenizer decodes its tokens to, without special tokens and without
a last character whose bytes are not all there yet: a token that leaves one incomplete leaves the text as it was before
that character. A token that ends the response adds nothing to its text, and finishes it.
"""

import copy
from collections.abc import Collection, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class _Anchor(NamedTuple):
    """A place to decode from: the tokens from `begin` to `end` decode to `known`, which follows the text `head`.

    Decoding starts at tokens that are known already, since the spaces of the next depend on them.
    """

    begin: int
    end: int
    head: str
    known: str


class Point(NamedTuple):
    """A response after one of its tokens: its text, whether that is finished, and where to decode the next from."""

    text: str
    finished: bool
    complete: bool
    anchor: _Anchor


class ResponseText:
    """A response's tokens and its text after each of them; see above for what that is.

    Args:
        eos_token_ids: the tokens that finish the text; they add nothing to it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int], token_ids: Sequence[int] = ()
    ):
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.token_ids: list[int] = []
        self.points = [Point("", False, True, _Anchor(0, 0, "", ""))]
        for token in token_ids:
            self.push(token)

    @property
    def now(self) -> Point:
        """The text as it stands."""
        return self.points[-1]

    def after(self, token_id: int) -> Point:
        """The text if this token came next."""
        now = self.now
        if token_id in self.eos_token_ids:
            return now._replace(finished=True)
        anchor = now.anchor
        near = self._decode([*self.token_ids[anchor.begin :], token_id])
        # Some tokenizers take characters back while bytes are missing: then all tokens are decoded.
        text = anchor.head + near if near.startswith(anchor.known) else self._decode([*self.token_ids, token_id])
        whole = text.rstrip(_INCOMPLETE)
        if whole == text:
            return Point(whole, False, True, anchor)
        return Point(max(now.text, whole, key=len), False, False, anchor)

    def push(self, token_id: int) -> None:
        """Append a token."""
        point = self.after(token_id)
        self.token_ids.append(token_id)
        self.points.append(point._replace(anchor=self._next_anchor(point)))

    def rewind(self, count: int) -> None:
        """Take that many tokens off the end."""
        kept = len(self.token_ids) - count
        del self.token_ids[kept:], self.points[kept + 1 :]

    def copy(self) -> "ResponseText":
        """The same response, to go on in another way."""
        other = copy.copy(self)
        other.token_ids, other.points = list(self.token_ids), list(self.points)
        return other

    def _next_anchor(self, point: Point) -> _Anchor:
        """Behind the last token where new characters are complete with it; else the one before."""
        anchor, text = point.anchor, point.text
        # A tokenizer that cleans up spaces changes text far from where it decodes: there every text is decoded whole.
        grown = point.complete and not point.finished and text != anchor.head + anchor.known
        if not grown or self.tokenizer.clean_up_tokenization_spaces:
            return anchor
        known = self._decode(self.token_ids[anchor.end :])
        if not text.endswith(known):
            return anchor
        return _Anchor(anchor.end, len(self.token_ids), text[: len(text) - len(known)], known)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
