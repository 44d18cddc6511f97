"""`exltune measure`: swaps scored layer by layer, each batch kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from exltune.engines.base import Engine
from exltune.measurement import (
    Budget,
    ProbePlan,
    QuantHead,
    QuantReference,
    QuantSizes,
    plan_for,
    quant_reference,
    saliencies,
    seconds_per_pass,
    summarize,
)
from exltune.pipeline.common.reporter import peak_ram_bytes, tell_peaks
from exltune.pipeline.common.session import Session
from exltune.pipeline.measurement.plan_run import run_plan
from exltune.schema.measurement import Measurement
from exltune.schema.tokens import Split
from exltune.store.files import locked, refuse_existing_file
from exltune.store.probes import rows_key
from exltune.store.quants.base_quants import head_source, quant_sizes
from exltune.store.quants.directories import BaseQuant
from exltune.store.records import canonical, write_record
from exltune.store.score_cache import CachedRows


@dataclass(frozen=True)
class MeasureOptions:
    """level: 0 to 4. budget: limit of the cost, a tenth of all swaps on all rows by default; a swap without a score is
    estimated and marked so.
    """

    level: int = 3
    budget: Budget = field(default_factory=Budget)


def measure(
    session: Session, out: Path | None, options: MeasureOptions | None = None, *, force: bool = False
) -> Measurement:
    """Swap parts of the model to base quants, score them on the search set and write the measurement to `out`, if any.

    The counts of the session's scores tell new from stored ones.
    Raises: OutputExistsError, QuantMismatchError, DataError, ModelError, UsageError for a store that is none or
    resources that hold nothing, StorageError, WorkerLostError, and all that the engine raises.
    """
    options, reporter = options or MeasureOptions(), session.reporter
    if out is not None:
        refuse_existing_file(out, force=force)
    quants = session.base_quants
    head = _head(quants)
    inventory, level = session.engine.inventory, options.level
    sizes = quant_sizes(inventory, quants, head.bits, session.fingerprint)
    source, scores = session.provenance(Split.SEARCH), session.scores.on(session.ids(Split.SEARCH))
    reference = _reference(session, level, quants, head)
    plan = _plan(session.engine, options, sizes, head, scores, reference)
    with nullcontext() if out is None else locked(out):
        with reporter.stage("Measuring") as progress:
            found = run_plan(plan, scores, progress, lambda done, total: reporter.remark(_taken_up(done, total)))
        tensors = saliencies(session.engine, level, quants[0].choice, scores.tokens)
        measurement = summarize(inventory, level, sizes, head, found, session.data, source, tensors, reference)
        if out is not None:
            write_record(out, measurement)
    tell_peaks(reporter, session.engine)
    counts = session.scores.counts
    counts.ram_bytes, counts.vram_bytes = peak_ram_bytes(), session.engine.stats.vram_bytes
    return measurement


def _head(quants: Sequence[BaseQuant]) -> QuantHead:
    """The default head, and every quant's."""
    default = head_source(quants, None)
    heads = {quant.choice: quant.head_bits for quant in quants}
    return QuantHead(default.choice, default.head_bits, default.codebook, heads)


def _plan(
    engine: Engine,
    options: MeasureOptions,
    quants: Sequence[QuantSizes],
    head: QuantHead,
    scores: CachedRows,
    reference: QuantReference | None,
) -> ProbePlan:
    """The plan for a budget. Raises: UsageError.

    Where that is hours, a pass over a few rows is timed first, and its time is kept in the store: the same command
    again, after a kill or on a busier machine, goes on with the same plan.
    """
    level, budget = options.level, options.budget
    key = canonical([level, [quant.sha256 for quant in quants], budget.hours, rows_key(scores.row_ids)])
    seconds = partial(scores.cache.store.timing, key, partial(seconds_per_pass, engine, scores.tokens))
    bits = {quant.choice: quant.bits for quant in quants}
    same = reference.same if reference is not None else ()
    return plan_for(engine.inventory, level, bits, head, len(scores), budget, seconds, same)


def _reference(session: Session, level: int, quants: Sequence[BaseQuant], head: QuantHead) -> QuantReference | None:
    """The reference as a quant, once the user was told of it."""
    if session.reference is None:
        return None
    bits = {quant.choice: quant.bits for quant in quants}
    known = quant_reference(
        session.reference,
        session.engine.inventory,
        level,
        bits,
        head.distinct,
        session.scores.content,
        quants[0].path,
    )
    session.reporter.remark(session.reference.told)
    for quant in quants:
        if f"uniform@{quant.choice}" in known.same:
            told = f"{quant.path.name} is the reference itself: its KL(ref‖mix) is 0 by definition and is not scored"
            session.reporter.remark(told)
    return known


def _taken_up(done: int, total: int) -> str:
    return f"Taking up again: {done} of {total} mixes are scored"
