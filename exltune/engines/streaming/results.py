"""The head's outputs, leaf by leaf, and their way to scores of mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from exltune.engines.streaming.prefix_tree import PrefixTree
from exltune.errors import NonFiniteError
from exltune.metrics import score_from_rows
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score

#: A leaf of the prefix tree: (state after the last layer, head choice).
Leaf = tuple[int, Choice]

#: Sums of a leaf per row, (3 + 5, rows) fp64, ordered as PositionMetrics.stacked.
RowSums = Mapping[Leaf, Tensor]


def scores_of(mixes: Sequence[Mix], tree: PrefixTree, sums: RowSums, positions: int) -> list[Score]:
    """A score for each mix, in their order. Raises: NonFiniteError naming the mixes whose sums are NaN or inf."""
    pairs = list(zip(mixes, tree.leaves, strict=True))
    broken = tuple(mix.name for mix, leaf in pairs if not torch.isfinite(sums[leaf]).all())
    if broken:
        names = ", ".join(map(repr, broken))
        raise NonFiniteError(
            f"the scores of mix {names} are NaN or inf", fix="Check the quants it is made of", mixes=broken
        )
    return [score_from_rows(mix.name, sums[leaf].numpy(), positions) for mix, leaf in pairs]
