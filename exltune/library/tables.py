"""An evaluation as a table: rows, pandas, Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from exltune.budget import format_size
from exltune.errors import UsageError
from exltune.schema.evaluation import Evaluation, EvaluationRow

if TYPE_CHECKING:
    import pandas

_COLUMNS = ("Quant", "Size", "bpw", "KL(ref‖quant)", "KL(quant‖ref)", "Perplexity", "Top-1")


@dataclass(frozen=True)
class EvaluationTable(Sequence[EvaluationRow]):
    """Quants on held-out text, a row each; both KL in nats/token with standard errors over rows of tokens.

    Attributes:
        record: The whole evaluation, with its provenance.
    """

    record: Evaluation

    def __len__(self) -> int:
        return len(self.record.rows)

    @overload
    def __getitem__(self, place: int) -> EvaluationRow: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[EvaluationRow, ...]: ...
    def __getitem__(self, place: int | slice) -> EvaluationRow | tuple[EvaluationRow, ...]:
        return self.record.rows[place]

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame with every field of the rows as a column, and their names as the index.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError("pandas is not installed", fix="pip install pandas") from error
        return pandas.DataFrame([row.model_dump() for row in self.record.rows]).set_index("name")

    def to_markdown(self) -> str:
        """A Markdown table of the main columns."""
        lines = [_COLUMNS, ("---", *["---:"] * (len(_COLUMNS) - 1)), *map(_cells, self.record.rows)]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cells(row: EvaluationRow) -> tuple[str, ...]:
    return (
        row.name.replace("|", r"\|"),
        format_size(row.size_bytes),
        f"{row.bpw:.3f}",
        f"{row.kl_ref_quant:.4f} ± {row.kl_ref_quant_se:.4f}",
        f"{row.kl_quant_ref:.4f} ± {row.kl_quant_ref_se:.4f}",
        f"{row.perplexity:.3f}",
        f"{100 * row.top_1:.1f} %",
    )
