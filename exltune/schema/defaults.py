"""Defaults of the user's options; imports nothing, so that the command line can show it at once."""

from __future__ import annotations

#: Bit widths of the base quants.
DEFAULT_WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)

#: Those of a tune: half rates too, where the codebook has them.
WIDE_WIDTHS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)

#: Bits of the output head: exllamav3's default.
DEFAULT_HEAD_BITS = 6.0
_LEAST_HEAD_BITS = 3.0

#: Tokens of a prompt that are computed at a time: exllamav3's default.
DEFAULT_CHUNK = 2048

#: Sequences at a time: the default max_batch_size of exllamav3's Cache.
DEFAULT_SLOTS = 16

#: Rows over all four token sets together, and tokens in a row.
DEFAULT_ROWS = 256
DEFAULT_ROW_LENGTH = 256


def auto_head_bits(width: float) -> float:
    """Mixes of few bits want heads of few: 3 at 2 bits, 4 at 2.5, 5 at 3, then exllamav3's 6, and 8 at 8."""
    least, most = _LEAST_HEAD_BITS, DEFAULT_HEAD_BITS
    return width if width > DEFAULT_HEAD_BITS else min(max(round(2 * width - 1), least), most)
