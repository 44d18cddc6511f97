"""`exltune measure`: swaps scored layer by layer, each batch kept as soon as it is done."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from exltune.engines.base import AUTO, Engine, Resources, open_engine
from exltune.engines.ray.cluster import RayOptions, RayScorer
from exltune.engines.ray.worker import WorkerJob
from exltune.measure import Budget, QuantHead, summarize
from exltune.pipeline.common.provenance import provenance
from exltune.pipeline.common.reporter import Reporter, Silent, peak_ram_bytes, tell_peaks
from exltune.pipeline.measurement.measure_plan import probe_plan, quant_reference, saliencies
from exltune.pipeline.measurement.probe_content import MixContent, probe_context
from exltune.pipeline.measurement.probe_runs import EngineScorer, ProbeCounts, ProbeRun, Scorer
from exltune.pipeline.quants.base_quants import find_base_quants, head_source, paths_of, quant_sizes
from exltune.pipeline.texts.token_sets import ids, token_sets
from exltune.schema.measurement import Measurement
from exltune.schema.tokens import DataOptions, Split
from exltune.store.database import Database
from exltune.store.files import locked, refuse_existing_file
from exltune.store.probes import ProbeStore
from exltune.store.records import write_record

#: The probe store beside a measurement; the next measurement there takes from it what is equal.
PROBES = "probes.db"


def measure(
    model: Path,
    quants_dir: Path,
    out: Path,
    data: DataOptions,
    *,
    level: int = 3,
    budget: Budget | None = None,
    engine: str = AUTO,
    store: str | None = None,
    resources: Resources | None = None,
    ray: RayOptions | None = None,
    force: bool = False,
    reporter: Reporter | None = None,
    counts: ProbeCounts | None = None,
) -> Measurement:
    """Swap parts of the model to base quants, score them on the search set and write the measurement.

    budget: what it may cost, a tenth of all swaps on all rows if None; what was not scored is estimated and marked so.
    store: file or URL of the probe store. resources: what the engine may take. ray: the cluster to score
    on, this process if None. counts: is told what was scored and what was there.
    Raises: OutputExistsError, QuantMismatchError, DataError, ModelError, UsageError for a store that is none or
    resources that hold nothing, StorageError, WorkerLostError, and what the engine raises.
    """
    reporter, counts = reporter or Silent(), counts or ProbeCounts()
    refuse_existing_file(out, force=force)
    database = Database(out.with_name(PROBES) if store is None else store)
    quants = find_base_quants(quants_dir, model)
    source_of_head = head_source(quants, None)
    heads = {quant.choice: quant.head_bits for quant in quants}
    head = QuantHead(source_of_head.choice, source_of_head.head_bits, source_of_head.codebook, heads)
    tokens = token_sets(data, model)[Split.SEARCH]
    opened = open_engine(engine, model, paths_of(quants), resources)
    sizes = quant_sizes(opened.inventory, quants, head.bits)
    source = provenance(model, opened.name, tokens, data)
    content = MixContent(opened.inventory, quants, model if source.reference is not None else None)
    reference = quant_reference(source.reference, opened.inventory, level, quants, head, content)
    same = reference.same if reference is not None else ()
    if source.reference is not None:
        reporter.remark(source.reference.told)
    for quant in quants:
        if f"uniform@{quant.choice}" in same:
            reporter.remark(f"{quant.path.name} is the reference itself: its KL is 0 by definition and is not scored")
    probes = ProbeStore(database, probe_context(opened))
    plan = probe_plan(opened, level, sizes, head, ids(tokens), budget or Budget(), probes, same)
    places = {quant.choice: quant.path.resolve() for quant in quants}
    job = WorkerJob(opened.name, model.resolve(), places, resources or Resources())
    with locked(out), _scorer(opened, job, ray, counts, reporter) as scorer:
        run = ProbeRun(probes, scorer, ids(tokens), content, counts)
        with reporter.stage("Measuring") as progress:
            scores = run.run(plan, progress, lambda done, total: reporter.remark(_taken_up(done, total)))
        tensors = saliencies(opened, level, quants[0], ids(tokens))
        measurement = summarize(opened.inventory, level, sizes, head, scores, data, source, tensors, reference)
        write_record(out, measurement)
    tell_peaks(reporter, opened)
    counts.ram_bytes, counts.vram_bytes = peak_ram_bytes(), opened.stats.vram_bytes
    return measurement


def _scorer(
    engine: Engine, job: WorkerJob, ray: RayOptions | None, counts: ProbeCounts, reporter: Reporter
) -> AbstractContextManager[Scorer]:
    if ray is None:
        return nullcontext(EngineScorer(engine, counts))
    return RayScorer(ray, job, engine, counts, reporter)


def _taken_up(done: int, total: int) -> str:
    return f"Taking up again: {done} of {total} mixes are scored"
