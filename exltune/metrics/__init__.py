"""Numbers that tell two models apart: KL(ref‖quant), KL(quant‖ref), likelihood of the next token, ordered top-k.

Comparisons of logits are in `metrics.logits`, which alone needs torch.
"""

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
    "evaluation_row",
    "mean_and_se",
    "mean_interval",
    "paired_difference",
    "perplexity",
    "row_means",
    "score_from_rows",
]
