"""Finished scores of a measurement under way, a JSON line each, flushed to disk before the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from exltune.schema.score import Score
from exltune.store.files import write_text


class ScoreStore:
    """Scores by mix name; `job` names what they depend on, and a file of another job is begun anew."""

    def __init__(self, path: Path, job: str) -> None:
        self.path = path
        self.scores: dict[str, Score] = {}
        self._header = json.dumps({"job": job})
        self._lines = self._whole_lines()

    def _whole_lines(self) -> list[str]:
        """The lines of this job up to the one that a kill cut short."""
        lines = self.path.read_bytes().splitlines() if self.path.is_file() else []
        if not lines or lines[0] != self._header.encode():
            return [self._header]
        kept = [self._header]
        for line in lines[1:]:
            try:
                score = Score.model_validate_json(line)
            except ValidationError:
                break
            self.scores[score.mix] = score
            kept.append(line.decode())
        return kept

    def add(self, scores: Sequence[Score]) -> None:
        """Append scores and wait until they are on disk; where that fails, those that were there stay."""
        if self._lines:
            write_text(self.path, "\n".join(self._lines) + "\n")
            self._lines = []
        size_bytes = self.path.stat().st_size
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.writelines(score.model_dump_json() + "\n" for score in scores)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError:
            os.truncate(self.path, size_bytes)
            if not self.scores:
                self.remove()
            raise
        self.scores |= {score.mix: score for score in scores}

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
