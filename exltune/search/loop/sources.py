"""Where proposals come from: the law's optimum, posterior samples, exchange moves, Optuna's knobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exltune.schema.candidate import Candidate
from exltune.search.law.surrogate import Surrogate
from exltune.search.loop.samplers import Knobs
from exltune.search.problem.problem import SearchProblem
from exltune.search.solve.exact import exchanges, solve

Assignment = tuple[int, ...]

#: Solutions tried for every proposal wanted, before a source is given up for the round.
_TRIES = 4


@dataclass(frozen=True)
class Bench:
    """Inputs of the sources: the fitted law, the sizes, and the mix that is incumbent at each of them."""

    surrogate: Surrogate
    problems: Sequence[SearchProblem]
    incumbent: Sequence[Assignment]
    optima: Sequence[Assignment]
    rng: np.random.Generator
    wanted: int
    knobs: Knobs | None = None

    def proposal(self, source: str, problem: int, assignment: Assignment, trial: int | None = None) -> Proposal:
        """A proposal for one of the problems."""
        return propose(self.problems, self.surrogate, source, problem, assignment, trial)


@dataclass(frozen=True)
class Proposal:
    """A mix to score for one of the problems, as the law predicts it.

    size_bytes: of all units, half of the cache among them where it is one. trial: the knobs' trial that it answers.
    """

    source: str
    problem: int
    assignment: Assignment
    candidate: Candidate
    log_kld: float
    size_bytes: int
    trial: int | None = None


def propose(
    problems: Sequence[SearchProblem],
    surrogate: Surrogate,
    source: str,
    number: int,
    assignment: Assignment,
    trial: int | None = None,
) -> Proposal:
    """A proposal for a problem, by its number."""
    log_kld = float(surrogate.predict([assignment])[0])
    candidate = problems[number].candidate_of(source, assignment)
    size_bytes = problems[number].bytes_of(assignment)
    return Proposal(source, number, assignment, candidate, log_kld, size_bytes, trial)


#: Yields proposals, new or not, until it has none.
Source = Callable[[Bench], Iterator[Proposal]]


def thompson(bench: Bench) -> Iterator[Proposal]:
    """Exact optima of samples from the law's posterior."""
    for _ in range(_TRIES * bench.wanted):
        for number, problem in enumerate(bench.problems):
            assignment = solve(problem, bench.surrogate.energies(bench.rng))
            if assignment is not None:
                yield bench.proposal("thompson", number, assignment)


def exchange(bench: Bench) -> Iterator[Proposal]:
    """One unit of the incumbent mix moved a step, the others paying or gaining at equal bytes."""
    energies = bench.surrogate.energies()
    for number, (problem, incumbent) in enumerate(zip(bench.problems, bench.incumbent, strict=True)):
        for assignment in exchanges(problem, energies, incumbent, bench.rng, _TRIES * bench.wanted):
            yield bench.proposal("exchange", number, assignment)


def knobs(bench: Bench) -> Iterator[Proposal]:
    """Exact optima of the law as Optuna's settings bend it."""
    energies = bench.surrogate.energies()
    for _ in range(_TRIES * bench.wanted if bench.knobs else 0):
        assert bench.knobs is not None
        turn = bench.knobs.ask(energies, bench.optima)
        assignment = solve(bench.problems[turn.problem], turn.energies)
        if assignment is None:
            bench.knobs.tell(turn.trial, None, 0)
        else:
            yield bench.proposal("knobs", turn.problem, assignment, turn.trial)


#: Ways to propose beside the law's own optimum, by name; a new one is one more function.
SOURCES: Mapping[str, Source] = {"thompson": thompson, "exchange": exchange, "knobs": knobs}
