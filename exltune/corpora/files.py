"""Files of texts and the domains that they are named after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exltune.errors import DataError


def files_in(paths: Sequence[Path | str]) -> list[Path]:
    """The files, and those in the directories. Raises: DataError where there are none."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    if not files:
        names = ", ".join(map(str, paths)) or None
        raise DataError("no text files given", where=names, fix="Name at least one file of texts with `data`")
    return files


def domain_names(files: Sequence[Path]) -> list[str]:
    """The stems, or whole names where two files share a stem, numbered where even those are the same."""
    stems = [path.stem for path in files]
    names = [path.name if stems.count(path.stem) > 1 else path.stem for path in files]
    return [name if names.count(name) == 1 else f"{name}#{i}" for i, name in enumerate(names)]
