"""The whole chain on the card, from carried base quants to a tuned model on held-out text."""

from __future__ import annotations

import shutil
from typing import Any

import exltune
from parity.kit import QUANTS
from parity.take import Task


def take(task: Task) -> dict[str, Any]:
    kit, sizes, out = task.made_of, task.sizes, task.work / "chain"
    out.mkdir(exist_ok=True)
    shutil.rmtree(out / "model", ignore_errors=True)
    session = exltune.open_session(
        kit.model_dir,
        quants=task.carried(QUANTS),
        engine="exllamav3",
        rows=kit.rows,
        row_length=kit.row_length,
        # The same step again, after it was ended, finds what was scored.
        store=out / "scores.db",
    )
    with session:
        measurement = exltune.measure(session)
        task.keep({"base_kld": measurement.base_kld})
        recipe = exltune.optimize(measurement, target_bpw=sizes.target_bpw, passes=sizes.passes, session=session)
        built = exltune.build(recipe, out=out / "model", session=session)
        carried = list(kit.quants(task.carried(QUANTS).parent).values())
        table = exltune.evaluate(session, [*carried, built.path])
    return {
        "base_kld": measurement.base_kld,
        "achieved_bpw": recipe.achieved_bpw,
        "standings": [
            {"name": one.name, "selection_kld": one.selection_kld} for one in recipe.exltune.search.standings
        ],
        "quants": {row.name: {"bpw": row.bpw, "kl_ref_quant": row.kl_ref_quant} for row in table},
    }
