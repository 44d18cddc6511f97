"""Parquet tables of chats or texts, read by pyarrow where that is installed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from exltune.corpora.rows import COLUMNS, MESSAGES, TEXT, RowSample, check_row, missing_columns
from exltune.errors import CorruptFileError, UsageError


def parquet_samples(path: Path, domain: str) -> list[RowSample]:
    """The chats and texts of a table, one a row; columns that are not needed are not read.

    Raises: UsageError where pyarrow is missing, CorruptFileError, DataError naming the row or the columns.
    """
    table = _read(path)
    samples = []
    for number in range(table.num_rows):
        where = f"{path}, row {number + 1}"
        load = partial(_row, table, number)
        if check_row(load(), where):
            samples.append(RowSample(domain, f"{path.name}/{number + 1}", where, load))
    return samples


def _read(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "parquet files need pyarrow, which is not installed",
            where=str(path),
            fix="pip install 'exltune[parquet]', or write the rows as JSON lines",
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            if not {MESSAGES, TEXT} & set(columns):
                raise missing_columns(file.schema_arrow.names, str(path))
            return file.read(columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorruptFileError(
            f"it is not a parquet file, or a damaged one ({error})", where=str(path), fix="Download it again"
        ) from error


def _row(table: Any, number: int) -> dict[str, Any]:
    return {name: _without_nulls(table.column(name)[number].as_py()) for name in table.column_names}


def _without_nulls(value: Any) -> Any:
    """Arrow fills the fields that a message lacks with nulls, and templates ask whether a field is there."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None or key == "content"}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
