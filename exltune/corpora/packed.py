"""Packed token files, as exllamav3's convert takes them with --cal_data.

Safetensors with `input_ids` (rows, columns), right-padded, and `lengths` (rows,), without which every row is full.
Source: exllamav3 1.6.5, conversion/calibration_data.py (get_file_calibration).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from exltune.corpora.tokenizer import ModelTokenizer
from exltune.errors import CorruptFileError, DataError

IDS, LENGTHS = "input_ids", "lengths"
#: In the file's metadata: ModelTokenizer.sha256 of the tokens' tokenizer.
TOKENIZER = "tokenizer_sha256"

IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class PackedSample:
    """One row of a packed token file, without its padding."""

    domain: str
    id: str
    ids: IntArray

    def encode(self, tokenizer: ModelTokenizer) -> Sequence[int]:
        """As Sample.encode; the file's ids were held against the tokenizer when it was read."""
        ids: list[int] = self.ids.tolist()
        return ids


def packed_samples(path: Path, domain: str, tokenizer: ModelTokenizer) -> list[PackedSample]:
    """The rows of a packed token file.

    Raises: CorruptFileError for a damaged file, DataError for tensors that are missing or contradict each other, for
    ids outside the vocabulary, and for a file that names another tokenizer.
    """
    tensors, metadata = _read(path)
    _check_tokenizer(path, metadata, tokenizer)
    ids = _matrix(path, tensors)
    lengths = _lengths(path, tensors, ids)
    for number, length in enumerate(lengths.tolist(), 1):
        low, high = int(ids[number - 1, :length].min()), int(ids[number - 1, :length].max())
        if low < 0 or high >= tokenizer.size:
            raise DataError(
                f"its ids reach from {low} to {high}, and the model's tokenizer has {tokenizer.size}",
                where=f"{path}, row {number}",
                fix="Pack the texts again with this model's tokenizer",
            )
    return [
        PackedSample(domain, f"{path.name}/{number}", row[:length])
        for number, (row, length) in enumerate(zip(ids, lengths.tolist(), strict=True), 1)
    ]


def packed_bytes(rows: IntArray, tokenizer: ModelTokenizer, notes: Mapping[str, str]) -> bytes:
    """A packed token file of full rows (rows, row_length); notes go into its metadata."""
    ids = np.ascontiguousarray(rows, dtype=np.int32)
    lengths = np.full(len(ids), ids.shape[1], dtype=np.int32)
    content: bytes = save({IDS: ids, LENGTHS: lengths}, {TOKENIZER: tokenizer.sha256, **notes})
    return content


def _read(path: Path) -> tuple[dict[str, IntArray], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in (IDS, LENGTHS) if name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(
            f"it is not a safetensors file, or a damaged one ({error})",
            where=str(path),
            fix="Write or download it again",
        ) from error
    except (TypeError, ValueError) as error:
        raise DataError(
            f"its tensors are of a kind that holds no token ids ({error})", where=str(path), fix="Write integers"
        ) from error


def _check_tokenizer(path: Path, metadata: Mapping[str, str], tokenizer: ModelTokenizer) -> None:
    if metadata.get(TOKENIZER, tokenizer.sha256) != tokenizer.sha256:
        raise DataError(
            f"its tokens were made with another tokenizer than that of {tokenizer.model_dir}",
            where=str(path),
            fix="Pack the texts again with this model's tokenizer; sets of different tokenizers cannot be mixed",
        )


def _matrix(path: Path, tensors: Mapping[str, IntArray]) -> IntArray:
    if IDS not in tensors:
        raise DataError(f"it has no {IDS}", where=str(path), fix=f"A packed token file has {IDS} and {LENGTHS}")
    ids = tensors[IDS]
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(
            f"its {IDS} are {ids.dtype} of shape {ids.shape}", where=str(path), fix="Write integers (rows, columns)"
        )
    return ids


def _lengths(path: Path, tensors: Mapping[str, IntArray], ids: IntArray) -> IntArray:
    rows, columns = ids.shape
    lengths = tensors.get(LENGTHS)
    if lengths is None:
        lengths = np.full(rows, columns)
    if lengths.shape != (rows,) or not np.issubdtype(lengths.dtype, np.integer):
        raise DataError(
            f"its {LENGTHS} are {lengths.dtype} of shape {lengths.shape}, and {IDS} has {rows} rows",
            where=str(path),
            fix="Write one whole number for each row",
        )
    wrong = np.flatnonzero((lengths < 1) | (lengths > columns))
    if len(wrong):
        raise DataError(
            f"row {wrong[0] + 1} has length {lengths[wrong[0]]}, and the rows have {columns} columns",
            where=str(path),
            fix=f"{LENGTHS} count the tokens of each row before its padding: 1 to {columns}",
        )
    return lengths
