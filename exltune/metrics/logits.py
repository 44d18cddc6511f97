"""Per-position comparison of a mix's logits with the reference's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Top-1 to top-5 agreement is reported.
TOP_K = 5


@dataclass(frozen=True)
class PositionMetrics:
    """One mix at n positions: kl_ref_mix, kl_mix_ref, nll (n,) fp64 in nats; top_k (5, n) bool.

    kl_ref_mix is KL(reference‖mix), kl_mix_ref is KL(mix‖reference), nll is -log p_mix(next token).
    """

    kl_ref_mix: Tensor
    kl_mix_ref: Tensor
    nll: Tensor
    top_k: Tensor

    def stacked(self) -> Tensor:
        """(3 + 5, n) fp64: kl_ref_mix, kl_mix_ref, nll, then top-1 to top-5 as 0 and 1."""
        return torch.cat([torch.stack([self.kl_ref_mix, self.kl_mix_ref, self.nll]), self.top_k.double()])


class ReferenceLogits:
    """The reference's side of the comparison at n positions, computed once for all mixes.

    logits: (n, vocab). next_ids: (n,) the token that really follows each position.
    """

    def __init__(self, logits: Tensor, next_ids: Tensor) -> None:
        self.log_probs = F.log_softmax(logits.float(), dim=-1)  # (n, vocab)
        self.probs = self.log_probs.exp()  # (n, vocab)
        self.top_ids = logits.topk(min(TOP_K, logits.shape[-1]), dim=-1).indices  # (n, 5)
        self.next_ids = next_ids[:, None]  # (n, 1)

    def compare(self, logits: Tensor) -> PositionMetrics:
        """Metrics of a mix's logits (n, vocab) at the same positions; log-softmax in fp32, sums in fp64."""
        # Worked out in place: fresh memory for each product costs more than the arithmetic.
        log_probs = F.log_softmax(logits.float(), dim=-1)  # (n, vocab)
        gap = self.log_probs - log_probs  # (n, vocab)
        nll = -log_probs.gather(1, self.next_ids)[:, 0].double()
        top_k = self._agreement(log_probs)
        kl_mix_ref = -log_probs.exp_().mul_(gap).sum(-1, dtype=torch.float64)
        kl_ref_mix = gap.mul_(self.probs).sum(-1, dtype=torch.float64)
        return PositionMetrics(kl_ref_mix, kl_mix_ref, nll, top_k)

    def _agreement(self, log_probs: Tensor) -> Tensor:
        """(5, n): whether the mix's ordered first k tokens are the reference's.

        They are if the mix's values at the reference's first k are in falling order and none of the other tokens
        lies above the k-th. That takes one maximum over the vocabulary where a top-k of the mix would sort.
        Source: exllamav3 eval/model_diff.py, "Top-K agreement".
        """
        values = log_probs.gather(1, self.top_ids)  # (n, 5)
        others = log_probs.scatter_(1, self.top_ids, float("-inf")).amax(-1, keepdim=True)  # (n, 1)
        log_probs.scatter_(1, self.top_ids, values)  # as it was
        following = torch.cat([values[:, 1:], others], dim=1)  # (n, 5)
        highest_after = following.flip(1).cummax(1).values.flip(1)  # (n, 5): the highest after place k
        agrees = (values >= highest_after).cumprod(1).bool()  # (n, 5)
        return agrees.T


def score_logits(reference: Tensor, mix: Tensor, ids: Tensor) -> Tensor:
    """(3 + 5, rows) fp64 sums over the first T - 1 positions of each row, ordered as `PositionMetrics.stacked`.

    reference, mix: (rows, T, vocab) logits. ids: (rows, T) the tokens they were computed from.
    """
    rows, length, vocab = reference.shape
    side = ReferenceLogits(reference[:, :-1].reshape(-1, vocab), ids[:, 1:].reshape(-1))
    values = side.compare(mix[:, :-1].reshape(-1, vocab)).stacked()  # (8, rows * (T - 1))
    return values.view(-1, rows, length - 1).sum(-1)
