"""Command lines that make a record's numbers again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from exltune.schema.tokens import DataSettings, Texts


def command_line(words: Sequence[str], data: DataSettings, more: Sequence[str] = (), out: Path | None = None) -> str:
    """`exltune` with these words, the data's options, `more` and the output.

    Small models' own texts have no option: a comment tells of them, and the script that took them is to be run again.
    """
    taken = [word for path in data.paths for word in ("--data", path)]
    taken += ["--rows", str(data.rows), "--row-length", str(data.row_length), "--seed", str(data.seed)]
    written = ["--out", str(out)] if out is not None else []
    line = shlex.join(["exltune", *words, *taken, *more, *written])
    return f"{line}  # from Python, on the texts of the small models" if data.texts is Texts.SMALL_MODEL else line
