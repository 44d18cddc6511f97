"""Options of the place and form of a result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """Of every command that writes."""

    force: Force = False
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ResultFlags(OutputFlags):
    """Of a command whose result is its files."""

    out: Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.", show_default=False)]


@dataclass(frozen=True, kw_only=True)
class CopyFlags(OutputFlags):
    """Of a command that shows its result, and writes it where it is asked to."""

    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write JSON here.", show_default=False)] = None
