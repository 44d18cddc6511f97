"""Finished scores out of a comparison's file, checked to be whole and still true."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from exltune.errors import CompareRefusedError, DataError
from exltune.inventory import model_fingerprint
from exltune.schema.compare import CompareResult, ScoredQuant, Source
from exltune.schema.evaluation import Evaluation
from exltune.store.records import read_record

_ROLES = ("candidate", "baseline")
_TOP_K = 5


def read_scored(where: Path, role: str) -> ScoredQuant:
    """The quant that plays `role` in a file `where` of compare, or the one named by `FILE#candidate`, `FILE#baseline`.

    Raises: CompareRefusedError for an evaluation (means alone), an incomplete run, or a directory that has changed.
    """
    name, _, asked = str(where).rpartition("#")
    file, role = (Path(name), asked) if asked in _ROLES and name else (where, role)
    scored: ScoredQuant = getattr(_read(file), role)
    _check_complete(scored, file)
    path = Path(scored.row.path or "")
    if path.is_dir() and model_fingerprint(path) != scored.sha256:
        raise CompareRefusedError(
            f"the directory {path} has changed since it was scored", where=str(file), fix="Give the directory itself"
        )
    return scored.model_copy(update={"source": Source(file=str(file), command=scored.source.command)})


def _read(file: Path) -> CompareResult:
    try:
        return read_record(file, CompareResult)
    except DataError as error:
        try:
            evaluation = read_record(file, Evaluation)
        except DataError:
            raise error from None
        paths = ", ".join(row.path for row in evaluation.rows if row.path is not None)
        raise CompareRefusedError(
            "it is an evaluation: it holds means, and paired intervals need the sums of every row",
            where=str(file),
            fix=f"Give a file that exltune compare wrote, or a directory: {paths}",
        ) from error


def _check_complete(scored: ScoredQuant, file: Path) -> None:
    """All rows that the record promises, all finite."""
    score, promised = scored.score, scored.provenance
    sums: list[Sequence[float]] = [score.kl_ref_mix, score.kl_mix_ref, score.nll, *score.top_k]
    rows = sorted({len(values) for values in sums})
    whole = rows == [promised.rows] and len(score.top_k) == _TOP_K and score.positions + 1 == promised.row_length
    if not whole or promised.tokens_sha256 is None:
        raise CompareRefusedError(
            f"the run of {scored.row.name} is not complete: {rows[0]} rows of {score.positions + 1} tokens where "
            f"{promised.rows} of {promised.row_length} were asked for",
            where=str(file),
            fix=f"Give the directory {scored.row.path}, to score it again",
        )
    if scored.row.size_bytes < 1:
        raise CompareRefusedError(f"{scored.row.name} has no bytes", where=str(file), fix="Give the directory itself")
    if not all(math.isfinite(value) for values in sums for value in values):
        raise CompareRefusedError(
            f"scores of {scored.row.name} are NaN or inf", where=str(file), fix="Check that quant"
        )
