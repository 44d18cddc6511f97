"""From sums per row to the records that are stored and shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from exltune.metrics.statistics import mean_and_se, perplexity
from exltune.schema.evaluation import EvaluationRow
from exltune.schema.score import Score


def score_from_rows(mix: str, sums: npt.NDArray[np.float64], positions: int) -> Score:
    """A Score from sums (3 + 5, rows), ordered as `PositionMetrics.stacked`, over `positions` positions a row."""
    kl_ref_mix, kl_mix_ref, nll, *top_k = sums.tolist()
    return Score(
        mix=mix,
        positions=positions,
        kl_ref_mix=tuple(kl_ref_mix),
        kl_mix_ref=tuple(kl_mix_ref),
        nll=tuple(nll),
        top_k=tuple(tuple(int(hits) for hits in row) for row in top_k),
    )


def evaluation_row(
    score: Score, *, name: str, path: str | None, size_bytes: int, bpw: float, head_bpw: float
) -> EvaluationRow:
    """The table row of a scored quant: means over rows, both KL in nats/token with standard errors."""
    kl_quant_ref = mean_and_se(score.kl_mix_ref, score.positions)
    kl_ref_quant = mean_and_se(score.kl_ref_mix, score.positions)
    agreement: dict[str, Any] = {
        f"top_{k}": mean_and_se(hits, score.positions).mean for k, hits in enumerate(score.top_k, start=1)
    }
    return EvaluationRow(
        name=name,
        path=path,
        size_bytes=size_bytes,
        bpw=bpw,
        head_bpw=head_bpw,
        kl_quant_ref=kl_quant_ref.mean,
        kl_quant_ref_se=kl_quant_ref.se,
        kl_ref_quant=kl_ref_quant.mean,
        kl_ref_quant_se=kl_ref_quant.se,
        perplexity=perplexity(score),
        tokens=score.positions * len(score.nll),
        **agreement,
    )
