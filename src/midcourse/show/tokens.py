"""Tokens coloured by reward: what the colours mean, and lines for the terminal.

Rewards of prefixes of different lengths are not comparable: training leaves one free constant per length. So no raw
reward is ever turned into a colour. Several texts are coloured by the distance of each reward from the mean at its
position (`by_position`), a single text by how much the reward changes at each token (`by_change`).
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.style import Style
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from midcourse.decode.steps import Generation, Step
from midcourse.lm.prompt import Prompt, as_messages
from midcourse.lm.text import TextStream
from midcourse.rewards.calibration import Calibration
from midcourse.rewards.contract import Score
from midcourse.terminal import visible


@dataclass(frozen=True)
class Token:
    """A piece of text as it is shown: whole characters, with the reward of the prefix that ends with it.

    Attributes:
        text: its characters; "" for the end mark and other tokens that write nothing.
        reward: of the prefix; None if none was computed.
        detail: further lines for whoever asks for this token.
        tokens: how many of the model's tokens it holds (several if they share a character).
        end: it ends the text (EOS, or what was cut off as a stop string).
        centred: the reward less the mean one at this length; None without a calibration.
        probability: that the prefix is preferred to one of its length with the mean reward; None without a calibration.
    """

    text: str
    reward: float | None
    detail: str = ""
    tokens: int = 1
    end: bool = False
    centred: float | None = None
    probability: float | None = None


def tokens_of(generation: Generation, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Return a generation's tokens; joined they are its text, and what lies past it (EOS, stop string) is one mark."""
    steps, tokens, room, done = generation.steps, [], len(generation.text), 0
    for text, part in _pieces([step.token_id for step in steps], tokenizer):
        if not room:
            break
        tokens.append(_token(text[:room], steps[part], tokenizer))
        room, done = max(room - len(text), 0), part.stop
    if done < len(steps):
        tokens.append(_token("", steps[done:], tokenizer, end=generation.finish_reason == "stop"))
    return tokens


def tokens_of_score(
    score: Score,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Calibration | None = None,
    *,
    finished: bool = True,
) -> list[Token]:
    """Return a scored text's tokens; EOS is a mark.

    Args:
        calibration: gives the centred rewards and probabilities; None leaves them out.
        finished: the score's last reward is that of the finished text.
    """
    nothing: list[float | None] = [None] * len(score.rewards)
    centred = calibration.centred(score.prefixes, finished=finished) if calibration else nothing
    probabilities = calibration.against_mean(score.prefixes, finished=finished) if calibration else nothing
    return [
        Token(
            text=text,
            reward=score.prefixes[part.stop - 1],
            detail=_ids(score.token_ids[part], tokenizer),
            tokens=part.stop - part.start,
            end=not text and part.stop == len(score.token_ids),
            centred=centred[part.stop - 1],
            probability=probabilities[part.stop - 1],
        )
        for text, part in _pieces(score.token_ids, tokenizer)
    ]


def _pieces(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, slice]]:
    """Yield (whole characters, the tokens that hold them) in order; special tokens have no text."""
    stream, first = TextStream(tokenizer), 0
    for i, token_id in enumerate(token_ids):
        text = stream.push(token_id)
        if text or _is_special(token_id, tokenizer):
            yield text, slice(first, i + 1)
            first = i + 1
    if first < len(token_ids):
        yield "", slice(first, len(token_ids))


