"""The measurement of a model."""

from __future__ import annotations

from typing import Unpack

from exltune.library import arguments
from exltune.library.arguments import PathArgument, optional
from exltune.library.sessions import SessionArguments, session_on
from exltune.measurement import Budget, parse_budget
from exltune.pipeline.common.session import Session
from exltune.pipeline.measurement.measure import MeasureOptions
from exltune.pipeline.measurement.measure import measure as run
from exltune.schema.measurement import Measurement

_LEVELS = range(5)


def measure(
    model: PathArgument | Session,
    *,
    quants: PathArgument | None = None,
    out: PathArgument | None = None,
    level: int = 3,
    budget: float | str | None = None,
    force: bool = False,
    **more: Unpack[SessionArguments],
) -> Measurement:
    """Measure the effect of each group's bits on the model's output: KL(reference‖mix) in nats/token of single swaps.

    Scores are kept in `store`: a call that was killed is taken up by the same call.

    Args:
        model: The reference's directory, or a session on it.
        quants: Folder of base quants, as `quantize` makes it; not beside a session.
        out: JSON file to write the measurement to; none if not given.
        level: 0: layers; 1: attention and MLP; 2: their parts; 3: q, k+v, o, gate+up, down; 4: k, v, gate, up apart.
        budget: Passes over the model (60), hours ("1.5h"), or "all" for every swap; a tenth of all if not given.
        force: Whether `out` may be replaced.
        **more: Texts and engine, as `open_session` takes them.

    Returns:
        The measurement, as `optimize` takes it.

    Raises:
        UsageError: An argument is of a wrong type or value.
        QuantMismatchError: The quants are of another model.
        DataError: There are too few texts.
        OutputExistsError: `out` is there.

    Example:
        ```python
        measurement = exltune.measure("MODEL", quants="quants/", out="measurement.json")
        ```
    """
    options = MeasureOptions(arguments.one_of("level", level, _LEVELS), _budget(budget))
    file, force = optional(arguments.path, "out", out), arguments.flag("force", force)
    with session_on(model, more, "measure", quants=quants, out=file) as session:
        return run(session, file, options, force=force)


def _budget(budget: object) -> Budget:
    if budget is None or isinstance(budget, str):
        return parse_budget(budget)
    wanted = 'passes (60), hours ("1.5h") or "all"'
    passes = arguments.number("budget", budget, wanted, least=0)
    if passes == 0:
        raise arguments.wrong("budget", budget, wanted)
    return Budget(passes=passes)
