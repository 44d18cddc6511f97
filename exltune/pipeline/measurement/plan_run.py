"""Runs a probe plan: its mixes are scored, or taken from the stored scores."""

from __future__ import annotations

from exltune.engines.base import Progress
from exltune.measurement import ProbePlan
from exltune.schema.mix import Mix
from exltune.schema.score import Score
from exltune.store.score_cache import CachedRows, Resumed


def run_plan(plan: ProbePlan, scores: CachedRows, progress: Progress, resumed: Resumed) -> dict[str, Score]:
    """Scores by mix name, once the plan is complete; resumed is told how many of its first mixes are stored."""
    found: dict[str, Score] = {}
    asked: dict[str, int] = {}
    while batches := plan.next(found):
        scores.fill([(batch.mixes, batch.rows) for batch in batches], progress, resumed if not found else None)
        mixes: dict[str, Mix] = {mix.name: mix for batch in batches for mix in batch.mixes}
        for batch in batches:
            asked |= {mix.name: max(batch.rows.stop, asked.get(mix.name, 0)) for mix in batch.mixes}
        found |= {name: scores.score_of(mix, range(asked[name])) for name, mix in mixes.items()}
    return found
