"""The table of finished quants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from exltune.library import arguments
from exltune.library.arguments import PathArgument, optional
from exltune.library.sessions import SessionArguments, session_on
from exltune.library.tables import EvaluationTable
from exltune.pipeline.common.session import Session
from exltune.pipeline.evaluation.evaluate import evaluate as run


def evaluate(
    model: PathArgument | Session,
    quants: Sequence[PathArgument],
    *,
    out: PathArgument | None = None,
    force: bool = False,
    **more: Unpack[SessionArguments],
) -> EvaluationTable:
    """Compare finished quants with the model on held-out text: KL(ref‖quant), KL(quant‖ref), perplexity, top-k.

    Args:
        model: The reference's directory, or a session on it.
        quants: EXL3 directories of that model.
        out: JSON file to write the table to; none if not given.
        force: Whether `out` may be replaced.
        **more: Texts and engine, as `open_session` takes them.

    Returns:
        A row for each quant, in the order given; `.to_pandas()` and `.to_markdown()` give it whole.

    Raises:
        UsageError: An argument is of a wrong type or value.
        QuantMismatchError: A quant is of another model.
        DataError: There are too few texts.
        OutputExistsError: `out` is there.

    Example:
        ```python
        table = exltune.evaluate("MODEL", ["quants/3bpw_H6", "tuned/"])
        for row in table:
            print(row.name, row.bpw, row.kl_ref_quant)
        ```
    """
    directories = arguments.paths("quants", quants, "a list of EXL3 directories")
    file, force = optional(arguments.path, "out", out), arguments.flag("force", force)
    with session_on(model, more, "evaluate", out=file) as session:
        return EvaluationTable(run(session, directories, file, force=force))
