"""`exltune measure`: swaps scored layer by layer, each batch kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from exltune.engines.base import AUTO, Engine, Progress, open_engine
from exltune.errors import MissingTensorError, NonFiniteError
from exltune.measure import QuantHead, probe_batches, summarize, uniform_mixes, wider_probes
from exltune.pipeline.base_quants import find_base_quants, head_source, paths_of, quant_sizes
from exltune.pipeline.data import ids, token_sets
from exltune.pipeline.jobs import job_hash, provenance
from exltune.pipeline.reporter import Reporter, Silent
from exltune.schema.measurement import Measurement
from exltune.schema.mix import Mix
from exltune.schema.tokens import DataSettings, Split
from exltune.store.files import locked, refuse_existing_file
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
    refuse_existing_file(out, force=force)
    quants = find_base_quants(quants_dir, model)
    choices = [quant.choice for quant in quants]
    source_of_head = head_source(quants, None)
    heads = {quant.choice: quant.head_bits for quant in quants}
    head = QuantHead(source_of_head.choice, source_of_head.head_bits, source_of_head.codebook, heads)
    tokens = token_sets(data, model)[Split.SEARCH]
    opened = open_engine(engine, model, paths_of(quants))
    sizes = quant_sizes(opened.inventory, quants, head.bits)
    source = provenance(model, opened.name, tokens, data)
    job = job_hash("measure", source.model_dump(), [size.sha256 for size in sizes], level, head.choice)
    batches = [
        uniform_mixes(opened.inventory, choices, head.choice),
        *probe_batches(opened.inventory, level, choices),
        wider_probes(opened.inventory, head.distinct),
    ]
    with locked(out):
        store = ScoreStore(out.with_name(f".{out.name}.scores.jsonl"), job)
        _score(opened, batches, ids(tokens), store, reporter)
        measurement = summarize(opened.inventory, level, sizes, head, store.scores, data, source)
        write_record(out, measurement)
        store.remove()
    return measurement


def _score(
    engine: Engine, batches: Sequence[Sequence[Mix]], tokens: Tensor, store: ScoreStore, reporter: Reporter
) -> None:
    """Score what the store does not hold yet."""
    if store.scores:
        reporter.remark(f"Taking up again: {len(store.scores)} of {sum(map(len, batches))} mixes are scored")
    try:
        with reporter.stage("Measuring") as progress:
            for number, batch in enumerate(batches):
                # Whole batches only: what is computed together must not depend on where a kill fell.
                if any(mix.name not in store.scores for mix in batch):
                    store.add(engine.score(batch, tokens, _part_of(progress, number, len(batches))))
    except (NonFiniteError, MissingTensorError):
        # Once the input is mended it is another measurement: these scores are of no use.
        store.remove()
        raise


def _part_of(progress: Progress, number: int, batches: int) -> Progress:
    """Progress of one batch among equals."""

    def report(done: int, total: int, what: str) -> None:
        progress(number * 1000 + 1000 * done // max(1, total), batches * 1000, what)

    return report
