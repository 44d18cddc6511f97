"""Score whole quant directories and give the rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exltune.budget import directory_size
from exltune.engines.base import Progress
from exltune.exl3.directory import QuantDir
from exltune.metrics import evaluation_row
from exltune.schema.evaluation import EvaluationRow
from exltune.schema.inventory import Inventory
from exltune.schema.mix import Choice, Mix
from exltune.schema.score import Score

if TYPE_CHECKING:
    from torch import Tensor


def whole(inventory: Inventory, choice: Choice) -> Mix:
    """The mix that takes every group and the head from one directory."""
    ids = (*(group.id for group in inventory.groups), inventory.head.id)
    return Mix(name=choice, choices=dict.fromkeys(ids, choice))


#: As Engine.score, or a score cache's.
Scorer = Callable[[Sequence[Mix], "Tensor", Progress | None], list[Score]]


def evaluate_quants(
    inventory: Inventory,
    score: Scorer,
    quants: Mapping[Choice, Path],
    tokens: Tensor,
    progress: Progress | None = None,
) -> list[EvaluationRow]:
    """A row for each directory, in the order given; score: knows these names.

    tokens: (rows, T). Raises: all that the engine raises, QuantMismatchError for a directory that is not EXL3.
    """
    scores = score([whole(inventory, name) for name in quants], tokens, progress)
    rows = []
    for (name, path), found in zip(quants.items(), scores, strict=True):
        size = directory_size(inventory, QuantDir(path))
        rows.append(
            evaluation_row(
                found, name=name, path=str(path), size_bytes=size.size_bytes, bpw=size.bpw, head_bpw=size.head_bpw
            )
        )
    return rows
