"""Which contexts fit beside the weights of published quants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.budget import Limits, parse_cache, parse_gpus
from exltune.pipeline.deployment.plan import plan
from exltune.schema.card import CardMemory, CardRow, CardServe
from exltune.schema.hardware import Hardware, Use

DEFAULT_CACHE = "fp16"
#: Memory that people have; the columns of a table are the smallest of these that hold something.
_COMMON = ("8GiB", "12GiB", "16GiB", "24GiB", "32GiB", "2x24GiB", "80GiB", "4x24GiB", "6x24GiB", "2x96GiB", "4x96GiB")
_COLUMNS = 3


def memories(labels: Sequence[str], sizes: Sequence[int]) -> tuple[CardMemory, ...]:
    """Columns of the table of contexts: those asked for, else the smallest that hold the smallest quant and up.

    sizes: bytes of every quant. Raises: UsageError for labels that are not cards.
    """
    if labels:
        return tuple(CardMemory(label=label, gpus=parse_gpus(label)) for label in labels)
    common = [CardMemory(label=label, gpus=parse_gpus(label)) for label in _COMMON]
    holding = [memory for memory in common if sum(memory.gpus) > min(sizes)]
    return tuple((holding or common[-1:])[:_COLUMNS])


def contexts(quant: Path, columns: Sequence[CardMemory], cache: str) -> tuple[int | None, ...]:
    """The largest context of an EXL3 directory in each memory, None where the weights do not fit."""
    use = Use(cache=parse_cache(cache))
    plans = [plan(quant, Limits(Hardware(gpus=memory.gpus)), use) for memory in columns]
    return tuple(found.max_context if found.fits and found.max_context else None for found in plans)


def served(rows: Sequence[CardRow], columns: Sequence[CardMemory]) -> CardServe | None:
    """The example of serving: the first tuned quant, else the first that fits, in the smallest memory that it fits."""
    quants = sorted((row for row in rows if row.branch is not None), key=lambda row: row.kind != "tuned")
    for row in quants:
        for memory, tokens in zip(columns, row.contexts, strict=True):
            if tokens is not None and row.branch is not None:
                return CardServe(branch=row.branch, gpus=memory.label, context=tokens)
    return None
