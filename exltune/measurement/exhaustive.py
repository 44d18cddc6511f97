"""The exhaustive plan: every part at every base quant's bits, on all rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from exltune.measurement.plan import Batch
from exltune.measurement.probes import probe_batches, uniform_mixes, wider_probes
from exltune.measurement.summary import QuantHead
from exltune.schema.inventory import Inventory
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score


@dataclass(frozen=True)
class ExhaustivePlan:
    """Uniform mixes, every part's swaps layer by layer, then head and cache; each on rows [0, rows)."""

    batches: tuple[Batch, ...]

    @classmethod
    def of(
        cls,
        inventory: Inventory,
        level: int,
        choices: Sequence[Choice],
        head: QuantHead,
        rows: int,
        same: Collection[str] = (),
    ) -> ExhaustivePlan:
        """The plan of a model; choices: all base quants; same: names of mixes that are the reference."""
        mixes: list[list[Mix]] = [
            uniform_mixes(inventory, choices, head.choice),
            *probe_batches(inventory, level, choices),
            wider_probes(inventory, head.distinct),
        ]
        batches = [tuple(mix for mix in batch if mix.name not in same) for batch in mixes]
        return cls(tuple(Batch(batch, range(rows)) for batch in batches if batch))

    def next(self, scores: Mapping[str, Score]) -> Sequence[Batch]:
        """As ProbePlan.next; whole batches, as a batch must not depend on where a kill fell."""
        return [batch for batch in self.batches if not all(_scored(mix, batch.rows, scores) for mix in batch.mixes)]


def _scored(mix: Mix, rows: range, scores: Mapping[str, Score]) -> bool:
    score = scores.get(mix.name)
    return score is not None and len(score.kl_ref_mix) >= rows.stop
