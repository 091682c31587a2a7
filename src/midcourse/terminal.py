"""Prints words for people so that nothing a model, a file or a server wrote can steer their terminal.

A terminal obeys some characters instead of showing them: an escape sequence clears the screen or renames the window, a
bidirectional override lets a line read otherwise than it is. All words for people go through here, where such
characters become visible marks. JSON does not: programs read it, and get what there is.
"""

import sys

# Pictures of the characters of C0 but tab and line feed; C1, and halves of surrogate pairs, which are not text.
CONTROLS: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)},
    127: "\N{SYMBOL FOR DELETE}",
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], "\N{REPLACEMENT CHARACTER}"),
}
_OBEYED = CONTROLS | {
    code: f"\u27e8U+{code:04X}\u27e9" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
}  # with what turns the direction of the text behind it


def visible(text: str) -> str:
    r"""Return a text with a mark for every character that a terminal would obey.

    Examples:
        >>> visible("\x1b[2J \u202e")
        '␛[2J ⟨U+202E⟩'
    """
    return text.translate(_OBEYED)


def say(text: str, end: str = "\n") -> None:
    """Print what a verb was asked for."""
    print(visible(text), end=end, flush=True)


def tell(text: str) -> None:
    """Print what people should know beside it, on standard error."""
    print(visible(text), file=sys.stderr, flush=True)
