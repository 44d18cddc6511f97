"""What is taken where the user does not say; imports nothing, so that the command line can show it at once."""

from __future__ import annotations

#: Bit widths of the base quants.
DEFAULT_WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)

#: Those of a tune: half rates too, where the codebook has them.
WIDE_WIDTHS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)

#: Bits of the output head: exllamav3's default.
DEFAULT_HEAD_BITS = 6.0

#: Tokens of a prompt that are computed at a time: exllamav3's default.
DEFAULT_CHUNK = 2048

#: Sequences at a time: the default max_batch_size of exllamav3's Cache.
DEFAULT_SLOTS = 16

#: Rows over all four token sets together, and tokens in a row.
DEFAULT_ROWS = 256
DEFAULT_ROW_LENGTH = 256
