"""What each part of the search is worth, and how far a very long search gets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from search_methods import PASSES, Assignment, Cell, Row, mutated, ours
from search_stage import OPEN, QUANTS, SAME_WIDTHS, at_measurement, with_flat_singles

from exltune.search import SOURCES, SearchOptions
from exltune.search.law import surrogate

_ALL = SearchOptions(passes=PASSES)
#: Settings of the loop that leave something out.
_SETTINGS: Mapping[str, SearchOptions] = {
    "no-refit": replace(_ALL, refit=False),
    **{f"no-{name}": replace(_ALL, sources=tuple(one for one in SOURCES if one != name)) for name in SOURCES},
}
#: What of the wide space is open: the heads alone, or half-integer widths alone.
_SPACES = {"heads-only": (SAME_WIDTHS, OPEN), "half-widths-only": (QUANTS.widths, None)}
#: Parts of the loop, hand rules, measured swaps, fitted exponents, the loop itself: left out on the wide space.
PARTS = (*_SETTINGS, "no-rules", "no-singles", "fixed-exponent", "no-loop")
ABLATIONS = (*PARTS, *_SPACES)

#: Real scores that the long search may spend, and moves that it tries at a time.
_LONG, _TRIES = 224, 16


def ablation(cell: Cell, name: str) -> Row:
    """Ours on the wide space without one part, or on a part of that space."""
    widths, head = _SPACES.get(name, (QUANTS.widths, OPEN))
    space = cell.stage.space(cell.delta, widths, head)
    settings = _SETTINGS.get(name, _ALL)
    if name == "no-loop":
        settings = replace(_ALL, passes=1.0)
    if name == "no-singles":
        measurement = space.problem.measurement
        assert measurement is not None
        space = at_measurement(space, with_flat_singles(measurement))
    with _exponents_fixed() if name == "fixed-exponent" else nullcontext():
        return ours(cell, name, space, settings, rules=name != "no-rules")


@contextmanager
def _exponents_fixed() -> Iterator[None]:
    """q of every role stays at what theory says."""
    spread = surrogate._Q_SPREAD
    surrogate._Q_SPREAD = 1e-3
    try:
        yield
    finally:
        surrogate._Q_SPREAD = spread


def bound(cell: Cell) -> Row:
    """Exchange by real scores on the whole search set, from where twice the passes of ours end: no law."""
    start = ours(cell, "bound", cell.stage.space(cell.delta), replace(_ALL, passes=2 * PASSES))
    problem, rng = cell.problem, random.Random(0)
    best = problem.assignment_of(start.choices)
    assert best is not None
    known = {best: start.search_kld}
    while len(known) < _LONG:
        batch: dict[Assignment, None] = {}
        for _ in range(20 * _TRIES):
            child = mutated(problem, best, rng)
            if child not in known and len(batch) < _TRIES:
                batch[child] = None
        if not batch:
            break
        known |= dict(zip(batch, cell.kld(list(batch)), strict=True))
        best = min(known, key=lambda assignment: known[assignment])
    choices = problem.candidate_of("", best).mix.choices
    return cell.row("bound", choices, passes=len(known) + start.passes, mixes=len(known) + start.mixes)
