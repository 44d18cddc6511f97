"""The session of a command that scores or quantizes, from its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from exltune.cli.console import RichReporter
from exltune.cli.options import DataFlags, EngineFlags

if TYPE_CHECKING:
    from exltune.pipeline.common.session import Session


def open_session(
    model: Path, data: DataFlags, engine: EngineFlags, *, quants: Path | None = None, out: Path | None = None
) -> Session:
    """A session on a model; scores lie beside `out` where no store was named. Raises: UsageError naming the option."""
    from exltune.pipeline.common.session import Session

    return Session(
        model,
        data.options(),
        quants=quants,
        engine=engine.options(),
        store=engine.store_for(out),
        reporter=RichReporter(),
    )
