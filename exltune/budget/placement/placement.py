"""Weights, cache and overheads on cards: whether they fit, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exltune.budget.memory.weights import Weights
from exltune.budget.placement.demand import Workload, pieces
from exltune.budget.placement.split import Load, Piece, fill, level, load_of
from exltune.budget.placement.tensor_parallel import parallel_loads
from exltune.schema.plan import GpuPlan


@dataclass(frozen=True)
class Placement:
    """room: bytes left on the fullest card in the best split, negative where it lacks as much; all in bytes.

    fullest, bare_room: weights and cache on the fullest card of the split that is best before any overhead, and the
    room left on it.
    """

    cards: tuple[GpuPlan, ...]
    room: int
    fullest: int
    bare_room: int

    @property
    def fits(self) -> bool:
        """Whether every card holds its part."""
        return self.room >= 0


def fits_on(work: Workload, weights: Weights, capacities: Sequence[int]) -> bool:
    """Whether it fits; cheaper than place."""
    usable = [capacity - work.per_card for capacity in capacities]
    if work.use.tensor_parallel:
        loads = parallel_loads(work, weights, usable)
        return max(load.total for load in loads) > 0 and all(
            load.total <= size for load, size in zip(loads, usable, strict=True) if load.total
        )
    return fill(pieces(work, weights), usable) is not None


def place(work: Workload, weights: Weights, capacities: Sequence[int]) -> Placement:
    """Where everything lies: as autosplit fills the cards, or, where nothing fits, as it overflows least."""
    usable = [capacity - work.per_card for capacity in capacities]
    if work.use.tensor_parallel:
        return _parallel(work, weights, capacities, usable)
    parts = pieces(work, weights)
    split, room = level(parts, usable)
    if room >= 0:
        split = fill(parts, usable) or split
    cards = tuple(
        _card(work, number, capacity, load_of(parts[first:end]), (first, end))
        for number, (capacity, (first, end)) in enumerate(zip(capacities, split, strict=True))
    )
    return Placement(cards, room, *_before_overhead(parts, capacities))


def total_overhead(work: Workload, weights: Weights) -> int:
    """Overheads of a single card that holds everything."""
    load = load_of(pieces(work, weights))
    return work.per_card + load.other + load.static + load.transient


def _before_overhead(parts: Sequence[Piece], capacities: Sequence[int]) -> tuple[int, int]:
    bare = [Piece(piece.weights, piece.kv, 0, 0, 0) for piece in parts]
    split, room = level(bare, capacities)
    loads = [load_of(bare[first:end]).total for first, end in split]
    return next(load for load, size in zip(loads, capacities, strict=True) if size - load == room), room


def _parallel(work: Workload, weights: Weights, capacities: Sequence[int], usable: Sequence[int]) -> Placement:
    loads = parallel_loads(work, weights, usable)
    count = len(work.profile.layers)
    cards = tuple(
        _card(work, number, capacity, load, (0, count + 1) if load.total else (0, 0))
        for number, (capacity, load) in enumerate(zip(capacities, loads, strict=True))
    )
    rooms = [card.slack_bytes for card, load in zip(cards, loads, strict=True) if load.total]
    bare = [(capacity - load.weights - load.kv, load) for capacity, load in zip(capacities, loads, strict=True)]
    left, fullest = min(bare, key=lambda entry: entry[0])
    return Placement(
        cards, min(rooms, default=max(usable) - sum(work.kv) - weights.total), fullest.weights + fullest.kv, left
    )


def _card(work: Workload, number: int, capacity: int, load: Load, part: tuple[int, int]) -> GpuPlan:
    first, end = part
    layers = min(end, len(work.profile.layers))
    overhead = work.per_card + load.other + load.static + load.transient if end > first else 0
    return GpuPlan(
        gpu=number,
        capacity_bytes=capacity,
        layers=(first, layers - 1) if layers > first else None,
        head=end > len(work.profile.layers),
        weights_bytes=load.weights,
        kv_bytes=load.kv,
        overhead_bytes=overhead,
        slack_bytes=capacity - load.weights - load.kv - overhead,
    )