def _is_special(token_id: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    decode = tokenizer.decode
    return not decode([token_id], skip_special_tokens=True) and bool(decode([token_id], skip_special_tokens=False))


def _token(text: str, steps: Sequence[Step], tokenizer: PreTrainedTokenizerBase, end: bool = False) -> Token:
    """Return the steps that wrote `text` as one token, with the last step's reward and the sums of what adds up."""
    last = steps[-1]
    logprob, reference, guidance_kl, total_kl = (
        sum(getattr(step, name) for step in steps)
        for name in ("logprob", "reference_logprob", "guidance_kl", "total_kl")
    )
    others = [
        f"{tokenizer.decode([c.token_id])!r} {c.reward:.3f}"
        for c in last.candidates
        if c.reward is not None and c.token_id != last.token_id
    ]
    lines = [
        _ids([step.token_id for step in steps], tokenizer),
        f"logprob {logprob:.3f}, under the language model {reference:.3f}",
        f"guidance KL {guidance_kl:.3f}, total KL {total_kl:.3f} nats",
        *([f"rewards of other candidates: {', '.join(others[:4])}"] if others else []),
    ]
    return Token(text, last.reward, "\n".join(lines), len(steps), end)


def _ids(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    if len(token_ids) > 1:
        return "token ids " + ", ".join(map(str, token_ids))
    special = f" {tokenizer.decode(list(token_ids))}" if _is_special(token_ids[0], tokenizer) else ""
    return f"token id {token_ids[0]}{special}"


@dataclass(frozen=True)
class Colouring:
    """A way from rewards to numbers on a diverging scale.

    Attributes:
        scale: the number that gets the full colour.
        offsets: what to subtract at each position; None colours by the change of the reward.
    """

    scale: float
    offsets: tuple[float, ...] | None = None

    def values(self, tokens: Sequence[Token]) -> list[float | None]:
        """Return one number per token, in units of the reward; None if there is no finite reward."""
        return changes(tokens) if self.offsets is None else centred(tokens, self.offsets)

    @property
    def meaning(self) -> str:
        """Return what a colour stands for."""
        if self.offsets is None:
            return "the change of the reward at this token (the first one against 0)"
        return "the reward up to this token, less the mean reward of all texts shown at the same position"


def by_change(*rows: Sequence[Token]) -> Colouring:
    """Return the colouring of texts that are each read by themselves: r_i - r_{i-1}."""
    return Colouring(_scale([value for row in rows for value in changes(row)]))


def by_position(rows: Sequence[Sequence[Token]]) -> Colouring:
    """Return the colouring of a set of texts: each reward less the set's mean at its position."""
    offsets = centre(rows)
    return Colouring(_scale([value for row in rows for value in centred(row, offsets)]), tuple(offsets))


def centre(rows: Sequence[Sequence[Token]]) -> list[float]:
    """Return the mean reward at every position, over the rows that have one there (0 if none has).

    Positions count the model's tokens: a free constant belongs to each length, not to each character.
    """
    columns: list[list[float]] = []
    for row in rows:
        for token, position in zip(row, positions(row), strict=True):
            columns.extend([] for _ in range(position + 1 - len(columns)))
            if (reward := finite(token.reward)) is not None:
                columns[position].append(reward)
    return [statistics.fmean(column) if column else 0.0 for column in columns]


def centred(tokens: Sequence[Token], offsets: Sequence[float]) -> list[float | None]:
    """Return each reward less the offset at its position."""
    return [
        None if (reward := finite(token.reward)) is None else reward - offsets[position]
        for token, position in zip(tokens, positions(tokens), strict=True)
    ]


def changes(tokens: Sequence[Token]) -> list[float | None]:
    """Return each reward less the one before it; the first less 0."""
    differences: list[float | None] = []
    before = 0.0
    for token in tokens:
        reward = finite(token.reward)
        differences.append(None if reward is None else reward - before)
        before = before if reward is None else reward
    return differences


def positions(tokens: Sequence[Token]) -> list[int]:
    return [total - 1 for total in accumulate(token.tokens for token in tokens)]


def finite(number: float | None) -> float | None:
    return None if number is None or not math.isfinite(number) else number


def _scale(values: Sequence[float | None]) -> float:
    """Return the 95th percentile of the sizes, rounded up to two digits: one far value must not bleach all others."""
    sizes = sorted(abs(value) for value in values if value is not None)
    size = sizes[math.ceil(0.95 * len(sizes)) - 1] if sizes else 0.0
    if size < 1e-9:  # nothing but rounding
        return 1.0
    digit = 10.0 ** (math.floor(math.log10(size)) - 1)
    return float(f"{math.ceil(size / digit) * digit:.2g}")


@dataclass(frozen=True)
class Palette:
    """A diverging scale under one ink: colours as "#rrggbb"."""

    ink: str
    zero: str
    low: str
    high: str

    def background(self, shade: int) -> str:
        """Return the colour of a shade, from -SHADES (lowest) to SHADES (highest)."""
        pole = self.high if shade > 0 else self.low
        share = abs(shade) / SHADES
        pairs = zip(bytes.fromhex(self.zero[1:]), bytes.fromhex(pole[1:]), strict=True)
        return "#" + bytes(round(zero + share * (end - zero)) for zero, end in pairs).hex()


SHADES = 8


LIGHT = Palette(ink="#1d1f23", zero="#ffffff", low="#ea8a2c", high="#5b9fe0")


DARK = Palette(ink="#e9ebee", zero="#1c1f24", low="#9c4f08", high="#1f62ad")


# Dark ink on middle greys stands out equally on light and dark terminals.
TERMINAL = Palette(ink="#000000", zero="#a0a0a0", low="#f28c28", high="#5fa8f5")


END_MARK, OTHER_MARK, LINE_MARK = "\N{END OF PROOF}", "\N{MIDDLE DOT}", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"


def shade(value: float, scale: float) -> int:
    """Return the step of the diverging scale for a value: -SHADES at -scale and below, SHADES at scale and above."""
    return round(SHADES * max(-1.0, min(1.0, value / scale)))


def mark(token: Token) -> str:
    """Return a sign for what could not be seen: the end, a token without text, a line's end; mostly ""."""
    if token.end:
        return END_MARK
    if not any(letter.isprintable() or letter.isspace() for letter in token.text):
        return OTHER_MARK
    return LINE_MARK if "\n" in token.text else ""


def score_line(tokens: Sequence[Token], colouring: Colouring) -> Text:
    """Return the text with coloured backgrounds; plain text where colours cannot be shown."""
    line = Text()
    for token, value in zip(tokens, colouring.values(tokens), strict=True):
        text = END_MARK if token.end else visible(token.text)
        line.append(text, _style(value, colouring.scale))
    return line


def score_legend(colouring: Colouring) -> Text:
    """Return the scale of `score_line` and what it means."""
    legend = Text()
    for step in range(-SHADES, SHADES + 1, 4):
        value = colouring.scale * step / SHADES
        legend.append(f" {value:+.3g} " if step else " 0 ", _style(value, colouring.scale))
    return legend.append(f"  {colouring.meaning}")


def score_table(tokens: Sequence[Token]) -> Table:
    """Return a row per token: position, text, reward, change; centred reward and probability if tokens have them."""
    names = ("position", "token", "reward", "change", *(("centred", "probability") if calibrated(tokens) else ()))
    table = Table(*names, box=None)
    for column in (table.columns[0], *table.columns[2:]):
        column.justify = "right"
    for token, position, change in zip(tokens, positions(tokens), changes(tokens), strict=True):
        text = Text(END_MARK if token.end else visible(repr(token.text)))
        figures = number(token.reward, 3), number(change, 3, sign=True)
        shown = number(token.centred, 3, sign=True), chance(token.probability)
        table.add_row(str(position + 1), text, *figures, *shown[: len(names) - 4])
    return table


def calibrated(tokens: Sequence[Token]) -> bool:
    """Return whether any of the tokens has a centred reward."""
    return any(token.centred is not None for token in tokens)


def _style(value: float | None, scale: float) -> Style:
    step = 0 if value is None else shade(value, scale)
    return Style(color=TERMINAL.ink, bgcolor=TERMINAL.background(step)) if step else Style.null()


def prompt_text(prompt: Prompt) -> str:
    """Return a prompt to read: a text as it is, chat messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in as_messages(prompt))


def number(value: float | int | None, digits: int = 2, sign: bool = False) -> str:
    """Return a figure with a fixed number of digits; "n/a" if there is none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    # Adding 0 turns the -0.0 that rounding can leave into 0.0.
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def chance(probability: float | None) -> str:
    """Return a probability to two digits, never as certain as 0 or 1; "n/a" if there is none."""
    if probability is None or not math.isfinite(probability):
        return "n/a"
    return "<0.01" if probability < 0.01 else ">0.99" if probability > 0.99 else f"{probability:.2f}"
