"""What mypy and editors see of the library: checked by `make lint`, never run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import assert_type

import exltune
from exltune.library.tune import Tuned
from exltune.schema.compare import CompareResult
from exltune.schema.evaluation import EvaluationRow
from exltune.schema.plan import Plan


def chain(somewhere: os.PathLike[str], progress: list[str]) -> None:
    """All functions, with arguments of every form."""
    measurement = assert_type(exltune.load_measurement("m.json"), exltune.Measurement)
    recipe = assert_type(exltune.optimize(measurement, target_bpw=3.15), exltune.Recipe)
    assert_type(exltune.optimize(somewhere, size=1 << 37, gpus=[1 << 34], context=65536, cache=(5, 4)), exltune.Recipe)
    assert_type(exltune.load_recipe(somewhere), exltune.Recipe)
    tuned = assert_type(exltune.build(recipe, quants="quants/", out=somewhere), exltune.Built)
    assert_type(tuned.path, Path)
    table = assert_type(exltune.evaluate("MODEL", [tuned.path, tuned, "3bpw_H6"]), exltune.EvaluationTable)
    assert_type(table[0], EvaluationRow)
    session = exltune.open_session("MODEL", data={"math": "a.txt"}, progress=lambda *told: progress.append(told[0]))
    with assert_type(session, exltune.Session):
        assert_type(exltune.quantize(session, "quants", bits=3, head_bits="auto"), tuple[Path, ...])
        assert_type(exltune.measure(session, level=2), exltune.Measurement)
        assert_type(exltune.compare("a", "b", reference=session), CompareResult)
        assert_type(exltune.tune(session, "out", gpus="6x24GiB", cache="auto"), Tuned)
    assert_type(exltune.plan("config.json", bits=3), Plan)
    raise exltune.errors.UsageError("what") from exltune.ExltuneError("why")


def refused() -> None:
    """Each line is an error; mypy's warn_unused_ignores says so where it is none."""
    exltune.optimize(3.15)  # type: ignore[arg-type]
    exltune.optimize("m.json", target_bpw="three")  # type: ignore[arg-type]
    exltune.optimize("m.json", bpw=3)  # type: ignore[call-arg]
    exltune.evaluate("MODEL", 3)  # type: ignore[arg-type]
