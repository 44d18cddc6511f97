"""The cost limit of a measurement, and the plan that follows."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from exltune.errors import UsageError
from exltune.measurement.cost import passes
from exltune.measurement.exhaustive import ExhaustivePlan
from exltune.measurement.few_swaps import FewSwapsPlan, least_budget
from exltune.measurement.plan import ProbePlan
from exltune.measurement.summary import QuantHead
from exltune.schema.inventory import Inventory
from exltune.schema.mix import Choice

#: Default share of the passes for all swaps on all rows: its mixes are as good (benchmarks/measurement.py).
DEFAULT_SHARE = 0.1

_FORM = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)(?P<hours>h?)")
EVERYTHING = "all"


@dataclass(frozen=True)
class Budget:
    """Passes over the model on all rows, or hours; neither: a tenth of the exhaustive plan's passes.

    everything: every swap on all rows.
    """

    passes: float | None = None
    hours: float | None = None
    everything: bool = False


def parse_budget(text: str | None) -> Budget:
    """`60` passes, `1.5h` hours, `all`; nothing for the default. Raises: UsageError."""
    if text is None:
        return Budget()
    if text == EVERYTHING:
        return Budget(everything=True)
    form = _FORM.fullmatch(text)
    if form is None or float(form["number"]) <= 0:
        raise UsageError(
            f"{text!r} is not a budget", fix="Give `budget` as passes (60), as hours (1.5h), or all for every swap"
        )
    amount = float(form["number"])
    return Budget(hours=amount) if form["hours"] else Budget(passes=amount)


def plan_for(
    inventory: Inventory,
    level: int,
    quants: Mapping[Choice, float],
    head: QuantHead,
    rows: int,
    budget: Budget,
    seconds_per_pass: Callable[[], float],
    same: Collection[str] = (),
) -> ProbePlan:
    """The plan of a model for a budget. quants: bits of all base quants, ascending; seconds_per_pass: asked for hours;
    same: names of mixes that are the reference.

    Raises: UsageError where the budget does not pay for the fewest rows.
    """
    exhaustive = ExhaustivePlan.of(inventory, level, list(quants), head, rows, same)
    everything = passes(inventory, exhaustive.batches, rows)
    allowed = budget.passes
    if budget.hours is not None:
        allowed = 3600 * budget.hours / seconds_per_pass()
    elif allowed is None and not budget.everything:
        allowed = max(DEFAULT_SHARE * everything, least_budget(inventory, level, quants, head, rows, same))
    if allowed is None or allowed >= everything:
        return exhaustive
    return FewSwapsPlan.of(inventory, level, quants, head, rows, allowed, same)
