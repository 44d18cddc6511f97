"""What is known of a reference that is a quant itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantReference:
    """bits, head_bits: of its weights. same: names of mixes that put into a part, or into all groups, what is there
    already: their KL is 0 by definition, and they are not scored.
    """

    bits: float
    head_bits: float
    same: frozenset[str]
