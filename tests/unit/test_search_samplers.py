"""One contract for every sampler that may turn the knobs, in the style of optuna.testing's suites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from exltune.errors import UsageError
from exltune.search import (
    SAMPLERS,
    Knobs,
    SearchProblem,
    Surrogate,
    knob_study,
    load_all_rules,
    open_storage,
    rule_bits,
    sampler,
    search_problem,
    solve,
)
from exltune.search.loop.samplers import ONE_OBJECTIVE, Turn
from exltune.testing.laws import INVENTORY, WIDTHS, measured, random_law

_LAW = random_law()
_PROBLEMS = tuple(
    search_problem(
        INVENTORY,
        target_bpw=target,
        widths=WIDTHS,
        codebook="mul1",
        head_choice="6",
        head_bits=6.0,
        measurement=measured(_LAW, rows=2),
    )
    for target in (3.0, 3.6)
)
_SURROGATE = Surrogate(_PROBLEMS[0])
_ENERGIES = _SURROGATE.energies()
_OPTIMA = [solve(problem, _ENERGIES) for problem in _PROBLEMS]
_RULES = load_all_rules()[:2]

every_sampler = pytest.mark.parametrize("name", sorted(SAMPLERS))
Make = Callable[..., Knobs]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Knobs over one or two sizes, on the same storage when made again."""

    def knobs(name: str, *, sizes: int = 1, seed: int = 0, file: str = "a.db") -> Knobs:
        chosen = sampler(name, seed, objectives=sizes)
        study = knob_study(open_storage(f"sqlite:///{tmp_path / file}"), "k", chosen, objectives=sizes)
        problems = _PROBLEMS[:sizes]
        return Knobs(study, problems, [rule_bits(problem, _RULES) for problem in problems])

    return knobs


def _ask(knobs: Knobs) -> Turn:
    return knobs.ask(_ENERGIES, _OPTIMA)


def _taken(turn: Turn) -> tuple[int, ...]:
    problem: SearchProblem = _PROBLEMS[turn.problem]
    assignment = solve(problem, turn.energies)
    assert assignment is not None
    assert problem.within(assignment)
    return assignment


def _turns(knobs: Knobs, count: int) -> list[Turn]:
    """So many asked and told, past every sampler's random start."""
    found = []
    for _ in range(count):
        turn = _ask(knobs)
        problem = _PROBLEMS[turn.problem]
        assignment = _taken(turn)
        knobs.tell(turn.trial, _LAW.kld(problem.candidate_of("", assignment).mix.choices), problem.bytes_of(assignment))
        found.append(turn)
    return found


@every_sampler
def test_turns_are_finite_and_give_mixes_within_the_budget(make: Make, name: str) -> None:
    for turn in _turns(make(name), 11):
        assert turn.problem == 0
        assert [len(z) for z in turn.energies] == [len(z) for z in _ENERGIES]
        assert all(np.isfinite(z).all() and (z > 0).all() for z in turn.energies)


@every_sampler
def test_a_batch_may_be_asked_before_any_is_told(make: Make, name: str) -> None:
    knobs = make(name)
    turns = [_ask(knobs) for _ in range(4)]
    assert len({turn.trial for turn in turns}) == 4
    for turn in reversed(turns):
        knobs.tell(turn.trial, 0.1, 1)
    assert [trial.state for trial in knobs.study.trials] == [TrialState.COMPLETE] * 4
    _turns(knobs, 6)


@every_sampler
def test_a_dropped_mix_is_told_as_none(make: Make, name: str) -> None:
    knobs = make(name)
    for number in range(10):
        turn = _ask(knobs)
        knobs.tell(turn.trial, None if number % 2 else 0.2 + 0.01 * number, 1)
    states = [trial.state for trial in knobs.study.trials]
    assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (5, 5)
    with pytest.raises(KeyError):
        knobs.tell(0, 0.1, 1)


@every_sampler
def test_it_goes_on_from_its_storage_with_trials_that_a_kill_left_open(make: Make, name: str) -> None:
    killed = make(name)
    _turns(killed, 9)
    _ask(killed)
    again = make(name, seed=1)
    assert [trial.state for trial in again.study.trials][-1] is TrialState.RUNNING
    assert [turn.trial for turn in _turns(again, 3)] == [10, 11, 12]


@every_sampler
def test_a_seed_makes_it_reproducible(make: Make, name: str) -> None:
    def run(file: str, seed: int) -> list[np.ndarray]:
        return [np.concatenate(turn.energies) for turn in _turns(make(name, seed=seed, file=file), 6)]

    first, same, other = run("a.db", 3), run("b.db", 3), run("c.db", 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - ONE_OBJECTIVE))
def test_a_front_over_sizes(make: Make, name: str) -> None:
    knobs = make(name, sizes=2)
    turns = _turns(knobs, 12)
    assert {turn.problem for turn in turns} == {0, 1}
    for trial in knobs.study.best_trials:
        assert len(trial.values) == 2
    assert knobs.study.directions == [optuna.study.StudyDirection.MINIMIZE] * 2


@pytest.mark.parametrize("name", sorted(ONE_OBJECTIVE))
def test_samplers_of_one_objective_refuse_a_front(name: str) -> None:
    with pytest.raises(UsageError, match="one objective only"):
        sampler(name, 0, objectives=2)


def test_unknown_samplers_are_told_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no sampler 'annealing'") as error:
        sampler("annealing", 0)
    assert all(name in str(error.value) for name in SAMPLERS)


def test_a_rule_pulls_towards_its_own_bits(make: Make) -> None:
    """With all weight on a rule, units that it gives more bits become dearer to leave low, by a factor of 2 a bit."""
    knobs = make("random")
    for _ in range(40):
        turn = _ask(knobs)
        setting = knobs.study.trials[turn.trial].params
        knobs.tell(turn.trial, None, 0)
        if setting["rule"] == "none":
            continue
        wanted = rule_bits(_PROBLEMS[0], _RULES)[setting["rule"]]
        optimum = _OPTIMA[0]
        assert optimum is not None
        for number, unit in enumerate(_PROBLEMS[0].units):
            logs = np.log(_ENERGIES[number])
            logs = logs + setting["exponent"] * (logs - logs[0]) + setting[f"part.{unit.part}"]
            more = wanted[number] - unit.options[optimum[number]].bits
            expected = logs + setting["rule_weight"] * np.log(2) * more
            assert np.log(turn.energies[number]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        return
    pytest.fail("no rule in 40 settings")
