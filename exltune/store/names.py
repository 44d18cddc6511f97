"""Names of the files and directories that exltune writes within an output directory."""

from __future__ import annotations

#: Beside a base quant: how it was made. In a built model: its recipe.
RECORD, RECIPE = "exltune.json", "recipe.yaml"

#: In the directory of a tune.
JOB, QUANTS, MEASUREMENT, MODEL = "tune.json", "quants", "measurement.json", "model"
EVALUATION, VERDICT = "evaluation.json", "verdict.json"
