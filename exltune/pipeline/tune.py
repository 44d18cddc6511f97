"""`exltune tune`: the whole chain in one directory, each step kept, and a verdict on held-out tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exltune.budget import model_profile
from exltune.engines.base import AUTO, auto_engine
from exltune.errors import ExltuneError, OutputExistsError
from exltune.inventory import load_inventory
from exltune.pipeline.common.commands import budget_words
from exltune.pipeline.common.session import Session
from exltune.pipeline.evaluation.verdict import judge
from exltune.pipeline.measurement.measure import MeasureOptions, measure
from exltune.pipeline.optimization.optimize import OptimizeOptions, optimize
from exltune.pipeline.quants.build import build
from exltune.pipeline.quants.quantize import QuantizeOptions, quantize
from exltune.schema.defaults import WIDE_WIDTHS
from exltune.schema.evaluation import Evaluation, TuneResult, Verdict
from exltune.schema.hardware import FP16_CACHE, CacheBits
from exltune.schema.measurement import Measurement
from exltune.schema.tune import TuneJob
from exltune.search import load_all_rules
from exltune.search.space.joint import groups_budget
from exltune.search.space.space import AUTO as OPEN
from exltune.search.space.space import SpaceOptions, check_options
from exltune.store.files import exclusive, is_empty_but_for
from exltune.store.names import EVALUATION, JOB, MEASUREMENT, MODEL, QUANTS, RECIPE, SCORES, VERDICT
from exltune.store.records import read_recipe, read_record, write_record
from exltune.store.stages import TUNE

#: Widths of the demo, as of the command line where --bits is not given.
WIDE = QuantizeOptions(WIDE_WIDTHS, (3, 4, 5, 6, 6, 6, 6, 8))


def tune(
    session: Session,
    out: Path,
    asked: SpaceOptions,
    settings: QuantizeOptions,
    *,
    level: int = 3,
    search: OptimizeOptions | None = None,
) -> TuneResult:
    """From a model to a tuned quant in `out`; the same call again goes on where it was stopped.

    session: on the model and its texts; quants and scores lie in `out`, whatever it says of them.
    Raises: BudgetError before any work for an impossible budget, OutputExistsError for a directory that holds
    something else, and all that the stages raise.
    """
    search = search or OptimizeOptions()
    settings.check()
    _check_budget(session, asked, settings)
    session.use(quants=out / QUANTS, store=out / SCORES)
    with exclusive(out), _claimed(out, _job(session, asked, settings, level, search)):
        if not (out / VERDICT).is_file():
            _stages(session, out, asked, settings, level, search)
    return TuneResult(recipe=str(out / RECIPE), model=str(out / MODEL), verdict=read_record(out / VERDICT, Verdict))


def _stages(
    session: Session, out: Path, asked: SpaceOptions, settings: QuantizeOptions, level: int, search: OptimizeOptions
) -> None:
    """Every stage that has no output yet, in order."""
    quantize(session, out / QUANTS, settings)
    if not (out / MEASUREMENT).is_file():
        measure(session, out / MEASUREMENT, MeasureOptions(level))
    if not (out / RECIPE).is_file():
        measurement = read_record(out / MEASUREMENT, Measurement)
        optimize(session, measurement, asked, out / RECIPE, settings=search)
    recipe = read_recipe(out / RECIPE)
    if not (out / MODEL).is_dir():
        build(recipe, session.base_quants, out / MODEL, model=session.model, reporter=session.reporter)
    evaluation, verdict = judge(session, out / MODEL, recipe)
    write_record(out / EVALUATION, evaluation)
    write_record(out / VERDICT, verdict)


def _check_budget(session: Session, asked: SpaceOptions, settings: QuantizeOptions) -> None:
    """Whether anything can come of it, with the cheapest cache where the cache is open."""
    load_inventory(session.model)
    profile = model_profile(session.config, settings.codebook, str(session.model))
    check_options(asked, profile)
    cache = CacheBits(k=2, v=2) if asked.cache == OPEN else asked.cache or FP16_CACHE
    use = asked.use.model_copy(update={"cache": cache})
    groups_budget(profile, settings.widths, asked.limits, use, settings.default_head)


def _job(
    session: Session, asked: SpaceOptions, settings: QuantizeOptions, level: int, search: OptimizeOptions
) -> TuneJob:
    engine = session.engine_options.name
    job = TUNE.identity(
        engine=auto_engine()[0] if engine == AUTO else engine,
        model_sha256=session.fingerprint(),
        asked=asked,
        quantize=settings,
        data=session.data,
        tokens={split.value: found.info.sha256 for split, found in session.token_sets.items()},
        level=level,
        search=search,
        rules=load_all_rules(),
    )
    return TuneJob(model=str(session.model.resolve()), budget=budget_words(asked), level=level, job=job)


@contextmanager
def _claimed(out: Path, job: TuneJob) -> Iterator[None]:
    """Mark an empty directory as this job's, or check that it is; a job that fails with nothing done unmarks it."""
    if not (out / JOB).is_file() and not is_empty_but_for(out):
        raise OutputExistsError("the directory holds something else", where=str(out), fix="Give an empty one")
    if (out / JOB).is_file() and read_record(out / JOB, TuneJob).job != job.job:
        raise OutputExistsError(
            "another tune was begun here (another model, budget, texts or what is in them, engine, option or version)",
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


def evaluation_of(out: Path) -> Evaluation:
    """The table of a finished tune: base quants, the uniform strategy's quant, and the tuned one."""
    return read_record(out / EVALUATION, Evaluation)
