"""Probe plans: what is scored, in which order, and what is left after a kill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

from exltune.errors import UsageError
from exltune.inventory import inventory_from_config
from exltune.measurement import (
    DEFAULT_SHARE,
    Batch,
    Budget,
    ExhaustivePlan,
    FewSwapsPlan,
    ProbePlan,
    QuantHead,
    parse_budget,
    passes,
    plan_for,
    swap_units,
)
from exltune.schema.inventory import Role
from exltune.schema.score import Score
from exltune.testing.laws import CONFIG

INVENTORY = inventory_from_config(CONFIG)
HEAD = QuantHead("6", 6.0, "mul1", {"2": 4.0, "6": 6.0, "8": 8.0})
ROWS = 4


def scored(batches: Iterable[Batch]) -> dict[str, Score]:
    """Scores of all that the batches ask for."""
    return {mix.name: _score(mix.name, batch.rows.stop) for batch in batches for mix in batch.mixes}


def _score(name: str, rows: int) -> Score:
    sums = (1.0,) * rows
    return Score(mix=name, positions=3, kl_ref_mix=sums, kl_mix_ref=sums, nll=sums, top_k=((1,) * rows,) * 5)


def names(batches: Iterable[Batch]) -> list[str]:
    """Names of all mixes in order."""
    return [mix.name for batch in batches for mix in batch.mixes]


def test_the_exhaustive_plan_swaps_every_group_at_every_width_once() -> None:
    plan = ExhaustivePlan.of(INVENTORY, 4, ["2", "6", "8"], HEAD, ROWS)
    asked = names(plan.next({}))
    swaps = [f"{group.id}@{choice}" for group in INVENTORY.groups for choice in ("2", "6", "8")]
    heads = [f"head@{choice}" for choice in ("2", "6", "8")]
    cache = [f"cache.{half}@{bits}" for half in "kv" for bits in range(2, 9)]
    assert asked == ["uniform@2", "uniform@6", "uniform@8", *swaps, *heads, *cache]
    uniform = plan.batches[0].mixes[0].choices
    assert uniform == dict.fromkeys((group.id for group in INVENTORY.groups), "2") | {"head": "6"}
    assert plan.next(scored(plan.batches)) == []


def test_a_pair_is_swapped_together_at_level_3_and_apart_at_level_4() -> None:
    swapped = {}
    for level in (3, 4):
        plan = ExhaustivePlan.of(INVENTORY, level, ["2"], HEAD, ROWS)
        for mix in (mix for batch in plan.batches[1:] for mix in batch.mixes):
            swapped[mix.name] = {key for key, choice in mix.choices.items() if choice == "2"}
    assert swapped["1.attn.kv@2"] == {"1.attn.k", "1.attn.v"}
    assert swapped["1.attn.v@2"] == {"1.attn.v"}
    assert swapped["0.mlp.gate_up@2"] == {"0.mlp.gate", "0.mlp.up"}
    # Routed experts have one width for gate and up at any level.
    assert swapped["1.experts.gate_up@2"] == {"1.experts.gate_up"}


def test_a_batch_is_asked_for_again_whole_until_every_mix_has_all_its_rows() -> None:
    plan = ExhaustivePlan.of(INVENTORY, 3, ["2", "8"], HEAD, ROWS)
    scores: Mapping[str, Score] = scored(plan.batches)
    broken = plan.batches[2].mixes[1].name
    without = {name: score for name, score in scores.items() if name != broken}
    assert plan.next(without) == [plan.batches[2]]
    assert plan.next(without | {broken: _score(broken, ROWS - 1)}) == [plan.batches[2]]
    assert plan.next(without | {broken: _score(broken, ROWS + 1)}) == []


QUANTS = {"2": 2.0, "3": 3.0, "4": 4.0, "8": 8.0}
MANY = 128


def few_swaps(budget: float, level: int = 3) -> FewSwapsPlan:
    return FewSwapsPlan.of(INVENTORY, level, QUANTS, HEAD, MANY, budget)


def test_few_swaps_keep_the_budget_and_use_it() -> None:
    for budget in (4.0, 6.0, 12.0):
        plan = few_swaps(budget)
        (rows,) = {batch.rows for batch in plan.batches}
        assert rows.start == 0
        spent = passes(INVENTORY, plan.batches, MANY)
        assert spent <= budget < spent * (rows.stop + 1) / rows.stop


def test_few_swaps_have_every_part_at_the_lowest_and_half_of_each_kind_two_bits_above() -> None:
    for level in (0, 1, 2, 3):
        asked = names(few_swaps(6.0, level).batches)
        parts = [unit for unit in swap_units(INVENTORY, level, QUANTS, HEAD.distinct) if unit.layer is not None]
        assert all(f"{part.id}@2" in asked for part in parts)
        twice = Counter(part.id.partition(".")[2] for part in parts if f"{part.id}@4" in asked)
        once = Counter(part.id.partition(".")[2] for part in parts)
        assert all(abs(2 * twice[kind] - once[kind]) <= 1 for kind in once)
        ids = {part.id for part in parts}
        rest = [name for name in asked if not name.startswith("uniform") and name.split("@")[0] not in ids]
        assert rest == ["head@2", "cache.k@4", "cache.v@4"]
        assert [name for name in asked if name.startswith("uniform")] == ["uniform@2", "uniform@3", "uniform@4"]


def test_with_passes_to_spare_further_widths_are_swapped_up_to_all() -> None:
    exhaustive = ExhaustivePlan.of(INVENTORY, 3, list(QUANTS), HEAD, MANY)
    everything = passes(INVENTORY, exhaustive.batches, MANY)
    for budget in (everything / 2, 0.8 * everything, everything):
        plan = few_swaps(budget)
        assert {batch.rows for batch in plan.batches} == {range(MANY)}
        assert passes(INVENTORY, plan.batches, MANY) <= budget
    swaps = {name for name in names(exhaustive.batches) if not name.startswith("uniform")}
    assert swaps <= set(names(plan.batches))


def test_a_budget_that_pays_for_no_rows_says_what_would_do() -> None:
    with pytest.raises(UsageError, match="rows") as error:
        few_swaps(0.5)
    least = float(str(error.value).split("`budget` ")[1].split()[0])
    (rows,) = {batch.rows for batch in few_swaps(least).batches}
    assert rows.stop == 8


def test_passes_count_shared_states_once() -> None:
    """A pass is all layers and the head: swaps in the last layer cost one layer and the head beside the reference."""
    plan = ExhaustivePlan.of(INVENTORY, 3, ["2", "8"], HEAD, 4)
    last = plan.batches[-2]
    assert {mix.name.split(".")[0] for mix in last.mixes} == {str(INVENTORY.layers - 1)}
    assert passes(INVENTORY, [last], 4) == pytest.approx((2 * len(last.mixes) + 1 + 3) / 4)
    half = Batch(last.mixes, range(2))
    assert passes(INVENTORY, [half], 4) == passes(INVENTORY, [last], 4) / 2


def test_a_swap_is_seen_by_the_routers_behind_it() -> None:
    routers = {unit.id: unit.routers for unit in swap_units(INVENTORY, 3, QUANTS, HEAD.distinct)}
    assert [spec.layer for spec in INVENTORY.linears if spec.role is Role.ROUTER] == [1, 2]
    expected = {"0.attn.q": 2, "0.mlp.down": 2, "1.attn.o": 2, "1.experts.down": 1, "1.shared.gate_up": 1}
    expected |= {"2.attn.kv": 1, "2.experts.gate_up": 0, "head": 0, "cache.k": 2}
    assert {key: routers[key] for key in expected} == expected
    coarse = {unit.id: unit.routers for unit in swap_units(INVENTORY, 0, QUANTS, HEAD.distinct)}
    assert (coarse["0"], coarse["1"], coarse["2"]) == (2, 2, 1)


def test_budgets_are_passes_hours_or_all() -> None:
    assert parse_budget(None) == Budget()
    assert parse_budget("60") == Budget(passes=60.0)
    assert parse_budget("1.5h") == Budget(hours=1.5)
    assert parse_budget("all") == Budget(everything=True)
    for text in ("", "h", "0", "0h", "-3", "2d", "1e3", "nan"):
        with pytest.raises(UsageError, match="is not a budget"):
            parse_budget(text)


def test_a_budget_picks_the_plan() -> None:
    exhaustive = ExhaustivePlan.of(INVENTORY, 3, list(QUANTS), HEAD, MANY)
    everything = passes(INVENTORY, exhaustive.batches, MANY)

    def plan(budget: Budget, seconds: float = 0.0) -> ProbePlan:
        return plan_for(INVENTORY, 3, QUANTS, HEAD, MANY, budget, lambda: seconds)

    assert plan(Budget(everything=True)) == plan(Budget(passes=2 * everything)) == exhaustive
    assert plan(Budget()) == few_swaps(DEFAULT_SHARE * everything)
    assert plan(Budget(passes=9.0)) == plan(Budget(hours=1.0), 400.0) == few_swaps(9.0)
    assert plan(Budget(hours=1.0), 3600 / (2 * everything)) == exhaustive
    few_rows = plan_for(INVENTORY, 3, QUANTS, HEAD, 8, Budget(), lambda: 0.0)
    assert {batch.rows for batch in few_rows.next({})} == {range(8)}
