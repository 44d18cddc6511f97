"""Where proposals come from: the law's optimum, posterior samples, exchange moves, Optuna's knobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exltune.search.law.surrogate import Surrogate
from exltune.search.loop.samplers import Knobs
from exltune.search.problem.problem import SearchProblem
from exltune.search.solve.exact import exchanges, solve

Assignment = tuple[int, ...]

#: Solutions tried for every proposal wanted, before a source is given up for the round.
_TRIES = 4


@dataclass(frozen=True)
class Bench:
    """What sources work with: the fitted law, the sizes, and the mix that is incumbent at each of them."""

    surrogate: Surrogate
    problems: Sequence[SearchProblem]
    incumbent: Sequence[Assignment]
    optima: Sequence[Assignment]
    rng: np.random.Generator
    wanted: int
    knobs: Knobs | None = None


@dataclass(frozen=True)
class Idea:
    """A mix for one of the problems; trial: the knobs' trial that it answers."""

    source: str
    problem: int
    assignment: Assignment
    trial: int | None = None


#: Yields ideas, new or not, until it has none.
Source = Callable[[Bench], Iterator[Idea]]


def thompson(bench: Bench) -> Iterator[Idea]:
    """Exact optima of samples from the law's posterior."""
    for _ in range(_TRIES * bench.wanted):
        for number, problem in enumerate(bench.problems):
            assignment = solve(problem, bench.surrogate.energies(bench.rng))
            if assignment is not None:
                yield Idea("thompson", number, assignment)


def exchange(bench: Bench) -> Iterator[Idea]:
    """One unit of the incumbent mix moved a step, the others paying or gaining at equal bytes."""
    energies = bench.surrogate.energies()
    for number, (problem, incumbent) in enumerate(zip(bench.problems, bench.incumbent, strict=True)):
        for assignment in exchanges(problem, energies, incumbent, bench.rng, _TRIES * bench.wanted):
            yield Idea("exchange", number, assignment)


def knobs(bench: Bench) -> Iterator[Idea]:
    """Exact optima of the law as Optuna's settings bend it."""
    energies = bench.surrogate.energies()
    for _ in range(_TRIES * bench.wanted if bench.knobs else 0):
        assert bench.knobs is not None
        turn = bench.knobs.ask(energies, bench.optima)
        assignment = solve(bench.problems[turn.problem], turn.energies)
        if assignment is None:
            bench.knobs.tell(turn.trial, None, 0)
        else:
            yield Idea("knobs", turn.problem, assignment, turn.trial)


#: Ways to propose beside the law's own optimum, by name; a new one is one more function.
SOURCES: Mapping[str, Source] = {"thompson": thompson, "exchange": exchange, "knobs": knobs}
