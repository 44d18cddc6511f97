"""Which row of which evaluation belongs to which published quant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exltune.errors import DataError
from exltune.pipeline.publication.published import Published, PublishedQuant, PublishedTune
from exltune.publish.card_rows import check_comparable
from exltune.schema.evaluation import Evaluation, EvaluationRow, Verdict
from exltune.store.names import EVALUATION, MODEL, VERDICT
from exltune.store.records import read_record

_TUNED = "tuned"


@dataclass(frozen=True)
class MatchedRow:
    """A row, the evaluation's file, and the quant that it is of; None for a baseline that was never written."""

    file: Path
    row: EvaluationRow
    quant: PublishedQuant | None


def read_evaluations(found: Published, files: Sequence[Path]) -> list[tuple[Path, Evaluation]]:
    """Every tune's evaluation, then the files: all of one model on one token set. Raises: DataError,
    QuantMismatchError.
    """
    paths = [*(tune.file(EVALUATION) for tune in found.tunes), *files]
    if not paths:
        raise DataError(
            "there is no evaluation of these quants",
            where=str(found.quants[0].path),
            fix="Make one with exltune evaluate (its `out`), and give it as `evaluation`",
        )
    read = [(path, read_record(path, Evaluation)) for path in paths]
    for path, evaluation in read:
        if not evaluation.rows:
            raise DataError("it has no rows", where=str(path), fix="Evaluate the quants again")
    check_comparable(read)
    return read


def match_rows(found: Published, evaluations: Sequence[tuple[Path, Evaluation]]) -> list[MatchedRow]:
    """Rows of published quants and of baselines; rows of other directories are passed over.

    Raises: DataError for a quant without a row, and for a tune without a verdict.
    """
    tunes = {tune.path / EVALUATION: tune for tune in found.tunes}
    matched: list[MatchedRow] = []
    for file, evaluation in evaluations:
        matched += _of_file(found, file, evaluation, tunes.get(file))
    evaluated = {one.quant.branch for one in matched if one.quant is not None}
    for quant in found.quants:
        if quant.branch not in evaluated:
            raise DataError(
                f"no evaluation has a row of {quant.branch}",
                where=str(quant.path),
                fix="Evaluate it on the same tokens with exltune evaluate, and give it as `evaluation`",
            )
    return matched


def _of_file(found: Published, file: Path, evaluation: Evaluation, tune: PublishedTune | None) -> list[MatchedRow]:
    baseline = None if tune is None else read_record(tune.file(VERDICT), Verdict).uniform
    named = _by_name(found) if tune is None else _inside(found, tune)
    by_path = {quant.path.resolve(): quant for quant in found.quants}
    matched = []
    for row in evaluation.rows:
        at = None if row.path is None else by_path.get(Path(row.path).resolve())
        quant = at or named.get(row.name)
        if baseline is not None and row.name == baseline.name:
            # Where the uniform strategy comes out at one width, the base quant's own row stands for it.
            matched += [] if row.path is not None else [MatchedRow(file, row, None)]
        elif quant is not None or row.path is None:
            matched.append(MatchedRow(file, row, quant))
    return matched


def _inside(found: Published, tune: PublishedTune) -> Mapping[str, PublishedQuant]:
    """By the names that a tune gives its rows: they stay true where the directory was moved."""
    base = {quant.path.name: quant for quant in found.quants if quant.path.is_relative_to(tune.path)}
    base.pop(MODEL, None)
    return base | {_TUNED: tune.quant}


def _by_name(found: Published) -> Mapping[str, PublishedQuant]:
    names = [quant.path.resolve().name for quant in found.quants]
    return {name: quant for name, quant in zip(names, found.quants, strict=True) if names.count(name) == 1}
