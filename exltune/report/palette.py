"""One colour for every bit width, the same in the terminal and in pictures."""

from __future__ import annotations

from bisect import bisect_right

from exltune.schema.mix import UNQUANTIZED_BITS

Rgb = tuple[int, int, int]

#: Few bits are red, many blue; widths between these are mixed. 16 is unquantized.
_COLOURS: tuple[tuple[float, Rgb], ...] = (
    (1.0, (103, 0, 31)),
    (2.0, (178, 24, 43)),
    (2.5, (214, 96, 77)),
    (3.0, (244, 165, 130)),
    (3.5, (253, 219, 199)),
    (4.0, (224, 236, 243)),
    (5.0, (146, 197, 222)),
    (6.0, (67, 147, 195)),
    (8.0, (33, 102, 172)),
    (UNQUANTIZED_BITS, (5, 48, 97)),
)


def bit_colour(bits: float) -> Rgb:
    """The colour of a width from 1 to 16 bits."""
    above = min(max(bisect_right(_COLOURS, bits, key=lambda entry: entry[0]), 1), len(_COLOURS) - 1)
    (low, first), (high, second) = _COLOURS[above - 1], _COLOURS[above]
    share = min(max((bits - low) / (high - low), 0.0), 1.0)
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(first, second, strict=True))
    return red, green, blue


def text_colour(background: Rgb) -> str:
    """Black or white, whichever can be read on it (Rec. 601 luma)."""
    red, green, blue = background
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
