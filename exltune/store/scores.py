"""Finished scores of a measurement under way, a JSON line each, flushed to disk before the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from exltune.schema.score import Score


class ScoreStore:
    """Scores by mix name; `job` names what they depend on, and a file of another job is begun anew."""

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self.scores: dict[str, Score] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines and lines[0] == _header(job):
            self._read(lines[1:])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_header(job) + "\n", encoding="utf-8")

    def _read(self, lines: list[str]) -> None:
        """Read whole lines; the one that a kill cut short is cut away."""
        for line in lines:
            try:
                score = Score.model_validate_json(line)
            except ValueError:
                break
            self.scores[score.mix] = score
        kept = self.path.read_text(encoding="utf-8").splitlines()[: 1 + len(self.scores)]
        self.path.write_text("\n".join(kept) + "\n", encoding="utf-8")

    def add(self, scores: Iterable[Score]) -> None:
        """Append scores and wait until they are on disk."""
        with self.path.open("a", encoding="utf-8") as handle:
            for score in scores:
                handle.write(score.model_dump_json() + "\n")
                self.scores[score.mix] = score
            handle.flush()
            os.fsync(handle.fileno())

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def _header(job: str) -> str:
    return json.dumps({"job": job})
