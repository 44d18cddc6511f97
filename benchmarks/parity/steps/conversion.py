"""Conversion on the card: its quality against the CPU's, and its rate at the shapes of a large model."""

from __future__ import annotations

import json
from typing import Any

from gpu_conversion import conversion_rate

import exltune
from exltune.engines.exllamav3.engine import ExllamaEngine
from exltune.schema.mix import Mix
from parity.kit import SCORES, ids_of
from parity.steps.scores import compared
from parity.take import Task

_BITS = 3.0


def take(task: Task) -> dict[str, Any]:
    quality, sizes = _quality(task), task.sizes
    task.keep({"quality": quality})
    rate = conversion_rate(task.work / "rate", sizes.rate, task.device, sizes.rate_tokens, _BITS)
    return {"quality": quality, "rate": rate}


def _quality(task: Task) -> dict[str, Any]:
    """KL(ref‖quant) of the model at 3 bits, converted here, against the kit's quant of that width."""
    kit, known = task.made_of, json.loads(task.carried(SCORES).read_text())
    (made,) = exltune.quantize(
        kit.model_dir, task.work / "quants", bits=_BITS, engine="exllamav3", rows=kit.rows, row_length=kit.row_length
    )
    carried = kit.quants(task.carried(SCORES).parent)
    engine = ExllamaEngine(kit.model_dir, {**carried, "here": made}, devices=[task.device])
    groups = [group.id for group in (*engine.inventory.groups, engine.inventory.head)]
    both = [Mix(name=name, choices=dict.fromkeys(groups, name)) for name in (f"{_BITS:g}", "here")]
    return compared(*engine.score(both, ids_of(known)))
