"""Layers over cards, against every contiguous split there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exltune.budget.placement.split import Piece, fill, level, load_of

SIZES = st.integers(0, 20)
PIECES = st.lists(st.builds(Piece, SIZES, SIZES, SIZES, SIZES, SIZES), min_size=1, max_size=7)
CARDS = st.lists(st.integers(-5, 120), min_size=1, max_size=4)


def every_split(pieces: Sequence[Piece], cards: int) -> Iterator[list[Sequence[Piece]]]:
    for cuts in combinations_with_replacement(range(len(pieces) + 1), cards - 1):
        yield [pieces[first:end] for first, end in pairwise((0, *cuts, len(pieces)))]


def room(parts: Sequence[Sequence[Piece]], capacities: Sequence[int]) -> int:
    """What is left on the fullest card that holds anything, written out."""
    left = []
    for part, capacity in zip(parts, capacities, strict=True):
        if part:
            kept = sum(piece.weights + piece.kv + piece.other for piece in part)
            left.append(capacity - kept - max(p.static for p in part) - max(p.transient for p in part))
    return min(left)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(PIECES, CARDS)
def test_filling_finds_a_split_wherever_there_is_one(pieces: list[Piece], capacities: list[int]) -> None:
    best = max(room(parts, capacities) for parts in every_split(pieces, len(capacities)))
    found = fill(pieces, capacities)
    assert (found is not None) == (best >= 0)
    if found is not None:
        assert room([pieces[first:end] for first, end in found], capacities) >= 0


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(PIECES, CARDS)
def test_the_level_split_is_the_best_of_all(pieces: list[Piece], capacities: list[int]) -> None:
    # Pieces of nothing may lie anywhere; give every piece some weight, so that an empty card is a choice.
    pieces = [Piece(p.weights + 1, p.kv, p.other, p.static, p.transient) for p in pieces]
    split, found = level(pieces, capacities)
    assert found == max(room(parts, capacities) for parts in every_split(pieces, len(capacities)))
    assert room([pieces[first:end] for first, end in split], capacities) == found


def test_autosplit_fills_card_after_card() -> None:
    pieces = [Piece(10, 0, 0, 0, 5)] * 6
    assert fill(pieces, [35, 100, 100]) == ((0, 3), (3, 6), (6, 6))
    assert fill(pieces, [34, 34]) is None


def test_transients_and_statics_do_not_add_up() -> None:
    assert load_of([Piece(10, 1, 2, 7, 5), Piece(10, 1, 2, 3, 9)]).total == 2 * 13 + 7 + 9
