"""The search: propose whole mixes, take in their scores, refit, solve exactly again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from exltune.schema.search import Round, ScoredMix
from exltune.search.law.surrogate import Surrogate, uniform_mixes
from exltune.search.loop.history import History
from exltune.search.loop.ledger import Ledger
from exltune.search.loop.samplers import Knobs
from exltune.search.loop.sources import SOURCES, Assignment, Bench, Proposal, propose
from exltune.search.problem.problem import SearchProblem
from exltune.search.solve.exact import solve

#: A move is accepted where the paired t of its gain on fresh rows is above this.
_ACCEPT_T = 2.0


@dataclass(frozen=True)
class SearchOptions:
    """passes: model passes over the search set that the loop may spend. batch: mixes proposed in a round.

    sources: sources that take part. refit: whether the law learns from scored mixes.
    """

    passes: float = 48.0
    batch: int = 16
    seed: int = 0
    sources: tuple[str, ...] = tuple(SOURCES)
    refit: bool = True


class Search:
    """One search over problems that share their units and differ in budget.

    rows: of the search set. Mixes are scored on its first half; the better half of a round goes on to the rest, which
    are fresh rows to whatever proposed it. The caller scores and adds to the history. The same scores lead to the same
    mixes, so that a search that was killed runs again to where it was, as long as its scores were kept.
    """

    def __init__(
        self,
        problems: Sequence[SearchProblem],
        options: SearchOptions,
        rows: int,
        history: History,
        knobs: Knobs | None = None,
    ) -> None:
        self.problems, self.options, self.knobs = tuple(problems), options, knobs
        self.ledger = Ledger(history, rows)
        self.surrogate = Surrogate(self.problems[0])
        self.incumbent = [self._optimum(problem) for problem in self.problems]
        self.rounds: list[Round] = []
        self._begun = len(history.mixes)

    def first(self) -> list[Proposal]:
        """The law's first optima: they have to be scored on all rows before anything is compared with them."""
        return self._exact(self.incumbent, self.ledger.rows)[: max(math.floor(self._passes_left()), 0)]

    def propose(self) -> list[Proposal]:
        """New mixes for the first rung; none when the passes are spent or nothing new is to be found."""
        self._catch_up()
        count = self.options.batch
        while count and self._most_passes(count) > self._passes_left():
            count -= 1
        if not count:
            return []
        optima = [self._optimum(problem) for problem in self.problems]
        found = self._exact(optima, 1)[:count]
        rng = np.random.default_rng([self.options.seed, self._begun, len(self.rounds)])
        bench = Bench(self.surrogate, self.problems, self.incumbent, optima, rng, count, self.knobs)
        return found + self._in_turn([SOURCES[name](bench) for name in self.options.sources], found, count)

    def survivors(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """Of the mixes scored on the first rung the better half of every size, and always the law's optima."""
        kept: list[Proposal] = []
        for number in range(len(self.problems)):
            scored = [
                (kld, index, one)
                for index, one in enumerate(proposals)
                if one.problem == number and (kld := self.ledger.first_rung(one.candidate.choices)) is not None
            ]
            ranked = sorted(scored)
            better = ranked[: math.ceil(len(ranked) / 2)]
            kept += [one for place in ranked if (one := place[2]).source == "exact" or place in better]
        return kept

    def conclude(self, proposals: Sequence[Proposal]) -> Round:
        """Accept moves, tell the knobs, and report the round that `proposals` were."""
        for one in proposals:
            self._tell(one)
        for number in range(len(self.problems)):
            self._accept(number)
        pairs = [(one.log_kld, math.log(kld)) for one in proposals if (kld := self.ledger.kld(one.candidate.choices))]
        predicted, measured = np.array(pairs).reshape(-1, 2).T
        varied = len(pairs) > 2 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
        done = Round(
            number=len(self.rounds) + 1,
            passes=self.ledger.passes,
            sources=dict(Counter(one.source for one in proposals)),
            rank_correlation=float(spearmanr(predicted, measured).statistic) if varied else None,
            log_error=float(np.std(predicted - measured)) if len(pairs) > 1 else None,
            incumbent_kld=tuple(self._incumbent_kld(number) for number in range(len(self.problems))),
            gamma=self.surrogate.gamma,
        )
        self.rounds.append(done)
        return done

    def finalists(self, number: int) -> dict[str, Assignment]:
        """The search's offers at one size: its incumbent, its best score, and the law's own optimum."""
        self._catch_up()
        problem = self.problems[number]
        found = {"search": self.incumbent[number], "search-law": self._optimum(problem)}
        fitting = self._fitting(number)
        if fitting:
            found["search-best"] = min(fitting, key=lambda pair: float(np.mean(pair[1].kld_rows)))[0]
        distinct = {assignment: name for name, assignment in reversed(found.items())}
        return {name: assignment for assignment, name in distinct.items()}

    def _in_turn(self, sources: list[Iterator[Proposal]], found: Sequence[Proposal], count: int) -> list[Proposal]:
        """New proposals of all sources in turn, until there are `count` with those already found."""
        assignment = {one.assignment for one in found}
        fresh: list[Proposal] = []
        while sources and len(found) + len(fresh) < count:
            for source in list(sources):
                proposal = self._next_new(source, assignment)
                if proposal is None:
                    sources.remove(source)
                    continue
                fresh.append(proposal)
                assignment.add(proposal.assignment)
                if len(found) + len(fresh) >= count:
                    break
        return fresh

    def _next_new(self, source: Iterator[Proposal], assignment: set[Assignment]) -> Proposal | None:
        """The source's next mix that nobody has scored or proposed; None when it runs dry."""
        for proposal in source:
            new = proposal.assignment not in assignment and not self.ledger.known(proposal.candidate.choices)
            if new and self.problems[proposal.problem].within(proposal.assignment):
                return proposal
            self._tell(proposal)
        return None

    def _exact(self, optima: Sequence[Assignment], rows: int) -> list[Proposal]:
        """The law's optima that were not scored on so many rows yet, each once."""
        made = (propose(self.problems, self.surrogate, "exact", number, best) for number, best in enumerate(optima))
        found = {one.assignment: one for one in made}
        return [one for one in found.values() if not self.ledger.known(one.candidate.choices, rows)]

    def _tell(self, one: Proposal) -> None:
        """Tell the knobs the score of their setting's mix, if it has one."""
        if one.trial is not None and self.knobs is not None:
            self.knobs.tell(one.trial, self.ledger.kld(one.candidate.choices), one.size_bytes)

    def _passes_left(self) -> float:
        return self.options.passes - self.ledger.passes + 1e-9

    def _most_passes(self, count: int) -> float:
        """The most that a round of so many proposals costs: at every size the better half goes on, and an optimum."""
        rows, half = self.ledger.rows, self.ledger.half
        going_on = min(count, (count + 3 * len(self.problems)) // 2)
        return (count * half + going_on * (rows - half)) / rows

    def _catch_up(self) -> None:
        """Move to better mixes and learn from all that were scored since."""
        for number in range(len(self.problems)):
            self._accept(number)
        if self.options.refit:
            self._learn()

    def _accept(self, number: int) -> None:
        """Move to mixes that are better than the incumbent on the rows beyond the first rung, while one clearly is."""
        fitting = {assignment: np.array(mix.kld_rows) for assignment, mix in self._fitting(number)}
        if self.incumbent[number] not in fitting:
            if fitting:
                self.incumbent[number] = min(fitting, key=lambda assignment: float(fitting[assignment].mean()))
            return
        while True:
            incumbent, best, gain = fitting[self.incumbent[number]], self.incumbent[number], 0.0
            for assignment, rows in fitting.items():
                gains = (incumbent - rows)[self.ledger.half : self.ledger.rows]
                error = float(gains.std(ddof=1)) / math.sqrt(gains.size) if gains.size > 1 else math.inf
                if gains.size and float(gains.mean()) > max(gain, _ACCEPT_T * error):
                    best, gain = assignment, float(gains.mean())
            if best == self.incumbent[number]:
                return
            self.incumbent[number] = best

    def _fitting(self, number: int) -> list[tuple[Assignment, ScoredMix]]:
        """Mixes of this search scored on all rows that keep a size's budget."""
        problem = self.problems[number]
        found = []
        for mix in self.ledger.history.mixes.values():
            assignment = problem.assignment_of(mix.choices)
            if assignment is not None and len(mix.kld_rows) >= self.ledger.rows and problem.within(assignment):
                found.append((assignment, mix))
        return found

    def _incumbent_kld(self, number: int) -> float | None:
        return self.ledger.kld(self._choices(number, self.incumbent[number]))

    def _choices(self, number: int, assignment: Assignment) -> dict[str, str]:
        return dict(self.problems[number].candidate_of("", assignment).choices)

    def _optimum(self, problem: SearchProblem) -> Assignment:
        assignment = solve(problem, self.surrogate.energies())
        assert assignment is not None, "a problem is feasible when it is made"
        return assignment

    def _learn(self) -> None:
        """Fit the law to the measurement and to every mix that was ever scored."""
        assignment, klds = uniform_mixes(self.problems[0])
        for mix, kld in self.ledger.scored():
            options = self.problems[0].assignment_of(mix.choices)
            if options is not None:
                assignment.append(options)
                klds.append(kld)
        incumbent = (self._incumbent_kld(number) for number in range(len(self.problems)))
        self.surrogate.fit(assignment, klds, [kld for kld in incumbent if kld])
