"""Numbers that tell two models apart: KL both ways, likelihood of the next token, ordered top-k agreement."""

from exltune.metrics.logits import PositionMetrics, ReferenceLogits, score_logits
from exltune.metrics.rows import evaluation_row, score_from_rows
from exltune.metrics.statistics import (
    MeanAndError,
    mean_and_se,
    mean_interval,
    paired_difference,
    perplexity,
    row_means,
)

__all__ = [
    "MeanAndError",
    "PositionMetrics",
    "ReferenceLogits",
    "evaluation_row",
    "mean_and_se",
    "mean_interval",
    "paired_difference",
    "perplexity",
    "row_means",
    "score_from_rows",
    "score_logits",
]
