"""The job of a tune's directory."""

from __future__ import annotations

from typing import Literal

from exltune.schema.base import Record


class TuneJob(Record):
    """The job of a tune directory; another job may not go on in it. budget: as options of the command line."""

    schema_version: Literal[2] = 2
    model: str
    budget: tuple[str, ...]
    level: int
    job: str
