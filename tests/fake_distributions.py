"""Distributions that add rows by entry point, as pip installs them."""

from __future__ import annotations

from pathlib import Path

import pytest


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, group: str, rows: dict[str, str]) -> None:
    """Put a distribution on sys.path whose entry points are `rows`: name -> "module:object"."""
    info = folder / f"{name.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    points = "".join(f"{row} = {value}\n" for row, value in rows.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{points}")
    monkeypatch.syspath_prepend(folder)
