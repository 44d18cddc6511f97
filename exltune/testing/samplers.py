"""The contract of every sampler. A test class inherits it and gives the row of the sampler's table or entry point:

    import pytest
    from exltune.search import SamplerRow
    from exltune.testing.samplers import SamplerContract
    from my_package.samplers import ANNEALING

    class TestAnnealing(SamplerContract):
        @pytest.fixture
        def row(self) -> SamplerRow:
            return ANNEALING

It turns the knobs of a search over a made-up model, whose KL(reference‖mix) is a known law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from exltune.schema.search import ScoredMix
from exltune.search import (
    History,
    Knobs,
    Proposal,
    SamplerRow,
    Search,
    SearchOptions,
    SearchProblem,
    Surrogate,
    knob_study,
    open_storage,
    solve,
)
from exltune.search.loop.samplers import Turn
from exltune.testing.laws import Law, problem_of, random_law

#: Knobs over one or two sizes, on the same storage when they are made again: (sizes, seed, file) as keywords.
MakeKnobs = Callable[..., Knobs]

_ROWS = 8


class SamplerContract:
    """One or several trials may be open at a time, some are told as failed, and a kill may leave some open for good."""

    @pytest.fixture
    def row(self) -> SamplerRow:
        """The sampler; to be given."""
        raise NotImplementedError("give the fixture row: it returns the SamplerRow under test")

    @pytest.fixture
    def law(self) -> Law:
        """KL(reference‖mix) of every mix."""
        return random_law()

    @pytest.fixture
    def problems(self, law: Law) -> tuple[SearchProblem, ...]:
        """Two sizes of one model."""
        return tuple(problem_of(law, target, rows=2) for target in (3.0, 3.6))

    @pytest.fixture
    def make(self, row: SamplerRow, problems: tuple[SearchProblem, ...], tmp_path: Path) -> MakeKnobs:
        """Knobs that the sampler turns."""

        def knobs(*, sizes: int = 1, seed: int = 0, file: str = "a.db") -> Knobs:
            storage = open_storage(f"sqlite:///{tmp_path / file}")
            study = knob_study(storage, "k", row.make(seed), objectives=sizes)
            return Knobs(study, problems[:sizes], [_rules(problem) for problem in problems[:sizes]])

        return knobs

    def test_settings_are_within_their_bounds(self, make: MakeKnobs, law: Law) -> None:
        knobs = make()
        turns = _turns(knobs, law, 11)
        assert all(turn.problem == 0 for turn in turns)
        assert all(np.isfinite(z).all() and (z > 0).all() for turn in turns for z in turn.energies)
        trials = knobs.study.trials
        assert len(trials) == 11
        assert all(trial.params and _within_bounds(trial) for trial in trials)

    def test_a_batch_may_be_asked_before_any_is_told(self, make: MakeKnobs, law: Law) -> None:
        knobs = make()
        turns = [_ask(knobs) for _ in range(4)]
        assert len({turn.trial for turn in turns}) == 4
        for turn in reversed(turns):
            knobs.tell(turn.trial, 0.1, 1)
        assert [trial.state for trial in knobs.study.trials] == [TrialState.COMPLETE] * 4
        _turns(knobs, law, 6)

    def test_a_dropped_mix_is_told_as_failed(self, make: MakeKnobs) -> None:
        knobs = make()
        for number in range(10):
            turn = _ask(knobs)
            knobs.tell(turn.trial, None if number % 2 else 0.2 + 0.01 * number, 1)
        states = [trial.state for trial in knobs.study.trials]
        assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (5, 5)
        with pytest.raises(KeyError):
            knobs.tell(0, 0.1, 1)

    def test_it_goes_on_where_all_have_failed(self, make: MakeKnobs) -> None:
        knobs = make()
        for _ in range(10):
            knobs.tell(_ask(knobs).trial, None, 0)
        assert all(trial.state is TrialState.FAIL and _within_bounds(trial) for trial in knobs.study.trials)

    def test_after_a_kill_it_asks_the_same_again(self, make: MakeKnobs, law: Law) -> None:
        killed = make()
        asked = [*_turns(killed, law, 9), _ask(killed)]
        again = make()
        assert again.study.trials == []
        repeated = [*_turns(again, law, 9), _ask(again)]
        for one, other in zip(asked, repeated, strict=True):
            assert np.array_equal(np.concatenate(one.energies), np.concatenate(other.energies))

    def test_a_seed_makes_it_reproducible(self, make: MakeKnobs, law: Law) -> None:
        def run(file: str, seed: int) -> list[npt.NDArray[np.float64]]:
            return [np.concatenate(turn.energies) for turn in _turns(make(seed=seed, file=file), law, 11)]

        first, same, other = run("a.db", 3), run("b.db", 3), run("c.db", 4)
        assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))

    def test_it_traces_a_front_over_sizes(self, row: SamplerRow, make: MakeKnobs, law: Law) -> None:
        if row.objectives < 2:
            pytest.skip("it knows one objective")
        knobs = make(sizes=2)
        assert {turn.problem for turn in _turns(knobs, law, 12)} == {0, 1}
        assert knobs.study.directions == [StudyDirection.MINIMIZE] * 2
        assert all(len(trial.values) == 2 for trial in knobs.study.best_trials)

    def test_a_search_with_it_keeps_its_budget_and_is_reproducible(self, make: MakeKnobs, law: Law) -> None:
        def run(file: str) -> Search:
            knobs = make(file=file)
            search = Search(knobs.problems, SearchOptions(passes=12, batch=5), _ROWS, _history(), knobs)
            return _searched(search, law)

        search = run("a.db")
        scored = list(search.ledger.history.mixes.values())
        assert search.ledger.passes <= 12
        assert [mix for mix in scored if mix.source == "knobs"]
        for assignment in search.finalists(0).values():
            assert search.problems[0].within(assignment)
        begun = law.rows(scored[0].choices, range(_ROWS)).mean()
        final = search.problems[0].candidate_of("", search.incumbent[0]).mix.choices
        assert law.rows(final, range(_ROWS)).mean() <= begun
        assert [mix.choices for mix in run("b.db").ledger.history.mixes.values()] == [mix.choices for mix in scored]


def _rules(problem: SearchProblem) -> Mapping[str, Sequence[float]]:
    """Bits of every unit by two rules: all low, and the later units high."""
    low, high = ([unit.options[place].bits for unit in problem.units] for place in (0, -1))
    half = len(low) // 2
    return {"low": low, "late": low[:half] + high[half:]}


def _ask(knobs: Knobs) -> Turn:
    energies = Surrogate(knobs.problems[0]).energies()
    found = [solve(problem, energies) for problem in knobs.problems]
    return knobs.ask(energies, [assignment for assignment in found if assignment is not None])


def _turns(knobs: Knobs, law: Law, count: int) -> list[Turn]:
    """So many asked and told; about ten are past the random start of most samplers."""
    found = []
    for _ in range(count):
        turn = _ask(knobs)
        problem = knobs.problems[turn.problem]
        assignment = solve(problem, turn.energies)
        assert assignment is not None
        assert problem.within(assignment)
        kld = law.kld(problem.candidate_of("", assignment).mix.choices)
        knobs.tell(turn.trial, kld, problem.bytes_of(assignment))
        found.append(turn)
    return found


def _within_bounds(trial: FrozenTrial) -> bool:
    return all(_inside(trial.params[name], bounds) for name, bounds in trial.distributions.items())


def _inside(value: Any, bounds: BaseDistribution) -> bool:
    if isinstance(bounds, CategoricalDistribution):
        return value in bounds.choices
    assert isinstance(bounds, FloatDistribution | IntDistribution)
    return bool(bounds.low <= value <= bounds.high)


def _history() -> History:
    return History()


def _searched(search: Search, law: Law) -> Search:
    """The search after its rounds, every mix scored by the law."""
    _score(search.first(), search, law, _ROWS)
    while proposals := search.propose():
        _score(proposals, search, law, search.ledger.half)
        _score(search.survivors(proposals), search, law, _ROWS)
        search.conclude(proposals)
    return search


def _score(proposals: Sequence[Proposal], search: Search, law: Law, rows: int) -> None:
    search.ledger.history.add(
        [
            ScoredMix(
                source=one.source,
                choices=one.candidate.choices,
                size_bytes=one.size_bytes,
                kld_rows=tuple(law.rows(one.candidate.choices, range(rows)).tolist()),
            )
            for one in proposals
        ]
    )
