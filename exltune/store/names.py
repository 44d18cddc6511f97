"""Names of the files and directories that exltune writes within an output directory."""

from __future__ import annotations

from pathlib import Path

#: Beside a base quant: how it was made. In a built model: its recipe.
RECORD, RECIPE = "exltune.json", "recipe.yaml"

#: Scores, beside the outputs that they are of.
SCORES = "scores.db"

#: In the directory of a tune.
JOB, QUANTS, MEASUREMENT, MODEL = "tune.json", "quants", "measurement.json", "model"
EVALUATION, VERDICT = "evaluation.json", "verdict.json"


def user_scores() -> Path:
    """Where the scores of work without an output go: a file in the user's cache directory."""
    from platformdirs import user_cache_path

    return user_cache_path("exltune") / SCORES
