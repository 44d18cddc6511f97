"""What a tune's directory is for."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record


class TuneJob(Record):
    """What a tune directory is for; another job may not go on in it. budget: as options of the command line."""

    schema_version: Literal[2] = 2
    model: str
    budget: tuple[str, ...]
    level: int
    job: str
