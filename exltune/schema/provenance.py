"""Where a result came from."""

from __future__ import annotations

from exltune.schema.base import Record


class Provenance(Record):
    """Hashes and settings that a result depends on; `tokens_sha256` is None where no tokens were used."""

    exltune_version: str
    engine: str
    model_path: str
    model_sha256: str
    tokens_sha256: str | None = None
    rows: int | None = None
    row_length: int | None = None
    seed: int | None = None
