"""Means, standard errors and paired intervals over rows; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from exltune.errors import DataError
from exltune.schema.evaluation import PairedDifference
from exltune.schema.score import Score


class MeanAndError(NamedTuple):
    """A mean over rows and its standard error, in the unit of the values."""

    mean: float
    se: float


def row_means(sums: Sequence[float], positions: int) -> npt.NDArray[np.float64]:
    """(rows,) mean per position of each row, from its sum over `positions` positions."""
    return np.asarray(sums, dtype=np.float64) / positions


def mean_and_se(sums: Sequence[float], positions: int) -> MeanAndError:
    """Mean per position and its standard error over rows, from the rows' sums over `positions` positions each.

    All rows have the same number of positions, so the ratio of sums is the mean of the rows' means; the standard
    error is std(ddof=1) / sqrt(rows), NaN for a single row. Rows, not tokens, are the independent draws.
    """
    means = row_means(sums, positions)
    se = float(means.std(ddof=1) / np.sqrt(means.size)) if means.size > 1 else float("nan")
    return MeanAndError(float(means.mean()), se)


def perplexity(score: Score) -> float:
    """exp of the mean -log p_mix(next token) over all scored positions."""
    return float(np.exp(mean_and_se(score.nll, score.positions).mean))


def paired_difference(baseline: Score, tuned: Score, confidence: float = 0.95) -> PairedDifference:
    """KL(reference‖baseline) - KL(reference‖tuned) in nats/token, paired by row; positive: tuned is better.

    The interval is Student's t over rows with rows - 1 degrees of freedom.
    Raises: DataError for scores of different rows or of fewer than two.
    """
    rows = len(baseline.kl_ref_mix)
    if (rows, baseline.positions) != (len(tuned.kl_ref_mix), tuned.positions):
        raise DataError(
            "scores of different rows cannot be compared in pairs", where=f"{baseline.mix!r} and {tuned.mix!r}"
        )
    if rows < 2:
        raise DataError("a paired interval needs at least two rows", fix="Score more rows")
    sums = np.asarray(baseline.kl_ref_mix) - np.asarray(tuned.kl_ref_mix)  # (rows,)
    return mean_interval(sums.tolist(), baseline.positions, confidence)


def mean_interval(sums: Sequence[float], positions: int, confidence: float = 0.95) -> PairedDifference:
    """Mean per position with its Student's t interval over rows (rows - 1 degrees of freedom), from sums (rows,)."""
    mean, se = mean_and_se(sums, positions)
    half = float(stdtrit(len(sums) - 1, 0.5 + confidence / 2)) * se
    return PairedDifference(mean=mean, se=se, ci_low=mean - half, ci_high=mean + half)
