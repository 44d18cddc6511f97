"""The end of a score pass: final norm, logits and metrics of every distinct mix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from exltune.engines.reference.layer import Tensors
from exltune.engines.reference.shell import ModelShell
from exltune.engines.reference.store import WeightStore
from exltune.engines.reference.workers import Workers
from exltune.engines.streaming.results import Leaf, RowSums
from exltune.errors import NonFiniteError
from exltune.metrics.logits import ReferenceLogits
from exltune.schema.mix import REFERENCE, Choice


class HeadPass:
    """Heads of all choices in memory; the reference's is always among them."""

    def __init__(self, shell: ModelShell, store: WeightStore, head_id: str, choices: Iterable[Choice]) -> None:
        self.shell = shell
        loaded = store.load((head_id, choice) for choice in (REFERENCE, *choices))
        self.heads = {choice: _Head(tensors) for (_, choice), tensors in loaded.items()}

    def row_sums(
        self, states: Mapping[int, Tensor], leaves: Sequence[Leaf], ids: Tensor, batch: int, workers: Workers
    ) -> RowSums:
        """Sums over the first T - 1 positions of each row; states (rows, T, hidden), state 0 is the reference's.

        Raises: NonFiniteError if the reference's logits hold NaN or inf; those of mixes end up in their sums.
        """
        rows, length = ids.shape
        where = torch.arange(rows * length).view(rows, length)[:, :-1].reshape(-1)  # (rows * (T - 1),)
        flat = {number: state.view(rows * length, -1) for number, state in states.items()}
        parts = where.split(batch)
        sums = torch.zeros(len(leaves), 8, rows, dtype=torch.float64)
        for at, values in zip(parts, workers.map(lambda at: self._compare(flat, leaves, ids, at), parts), strict=True):
            sums.index_add_(2, at // length, values)
        return dict(zip(leaves, sums, strict=True))

    def _compare(self, flat: Mapping[int, Tensor], leaves: Sequence[Leaf], ids: Tensor, at: Tensor) -> Tensor:
        """(leaves, 8, n) metrics at the positions `at` (n,); the reference's logits are computed once."""
        reference = ReferenceLogits(self._logits(flat[0][at], REFERENCE), ids.view(-1)[at + 1])
        if not torch.isfinite(reference.log_probs).all():
            raise NonFiniteError("the unquantized model's own logits hold NaN or inf", fix="Check the model's weights")
        values = torch.empty(len(leaves), 8, len(at), dtype=torch.float64)
        for place, (number, choice) in enumerate(leaves):
            values[place] = reference.compare(self._logits(flat[number][at], choice)).stacked()
        return values

    def _logits(self, hidden: Tensor, choice: Choice) -> Tensor:
        head = self.heads[choice]
        return F.linear(self.shell.norm(hidden), head.weight, head.bias)


class _Head:
    """The head's weight (vocab, hidden) and bias."""

    def __init__(self, tensors: Tensors) -> None:
        by_leaf = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
        self.weight, self.bias = by_leaf["weight"], by_leaf.get("bias")
