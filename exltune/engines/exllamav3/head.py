"""The end of a score pass: final norm, logits and metrics of every distinct mix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from exltune.engines.exllamav3.worker import Worker
from exltune.engines.streaming.results import Leaf
from exltune.errors import NonFiniteError
from exltune.metrics.logits import ReferenceLogits
from exltune.schema.mix import REFERENCE


def row_sums(
    worker: Worker,
    states: Mapping[int, Tensor],
    leaves: Sequence[Leaf],
    tokens: Tensor,
    rows: Iterable[int],
    positions: int,
) -> Tensor:
    """(leaves, 8, rows) sums over the first T - 1 positions of some rows; state 0 is the reference's.

    states: number -> (rows, T, hidden). positions: how many logits are made at one time.
    Raises: NonFiniteError if the reference's own logits hold NaN or inf; those of mixes end up in their sums.
    """
    sums = []
    with worker.norms():
        for row in rows:
            parts = even_parts(tokens.shape[1] - 1, positions)
            sums.append(torch.stack([_compare(worker, states, leaves, tokens, row, at) for at in parts]).sum(0))
    return torch.stack(sums, dim=-1) if sums else torch.zeros(len(leaves), 8, 0, dtype=torch.float64)


def even_parts(count: int, most: int) -> tuple[Tensor, ...]:
    """0, 1, ..., count - 1 in parts of nearly one size, `most` at most: a last part of one or two positions would be
    multiplied with activations in int8, as exllamav3 does it for single tokens.

    Source: exllamav3 1.6.5, exllamav3_ext/quant/exl3_gemv_int8.cu exl3_gemv_int8 (mode 2).
    """
    return torch.arange(count).tensor_split(-(-count // most))


@torch.inference_mode()
def _compare(
    worker: Worker, states: Mapping[int, Tensor], leaves: Sequence[Leaf], tokens: Tensor, row: int, at: Tensor
) -> Tensor:
    """(leaves, 8) sums over positions `at` of a row; the reference's logits are computed once."""
    next_ids = tokens[row, at + 1].to(worker.device)
    reference = ReferenceLogits(worker.logits(worker.normed(states[0][row, at]), REFERENCE), next_ids)
    if not torch.isfinite(reference.log_probs).all():
        raise NonFiniteError("the unquantized model's own logits hold NaN or inf", fix="Check the model's weights")
    values = torch.empty(len(leaves), 8, dtype=torch.float64)
    for place, (number, choice) in enumerate(leaves):
        logits = worker.logits(worker.normed(states[number][row, at]), choice)
        values[place] = reference.compare(logits).stacked().sum(-1).cpu()
    return values
