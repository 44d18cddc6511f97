"""The command line: it parses, calls the pipeline and renders; nothing is decided here."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path


def main() -> None:
    """Entry point of the `exltune` command."""
    # Idle OpenMP threads that spin starve the busy ones wherever cores are shared; must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from exltune.cli.app import app

    app(args=repeat_data_option(sys.argv[1:]))


def repeat_data_option(arguments: list[str]) -> list[str]:
    """`--data a x=b` -> `--data a --data x=b` for files that exist: options of click take one value each."""
    result: list[str] = []
    in_data = False
    for previous, argument in pairwise(["", *arguments]):
        first = previous == "--data" or argument.startswith("--data=")
        in_data = first or (in_data and not argument.startswith("-") and _is_file(argument))
        if in_data and not first:
            result.append("--data")
        result.append(argument)
    return result


def _is_file(entry: str) -> bool:
    """Whether an entry, perhaps with a domain (`math=a.jsonl`), names a file."""
    return Path(entry).is_file() or Path(entry.partition("=")[2]).is_file()
