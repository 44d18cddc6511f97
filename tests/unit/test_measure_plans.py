"""Probe plans: what is scored, in which order, and what is left after a kill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from laws import CONFIG

from exltune.inventory import inventory_from_config
from exltune.measure import Batch, ExhaustivePlan, QuantHead
from exltune.schema.score import Score

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
    plan = ExhaustivePlan.of(INVENTORY, 3, ["2", "6", "8"], HEAD, ROWS)
    asked = names(plan.next({}))
    swaps = [f"{group.id}@{choice}" for group in INVENTORY.groups for choice in ("2", "6", "8")]
    heads = [f"head@{choice}" for choice in ("2", "6", "8")]
    cache = [f"cache.{half}@{bits}" for half in "kv" for bits in range(2, 9)]
    assert asked == ["uniform@2", "uniform@6", "uniform@8", *swaps, *heads, *cache]
    uniform = plan.batches[0].mixes[0].choices
    assert uniform == dict.fromkeys((group.id for group in INVENTORY.groups), "2") | {"head": "6"}
    assert plan.next(scored(plan.batches)) == []


def test_a_batch_is_asked_for_again_whole_until_every_mix_has_all_its_rows() -> None:
    plan = ExhaustivePlan.of(INVENTORY, 3, ["2", "8"], HEAD, ROWS)
    scores: Mapping[str, Score] = scored(plan.batches)
    broken = plan.batches[2].mixes[1].name
    without = {name: score for name, score in scores.items() if name != broken}
    assert plan.next(without) == [plan.batches[2]]
    assert plan.next(without | {broken: _score(broken, ROWS - 1)}) == [plan.batches[2]]
    assert plan.next(without | {broken: _score(broken, ROWS + 1)}) == []
