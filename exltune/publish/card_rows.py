"""Evaluations as the rows of one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import norm

from exltune.errors import DataError, QuantMismatchError
from exltune.schema.card import CardRow, RowKind
from exltune.schema.evaluation import Evaluation, EvaluationRow
from exltune.schema.provenance import Provenance

#: Percent; of every interval in a card.
CONFIDENCE = 95.0
#: Half width of the interval in standard errors.
STANDARD_ERRORS = float(norm.ppf(0.5 + CONFIDENCE / 200))
_GIB, _GB = 1 << 30, 10**9


@dataclass(frozen=True)
class QuantFacts:
    """The numbers of a directory beside its evaluation. contexts: as in CardRow."""

    branch: str
    kind: RowKind
    download_bytes: int
    contexts: tuple[int | None, ...]


def check_comparable(evaluations: Sequence[tuple[Path, Evaluation]]) -> None:
    """Raises: QuantMismatchError for evaluations of different models, DataError for different token sets."""
    first_file, first = evaluations[0]
    for file, other in evaluations[1:]:
        ours, theirs = first.provenance, other.provenance
        if ours.model_sha256 != theirs.model_sha256:
            raise QuantMismatchError(
                f"its reference is another model, {_reference(theirs)}, than that of {first_file}, {_reference(ours)}",
                where=str(file),
                fix="Make a card for each, or evaluate all quants against one reference",
            )
        if ours.tokens_sha256 != theirs.tokens_sha256:
            raise DataError(
                f"its held-out tokens differ from those of {first_file}: one table cannot compare them",
                where=str(file),
                fix="Evaluate all quants with the same `data`, `rows`, `row_length` and `seed`",
            )


def _reference(noted: Provenance) -> str:
    kind = "" if noted.reference is None else f", a quant of {noted.reference.bpw:.2f} bpw"
    return f"{noted.model_path} (sha256 {noted.model_sha256[:8]}{kind})"


def card_row(row: EvaluationRow, facts: QuantFacts | None) -> CardRow:
    """A row of the table; facts: None for a mix that has no directory."""
    download = None if facts is None else facts.download_bytes
    return CardRow(
        name=row.name if facts is None else facts.branch,
        branch=None if facts is None else facts.branch,
        kind="uniform" if facts is None else facts.kind,
        size_bytes=row.size_bytes,
        size_gib=row.size_bytes / _GIB,
        size_gb=row.size_bytes / _GB,
        download_bytes=download,
        download_gb=None if download is None else download / _GB,
        bpw=row.bpw,
        head_bpw=row.head_bpw,
        kl_quant_ref=row.kl_quant_ref,
        kl_quant_ref_half=STANDARD_ERRORS * row.kl_quant_ref_se,
        kl_ref_quant=row.kl_ref_quant,
        kl_ref_quant_half=STANDARD_ERRORS * row.kl_ref_quant_se,
        perplexity=row.perplexity,
        top=tuple(100 * share for share in (row.top_1, row.top_2, row.top_3, row.top_4, row.top_5)),
        contexts=() if facts is None else facts.contexts,
        is_reference=row.is_reference,
    )


def one_of_each(rows: Sequence[tuple[Path, CardRow]]) -> list[CardRow]:
    """Rows by size, each quant once; the files are the evaluations that they come from.

    Raises: DataError for two different quants of one name.
    """
    found: dict[str, tuple[Path, CardRow]] = {}
    for file, row in rows:
        other_file, other = found.setdefault(row.name, (file, row))
        if (other.size_bytes, other.kl_ref_quant) != (row.size_bytes, row.kl_ref_quant):
            raise DataError(
                f"{row.name} scored otherwise in {other_file}: two different quants have that name",
                where=str(file),
                fix="Leave one of them out",
            )
    return sorted((row for _, row in found.values()), key=lambda row: (row.size_bytes, row.kind))


def front(rows: Sequence[CardRow]) -> list[CardRow]:
    """Rows that no row of at most their size beats in KL(reference‖quant), by ascending size."""
    best: list[CardRow] = []
    for row in sorted(rows, key=lambda row: (row.size_bytes, row.kl_ref_quant)):
        if not best or row.kl_ref_quant < best[-1].kl_ref_quant:
            best.append(row)
    return best
