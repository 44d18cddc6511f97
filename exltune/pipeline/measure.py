"""`exltune measure`: swaps scored layer by layer, each batch kept as soon as it is done."""

from __future__ import annotations

from pathlib import Path

from exltune.engines.base import AUTO, Progress, open_engine
from exltune.measure import QuantHead, probe_batches, summarize, uniform_mixes
from exltune.pipeline.base_quants import find_base_quants, head_source, paths_of, quant_sizes
from exltune.pipeline.data import ids, token_sets
from exltune.pipeline.jobs import job_hash, provenance
from exltune.pipeline.reporter import Reporter, Silent
from exltune.schema.measurement import Measurement
from exltune.schema.tokens import DataSettings, Split
from exltune.store.files import refuse_existing
from exltune.store.records import write_record
from exltune.store.scores import ScoreStore


def measure(
    model: Path,
    quants_dir: Path,
    out: Path,
    data: DataSettings,
    *,
    level: int = 3,
    engine: str = AUTO,
    force: bool = False,
    reporter: Reporter | None = None,
) -> Measurement:
    """Score every part of the model at every base quant's bits on the search set and write the measurement.

    Raises: OutputExistsError, QuantMismatchError, DataError, ModelError, and what the engine raises.
    """
    reporter = reporter or Silent()
    refuse_existing(out, force=force)
    quants = find_base_quants(quants_dir, model)
    choices = [quant.choice for quant in quants]
    source_of_head = head_source(quants, None)
    head = QuantHead(source_of_head.choice, source_of_head.head_bits, source_of_head.codebook)
    tokens = token_sets(data, model)[Split.SEARCH]
    opened = open_engine(engine, model, paths_of(quants))
    sizes = quant_sizes(opened.inventory, quants)
    source = provenance(model, opened.name, tokens, data)
    job = job_hash("measure", source.model_dump(), [size.sha256 for size in sizes], level, head.choice)
    store = ScoreStore(out.with_name(f".{out.name}.scores.jsonl"), job)
    batches = [uniform_mixes(opened.inventory, choices, head.choice), *probe_batches(opened.inventory, level, choices)]
    if store.scores:
        reporter.remark(f"Taking up again: {len(store.scores)} of {sum(map(len, batches))} mixes are scored")
    with reporter.stage("Measuring") as progress:
        for number, batch in enumerate(batches):
            # Whole batches only: what is computed together must not depend on where a kill fell.
            if any(mix.name not in store.scores for mix in batch):
                store.add(opened.score(batch, ids(tokens), _part_of(progress, number, len(batches))))
    measurement = summarize(opened.inventory, level, sizes, head, store.scores, data, source)
    write_record(out, measurement)
    store.remove()
    return measurement


def _part_of(progress: Progress, number: int, batches: int) -> Progress:
    """Progress of one batch among equals."""

    def report(done: int, total: int, what: str) -> None:
        progress(number * 1000 + 1000 * done // max(1, total), batches * 1000, what)

    return report
