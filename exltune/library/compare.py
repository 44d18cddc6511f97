"""A verdict between two quants of the same bytes."""

from __future__ import annotations

from typing import Unpack

from exltune.library import arguments
from exltune.library.arguments import PathArgument, optional
from exltune.library.sessions import SessionArguments, session_on
from exltune.pipeline.common.session import Session
from exltune.pipeline.evaluation.compare import TOLERANCE, CompareOptions, Side
from exltune.pipeline.evaluation.compare import compare as run
from exltune.schema.compare import CompareResult


def compare(
    candidate: PathArgument,
    against: PathArgument,
    *,
    reference: PathArgument | Session,
    tolerance: float = TOLERANCE,
    trust_data: bool = False,
    out: PathArgument | None = None,
    force: bool = False,
    **more: Unpack[SessionArguments],
) -> CompareResult:
    """Judge a quant against another of the same bytes on held-out text; a lost comparison is a result, not an error.

    Args:
        candidate: EXL3 directory, or the file of an earlier comparison (FILE#candidate or FILE#baseline).
        against: The same of the baseline.
        reference: The model that both are of, or a session on it.
        tolerance: Share of the bytes by which the two may differ, 0.005 if not given.
        trust_data: Whether quants are taken that may have been calibrated on the held-out text.
        out: JSON file to write the result to, with the sums of every row; none if not given.
        force: Whether `out` may be replaced.
        **more: Texts and engine, as `open_session` takes them.

    Returns:
        Win, tie or loss of the candidate in `outcome`, decided by KL(reference‖quant), and every metric with its paired
        difference.

    Raises:
        UsageError: An argument is of a wrong type or value.
        CompareRefusedError: The two cannot be compared: other bytes, other or known tokens.
        QuantMismatchError: A quant is of another model.
        OutputExistsError: `out` is there.

    Example:
        ```python
        result = exltune.compare("tuned/", "quants/3bpw_H6", reference="MODEL", tolerance=0.02)
        print(result.outcome, result.metrics[0].difference)
        ```
    """
    sides = Side(arguments.path("candidate", candidate)), Side(arguments.path("against", against))
    share = arguments.number("tolerance", tolerance, "a share of the bytes, such as 0.005", least=0)
    options = CompareOptions(share, arguments.flag("trust_data", trust_data))
    file, force = optional(arguments.path, "out", out), arguments.flag("force", force)
    with session_on(reference, more, "compare", argument="reference", out=file) as session:
        return run(session, *sides, options, out=file, force=force)
