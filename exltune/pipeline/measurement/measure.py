"""`exltune measure`: swaps scored layer by layer, each batch kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from exltune.measurement import Budget, QuantHead, QuantReference, summarize
from exltune.pipeline.common.reporter import Reporter, peak_ram_bytes, tell_peaks
from exltune.pipeline.common.session import Session
from exltune.pipeline.measurement.measure_plan import probe_plan, quant_reference, saliencies
from exltune.pipeline.measurement.plan_run import run_plan
from exltune.schema.measurement import Measurement
from exltune.schema.tokens import Split
from exltune.store.files import locked, refuse_existing_file
from exltune.store.quants.base_quants import head_source, quant_sizes
from exltune.store.quants.directories import BaseQuant
from exltune.store.records import write_record


@dataclass(frozen=True)
class MeasureOptions:
    """level: 0 to 4. budget: what it may cost, a tenth of all swaps on all rows by default; what was not scored is
    estimated and marked so.
    """

    level: int = 3
    budget: Budget = field(default_factory=Budget)


def measure(session: Session, out: Path, options: MeasureOptions | None = None, *, force: bool = False) -> Measurement:
    """Swap parts of the model to base quants, score them on the search set and write the measurement.

    The session's scores tell what was scored and what was there.
    Raises: OutputExistsError, QuantMismatchError, DataError, ModelError, UsageError for a store that is none or
    resources that hold nothing, StorageError, WorkerLostError, and what the engine raises.
    """
    options, reporter = options or MeasureOptions(), session.reporter
    refuse_existing_file(out, force=force)
    quants = session.base_quants
    head = _head(quants)
    inventory, level = session.engine.inventory, options.level
    sizes = quant_sizes(inventory, quants, head.bits, session.fingerprint)
    source, scores = session.provenance(Split.SEARCH), session.scores.on(session.ids(Split.SEARCH))
    reference = quant_reference(source.reference, inventory, level, quants, head, session.scores.content)
    _tell_reference(reporter, session, quants, reference)
    same = reference.same if reference is not None else ()
    plan = probe_plan(session.engine, level, sizes, head, scores, options.budget, same)
    with locked(out):
        with reporter.stage("Measuring") as progress:
            found = run_plan(plan, scores, progress, lambda done, total: reporter.remark(_taken_up(done, total)))
        tensors = saliencies(session.engine, level, quants[0], scores.tokens)
        measurement = summarize(inventory, level, sizes, head, found, session.data, source, tensors, reference)
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


def _tell_reference(
    reporter: Reporter, session: Session, quants: Sequence[BaseQuant], reference: QuantReference | None
) -> None:
    """Say so where KL is not against the unquantized model, and which quants are the reference itself."""
    if session.reference is None or reference is None:
        return
    reporter.remark(session.reference.told)
    for quant in quants:
        if f"uniform@{quant.choice}" in reference.same:
            reporter.remark(f"{quant.path.name} is the reference itself: its KL is 0 by definition and is not scored")


def _taken_up(done: int, total: int) -> str:
    return f"Taking up again: {done} of {total} mixes are scored"
