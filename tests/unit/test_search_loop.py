"""The loop over known laws: it finds what sums of swaps miss, keeps its bounds, and believes no luck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import LawEngine, bpw_range, cache_of, run_search

from exltune.search import (
    SearchOptions,
    Surrogate,
    baseline_mixes,
)
from exltune.testing.laws import Law, problem_of, random_law


def _interacting() -> Law:
    """Gate and down of all experts hurt each other, attention and its output make up for each other."""
    plain = random_law(seed=3)
    pairs = [(f"{layer}.experts.gate_up", f"{layer}.experts.down", 1.5) for layer in (1, 2)]
    pairs += [(f"{layer}.attn.q", f"{layer}.experts.down", 1.0) for layer in (1, 2)]
    pairs += [(f"{layer}.attn.o", f"{layer}.attn.{half}", -0.57) for layer in range(3) for half in "kv"]
    pairs += [(f"0.mlp.{half}", "0.mlp.down", -0.71) for half in ("gate", "up")]
    assert {key for one, other, _ in pairs for key in (one, other)} <= set(plain.scales)
    return Law(plain.scales, gamma=0.8, pairs=pairs)


@pytest.mark.slow
@pytest.mark.parametrize("target", [2.6, 3.2])
def test_it_beats_sums_of_single_swaps_where_units_interact(target: float) -> None:
    law = _interacting()
    problem = problem_of(law, target)
    ran = run_search([problem], LawEngine(law), SearchOptions(passes=40, batch=10))
    found = law.kld(problem.candidate_of("", ran.search.incumbent[0]).mix.choices)
    seeds = {seed.name: law.kld(seed.mix.choices) for seed in baseline_mixes(problem)}
    assert {"knapsack", "knapsack-fit"} <= seeds.keys()
    assert found < min(seeds.values())
    assert found < 0.97 * min(seeds["knapsack"], seeds["knapsack-fit"])


@pytest.mark.slow
def test_refitting_makes_the_law_right() -> None:
    law = _interacting()
    problem = problem_of(law, 3.2)
    found = [
        run_search([problem], LawEngine(law), SearchOptions(passes=20, batch=8, refit=refit), knobs=None).search
        for refit in (True, False)
    ]
    # Each law predicts what the search without refitting has scored.
    mixes = found[1].ledger.scored()
    assignment = [problem.assignment_of(mix.choices) for mix, _ in mixes]
    truth = np.log([kld for _, kld in mixes])
    errors = [float(np.abs(search.surrogate.predict(assignment) - truth).mean()) for search in found]
    assert errors[0] < 0.5 * errors[1]
    assert found[1].surrogate.gamma == Surrogate(problem).gamma


@pytest.mark.slow
@settings(deadline=None, max_examples=5)
@given(
    passes=st.floats(0, 9),
    batch=st.integers(1, 9),
    rows=st.integers(1, 5),
    sizes=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_passes_are_never_exceeded(passes: float, batch: int, rows: int, sizes: int, seed: int) -> None:
    law = random_law(seed=seed, noise=0.1)
    problems = [problem_of(law, target, rows=rows) for target in (2.8, 3.2, 4.0)[:sizes]]
    engine = LawEngine(law)
    ran = run_search(problems, engine, SearchOptions(passes=passes, batch=batch, seed=seed), rows=rows, knobs=None)
    assert engine.row_passes / rows <= passes + 1e-9
    assert ran.search.ledger.passes == pytest.approx(engine.row_passes / rows)
    # And what is left would not have paid for another mix at every size.
    assert passes - engine.row_passes / rows < 1 + sizes


@pytest.mark.slow
def test_the_handed_over_mix_keeps_budget_and_floors() -> None:
    low, high = bpw_range()

    @settings(deadline=None, max_examples=4)
    @given(share=st.floats(0.15, 1), seed=st.integers(0, 99), floor=st.sampled_from([None, 3.0, 4.0]))
    def check(share: float, seed: int, floor: float | None) -> None:
        law = random_law(seed=seed, noise=0.2, pairs=[("0.attn.q", "0.mlp.down", 1.0)])
        floors = {"0.attn.q": floor, "1.shared.down": floor} if floor else {}
        problem = problem_of(law, low + share * (high - low), floors=floors)
        ran = run_search([problem], LawEngine(law), SearchOptions(passes=8, batch=6, seed=seed))
        for assignment in ran.search.finalists(0).values():
            made = problem.candidate_of("", assignment)
            assert made.bpw <= problem.target_bpw + 1e-9
            assert made.meets_floors
            assert all(float(made.mix.choices[key]) >= least for key, least in floors.items())

    check()


@pytest.mark.slow
def test_the_better_half_goes_on_and_the_laws_optimum_always() -> None:
    law = random_law(noise=0.3)
    problem = problem_of(law, 3.2)
    engine = LawEngine(law)
    ran = run_search([problem], engine, SearchOptions(passes=14, batch=8, sources=("thompson", "exchange")), knobs=None)
    scored = list(ran.search.ledger.history.mixes.values())
    whole = [mix for mix in scored if len(mix.kld_rows) == 8]
    half = [mix for mix in scored if len(mix.kld_rows) == 4]
    assert len(whole) + len(half) == len(scored)
    assert half
    assert all(len(mix.kld_rows) == 8 for mix in scored if mix.source == "exact")
    # The rungs are halves of the same rows: what is kept is what was scored.
    for mix in scored:
        assert mix.kld_rows == pytest.approx(law.rows(mix.choices, range(len(mix.kld_rows))))
    first_round = [mix for mix in scored[1:9] if mix.source != "exact"]
    kept = [np.mean(mix.kld_rows[:4]) for mix in first_round if len(mix.kld_rows) == 8]
    lost = [np.mean(mix.kld_rows[:4]) for mix in first_round if len(mix.kld_rows) == 4]
    assert max(kept) <= min(lost)


def test_luck_on_the_first_rung_is_not_believed() -> None:
    """Every mix but the incumbent one seems 30 % better on the first half of the rows, and is not on the others."""
    plain = random_law(noise=0.01)
    problem = problem_of(plain, 3.2)
    incumbent = run_search([problem], LawEngine(plain), SearchOptions(passes=1), knobs=None).search.incumbent[0]
    optimum = problem.candidate_of("", incumbent).mix.choices

    def luck(choices: Mapping[str, str], row: int) -> float:
        if choices == optimum:
            return 1.0
        return 0.5 if row < 8 else 1.05

    lucky = Law(plain.scales, noise=0.01, luck=luck)
    settings_ = SearchOptions(passes=12, batch=8, refit=False, sources=("exchange",))
    ran = run_search([problem], LawEngine(lucky), settings_, rows=16, knobs=None)
    search = ran.search
    best = min(search.ledger.scored(), key=lambda pair: pair[1])[0]
    assert best.choices != optimum
    assert search.incumbent[0] == incumbent
    assert "search-best" in search.finalists(0)


@pytest.mark.slow
def test_a_move_needs_more_than_twice_its_standard_error() -> None:
    """On fresh rows the same gain is assignment where the rows agree on it, and left where they do not."""
    plain = random_law()
    problem = problem_of(plain, 3.2)
    optimum = problem.candidate_of(
        "", run_search([problem], LawEngine(plain), SearchOptions(passes=1)).search.incumbent[0]
    )

    def moves(spread: float) -> bool:
        def luck(choices: Mapping[str, str], row: int) -> float:
            if choices == optimum.mix.choices:
                return 1.0
            return 0.9 + (spread if row % 2 else -spread)

        law = Law(plain.scales, luck=luck)
        settings_ = SearchOptions(passes=8, batch=6, refit=False, sources=("exchange",))
        ran = run_search([problem], LawEngine(law), settings_, rows=16, knobs=None)
        return problem.candidate_of("", ran.search.incumbent[0]).mix.choices != optimum.mix.choices

    assert moves(0.02)
    assert not moves(0.5)


@pytest.mark.slow
def test_several_sizes_share_what_was_scored() -> None:
    law = _interacting()
    problems = [problem_of(law, target) for target in (2.8, 3.0, 3.5)]
    engine = LawEngine(law)
    ran = run_search(problems, engine, SearchOptions(passes=30, batch=9))
    assert len(ran.search.incumbent) == 3
    assert all(len(done.incumbent_kld) == 3 for done in ran.search.rounds)
    sizes = [problem.bytes_of(assignment) for problem, assignment in zip(problems, ran.search.incumbent, strict=True)]
    assert all(size <= problem.budget_bytes for size, problem in zip(sizes, problems, strict=True))
    klds = [
        law.kld(p.candidate_of("", assignment).mix.choices)
        for p, assignment in zip(problems, ran.search.incumbent, strict=True)
    ]
    assert klds[0] > klds[1] > klds[2]
    # Learning is from all of them: the law is right at each size.
    for problem, assignment, kld in zip(problems, ran.search.incumbent, klds, strict=True):
        difficulty = law.rows({}, range(8)).mean() / law.kld({})
        assert np.exp(ran.search.surrogate.predict([assignment])[0]) == pytest.approx(kld * difficulty, rel=0.1)
        assert problem.within(assignment)


def test_nothing_left_to_try_ends_it() -> None:
    """At the smallest budget there is one mix: it is scored, and that is that."""
    law = random_law()
    low, _ = bpw_range()
    problem = problem_of(law, low + 1e-9)
    engine = LawEngine(law)
    ran = run_search([problem], engine, SearchOptions(passes=1000, batch=4))
    assert [mix.choices for mix, _ in engine.scored] == [problem.candidate_of("", ran.search.incumbent[0]).mix.choices]
    assert ran.search.rounds == []


@pytest.mark.parametrize("which", ["all", "the optimum"])
def test_mixes_that_are_not_finite_are_dropped_and_never_proposed_again(which: str) -> None:
    law = random_law(noise=0.05)
    problem = problem_of(law, 3.2)
    optimum = run_search([problem], LawEngine(law), SearchOptions(passes=1), knobs=None).search.incumbent[0]
    bad = problem.candidate_of("", optimum).mix.choices
    asked: list[Mapping[str, str]] = []

    def nan(choices: Mapping[str, str]) -> bool:
        if which == "all" or choices == bad:
            asked.append(dict(choices))
            return True
        return False

    ran = run_search([problem], LawEngine(law, nan=nan), SearchOptions(passes=10, batch=6))
    distinct = {tuple(sorted(choices.items())) for choices in asked}
    assert len(asked) == len(distinct) == len(ran.scores.dropped)
    if which == "all":
        # They cost their passes too, or it would never end.
        assert ran.search.ledger.history.mixes == {}
        assert 8 < ran.search.ledger.passes <= 10
    else:
        assert len(asked) == 1
        assert 8 < ran.search.ledger.passes <= 10
        # What is incumbent is the best of those that have a score.
        assert ran.search.incumbent[0] != optimum
        assert ran.search.rounds[-1].incumbent_kld[0] is not None


@pytest.mark.slow
def test_the_same_seed_finds_the_same() -> None:
    law = _interacting()
    problem = problem_of(law, 3.2)

    def run(seed: int) -> list[tuple[str, tuple[float, ...]]]:
        ran = run_search([problem], LawEngine(law), SearchOptions(passes=12, batch=6, seed=seed))
        return [(mix.source, mix.kld_rows) for mix in ran.search.ledger.history.mixes.values()]

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.slow
def test_a_finished_search_taken_up_again_holds_the_same_and_scores_nothing() -> None:
    law = _interacting()
    problem = problem_of(law, 3.2)
    engine, settings_ = LawEngine(law), SearchOptions(passes=20, batch=8)
    scores = cache_of(engine)
    first = run_search([problem], engine, settings_, scores=scores).search
    done = len(engine.scored)
    again = run_search([problem], engine, settings_, scores=scores).search
    assert len(engine.scored) == done
    assert (again.incumbent, again.rounds) == (first.incumbent, first.rounds)
    assert again.finalists(0) == first.finalists(0)
    # With more passes it goes on from there.
    more = run_search([problem], engine, SearchOptions(passes=24, batch=8), scores=scores).search
    assert len(engine.scored) > done
    assert first.ledger.passes < more.ledger.passes <= 24


def test_one_row_is_a_search_set_too() -> None:
    law = random_law()
    problem = problem_of(law, 3.2, rows=1)
    ran = run_search([problem], LawEngine(law), SearchOptions(passes=8, batch=4), rows=1)
    assert ran.search.ledger.passes == 8
    assert "search" in ran.search.finalists(0)


def test_only_what_keeps_the_budget_is_proposed() -> None:
    """A predicate such as a split over GPUs is asked of every proposal."""
    law = random_law()
    problem = problem_of(law, 3.2)
    picky = replace(problem, fits=lambda choices: choices["2.attn.o"] != "8")
    engine = LawEngine(law)
    run_search([picky], engine, SearchOptions(passes=10, batch=6))
    proposed = [mix.choices["2.attn.o"] for mix, _ in engine.scored[1:]]
    assert proposed
    assert "8" not in proposed
