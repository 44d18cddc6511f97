"""Layers over cards: a contiguous partition, card after card, of pieces that cannot be cut.

A card needs the sum of its pieces' own bytes, and the largest of those shared or needed for a moment. Fewer pieces on
a card never need more, so filling card after card with as many pieces as fit, as exllamav3's autosplit does, finds a
split wherever there is one: no other split has more pieces on the first n cards, for any n.
Source: exllamav3 1.6.5, model/model_ls.py (_load_autosplit), which moves to the next card where a module does not fit
and never comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """A piece that stays whole: a decoder layer, or the head with the last norm. All in bytes.

    weights, kv: as reported. other: norms, buffers and copies. static: buffers that all pieces of a card share.
    transient: needed for a moment, one piece at a time.
    """

    weights: int
    kv: int
    other: int
    static: int
    transient: int


@dataclass(frozen=True)
class Load:
    """The pieces on one card together."""

    weights: int = 0
    kv: int = 0
    other: int = 0
    static: int = 0
    transient: int = 0

    def plus(self, piece: Piece) -> Load:
        """The load with one more piece."""
        return Load(
            self.weights + piece.weights,
            self.kv + piece.kv,
            self.other + piece.other,
            max(self.static, piece.static),
            max(self.transient, piece.transient),
        )

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return self.weights + self.kv + self.other + self.static + self.transient


#: Pieces on each card, as (first, end) indices.
Split = tuple[tuple[int, int], ...]


def load_of(pieces: Sequence[Piece]) -> Load:
    """Memory of these pieces on one card."""
    load = Load()
    for piece in pieces:
        load = load.plus(piece)
    return load


def fill(pieces: Sequence[Piece], capacities: Sequence[int]) -> Split | None:
    """Card after card as many pieces as fit, as autosplit does; None where some are left over."""
    split: list[tuple[int, int]] = []
    first = 0
    for capacity in capacities:
        end, load = first, Load()
        while end < len(pieces) and (more := load.plus(pieces[end])).total <= capacity:
            end, load = end + 1, more
        split.append((first, end))
        first = end
    return tuple(split) if first == len(pieces) else None


def level(pieces: Sequence[Piece], capacities: Sequence[int]) -> tuple[Split, int]:
    """The contiguous split that leaves the fullest card the most room, and that room: negative where nothing fits.

    Exact: by bisection over the room, in whole bytes. Cards beyond the last piece stay empty.
    """
    # A card may be smaller than its reserves: its capacity is below zero before anything lies on it.
    low, high = min(0, *capacities) - load_of(pieces).total, max(capacities)
    best = _with_room(pieces, capacities, low)
    while low < high:
        middle = (low + high + 1) // 2
        found = _with_room(pieces, capacities, middle)
        if found is None:
            high = middle - 1
        else:
            low, best = middle, found
    assert best is not None
    return best, low


def _with_room(pieces: Sequence[Piece], capacities: Sequence[int], room: int) -> Split | None:
    return fill(pieces, [capacity - room for capacity in capacities])
