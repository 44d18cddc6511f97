"""JSON lines: one chat or text on each."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from exltune.corpora.rows import RowSample, check_row
from exltune.errors import DataError


def jsonl_samples(path: Path, domain: str) -> list[RowSample]:
    """The chats and texts of a file; lines are kept as they are and parsed again when needed, to hold less.

    Raises: DataError naming the line.
    """
    samples = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if line.strip() and check_row(_parsed(line, where), where):
                samples.append(RowSample(domain, f"{path.name}/{number}", where, partial(json.loads, line)))
    return samples


def _parsed(line: bytes, where: str) -> object:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"it is not JSON ({error})", where=where, fix="Write one JSON object on each line") from error
