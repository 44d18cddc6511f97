"""`exltune tune`: the whole chain in one directory, each step kept, and a verdict on held-out tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exltune.budget import model_profile
from exltune.engines.base import AUTO, auto_engine, open_engine
from exltune.errors import ExltuneError, OutputExistsError
from exltune.inventory import load_inventory, model_fingerprint, read_config
from exltune.pipeline.common.commands import budget_words
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.pipeline.evaluation.verdict import judge
from exltune.pipeline.measurement.measure import measure
from exltune.pipeline.optimization.optimize import OptimizeOptions, optimize
from exltune.pipeline.quants.base_quants import find_base_quants
from exltune.pipeline.quants.build import build
from exltune.pipeline.quants.quantize import QuantizeOptions, quantize
from exltune.schema.evaluation import Evaluation, TuneResult, Verdict
from exltune.schema.hardware import FP16_CACHE, CacheBits
from exltune.schema.tokens import DataOptions
from exltune.schema.tune import TuneJob
from exltune.search import load_all_rules
from exltune.search.space.joint import groups_budget
from exltune.search.space.space import AUTO as OPEN
from exltune.search.space.space import Asked, check_asked
from exltune.store.files import exclusive, is_empty_but_for
from exltune.store.names import EVALUATION, JOB, MEASUREMENT, MODEL, QUANTS, RECIPE, VERDICT
from exltune.store.records import read_record, write_record
from exltune.store.stages import TUNE

#: What the demo begins with, as the command line does where --bits is not given.
WIDE = QuantizeOptions((2, 2.5, 3, 3.5, 4, 5, 6, 8), (3, 4, 5, 6, 6, 6, 6, 8))


def tune(
    model: Path,
    out: Path,
    asked: Asked,
    settings: QuantizeOptions,
    data: DataOptions,
    *,
    level: int = 3,
    search: OptimizeOptions | None = None,
    engine: str = AUTO,
    reporter: Reporter | None = None,
) -> TuneResult:
    """From a model to a tuned quant in `out`; the same call again goes on where it was stopped.

    Raises: BudgetError before any work for an impossible budget, OutputExistsError for a directory that holds
    something else, and what the stages raise.
    """
    reporter, search = reporter or Silent(), search or OptimizeOptions()
    settings.check()
    _check_budget(model, asked, settings)
    with exclusive(out), _claimed(out, _job(model, asked, settings, data, level, search, engine)):
        quantize(model, out / QUANTS, settings, data, engine=engine, reporter=reporter)
        if not (out / MEASUREMENT).is_file():
            measure(model, out / QUANTS, out / MEASUREMENT, data, level=level, engine=engine, reporter=reporter)
        if not (out / RECIPE).is_file():
            optimize(
                out / MEASUREMENT,
                asked,
                out / RECIPE,
                settings=search,
                model=model,
                engine=engine,
                force=True,
                reporter=reporter,
            )
        if not (out / MODEL).is_dir():
            build(out / RECIPE, out / QUANTS, out / MODEL, model=model, reporter=reporter)
        if not (out / VERDICT).is_file():
            _judge(model, out, data, engine, reporter)
    verdict = read_record(out / VERDICT, Verdict)
    return TuneResult(recipe=str(out / RECIPE), model=str(out / MODEL), verdict=verdict)


def _check_budget(model: Path, asked: Asked, settings: QuantizeOptions) -> None:
    """Whether anything can come of it, with the cheapest cache where the cache is open."""
    load_inventory(model)
    profile = model_profile(read_config(model), settings.codebook, str(model))
    check_asked(asked, profile)
    cache = CacheBits(k=2, v=2) if asked.cache == OPEN else asked.cache or FP16_CACHE
    use = asked.use.model_copy(update={"cache": cache})
    groups_budget(profile, settings.widths, asked.limits, use, settings.default_head)


def _job(
    model: Path,
    asked: Asked,
    settings: QuantizeOptions,
    data: DataOptions,
    level: int,
    search: OptimizeOptions,
    engine: str,
) -> TuneJob:
    job = TUNE.identity(
        engine=auto_engine()[0] if engine == AUTO else engine,
        model_sha256=model_fingerprint(model),
        asked=asked,
        quantize=settings,
        data=data,
        level=level,
        search=search,
        rules=load_all_rules(),
    )
    return TuneJob(model=str(model.resolve()), budget=budget_words(asked), level=level, job=job)


@contextmanager
def _claimed(out: Path, job: TuneJob) -> Iterator[None]:
    """Mark an empty directory as this job's, or check that it is; a job that fails with nothing done unmarks it."""
    if not (out / JOB).is_file() and not is_empty_but_for(out):
        raise OutputExistsError("the directory holds something else", where=str(out), fix="Give an empty one")
    if (out / JOB).is_file() and read_record(out / JOB, TuneJob).job != job.job:
        raise OutputExistsError(
            "another tune was begun here (another model, budget, texts, engine, option or version)",
            where=str(out),
            fix="Repeat that one's arguments to go on with it, or give an empty directory",
        )
    write_record(out / JOB, job)
    try:
        yield
    except (ExltuneError, OSError):
        if is_empty_but_for(out, JOB):
            (out / JOB).unlink()
        raise


def _judge(model: Path, out: Path, data: DataOptions, engine: str, reporter: Reporter) -> None:
    quants = find_base_quants(out / QUANTS, model)
    opened = open_engine(engine, model, {**{q.choice: q.path for q in quants}, MODEL: out / MODEL})
    evaluation, verdict = judge(opened, quants, out / MODEL, out / RECIPE, data, reporter)
    write_record(out / EVALUATION, evaluation)
    write_record(out / VERDICT, verdict)


def evaluation_of(out: Path) -> Evaluation:
    """The table of a finished tune: base quants, the uniform strategy's quant, and the tuned one."""
    return read_record(out / EVALUATION, Evaluation)
