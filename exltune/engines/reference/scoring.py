"""One pass of all mixes through the model: layer by layer, then the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor

from exltune.engines.base import Progress, ScoreStats
from exltune.engines.reference.prefix_tree import Edge, LayerChoice, PrefixTree
from exltune.engines.reference.shell import ModelShell
from exltune.engines.reference.states import StateTable, peak_states
from exltune.engines.reference.store import Tensors, WeightStore
from exltune.errors import NonFiniteError
from exltune.metrics import ReferenceLogits
from exltune.schema.mix import REFERENCE, Choice

#: A leaf of the prefix tree: (state after the last layer, head choice).
Leaf = tuple[int, Choice]

#: Sums of a leaf per row, (3 + 5, rows) fp64, ordered as PositionMetrics.stacked.
RowSums = Mapping[Leaf, Tensor]


@dataclass(frozen=True)
class Limits:
    """Memory that a score call may take beside weights.

    state_bytes: hidden states; more rows than fit are scored in slabs, each of which loads the weights again.
    batch_bytes: one activation of a layer batch. head_bytes: logits of one mix in a head batch. Small batches stay in
    the processor's cache, which is worth more than fewer calls.
    """

    state_bytes: int = 2 << 30
    batch_bytes: int = 1 << 20
    head_bytes: int = 2 << 20

    def slab_rows(self, states: int, length: int, hidden: int) -> int:
        """Rows whose states fit."""
        return max(1, self.state_bytes // (4 * states * length * hidden))

    def batch_rows(self, length: int, hidden: int) -> int:
        """Rows in a layer batch."""
        return max(1, self.batch_bytes // (4 * length * hidden))

    def head_positions(self, vocab: int) -> int:
        """Positions in a head batch: enough to make reading the head's weights worth it."""
        return max(64, self.head_bytes // (4 * vocab))


class ScorePass:
    """Scores a prefix tree on tokens; keeps counts and seconds in `stats`."""

    def __init__(
        self, shell: ModelShell, store: WeightStore, group_ids: Sequence[Sequence[str]], head_id: str, limits: Limits
    ) -> None:
        self.shell, self.store, self.limits = shell, store, limits
        self.group_ids, self.head_id = group_ids, head_id
        self.stats = ScoreStats()

    @torch.no_grad()
    def run(self, tree: PrefixTree, tokens: Tensor, progress: Progress | None) -> RowSums:
        """Row sums of every distinct leaf on tokens (rows, T). Raises: NonFiniteError if the reference has NaN."""
        hidden = self.shell.inner.config.hidden_size
        slabs = tokens.split(self.limits.slab_rows(peak_states(tree.layers), tokens.shape[1], hidden))
        self.stats.slabs, self.stats.layer_forwards = len(slabs), tree.layer_forwards
        ticker = _Ticker(progress, tree.layer_forwards * len(slabs))
        kwargs = self.shell.layer_kwargs(tokens.shape[1])
        leaves = tuple(dict.fromkeys(tree.leaves))
        self.stats.head_forwards = len({*leaves, (0, REFERENCE)})
        parts: list[dict[Leaf, Tensor]] = []
        for ids in slabs:
            table = StateTable(self.shell.embed(ids))
            for layer, edges in enumerate(tree.layers):
                self._advance(table, layer, edges, kwargs[layer], ticker)
            parts.append(self._head(table, leaves, ids))
        return {leaf: torch.cat([part[leaf] for part in parts], dim=1) for leaf in leaves}

    def _advance(
        self, table: StateTable, layer: int, edges: Sequence[Edge], kwargs: Mapping[str, object], ticker: _Ticker
    ) -> None:
        ticker.what = f"layer {layer}"
        weights = self._load(layer, edges)
        start = perf_counter()
        module, state = self.shell.layers[layer], table.states[0]

        def use(choice: LayerChoice) -> None:
            self.shell.fill(layer, [weights[pair] for pair in zip(self.group_ids[layer], choice, strict=True)])

        rows = self.limits.batch_rows(state.shape[1], state.shape[2])
        table.advance(edges, rows, use, lambda hidden: module(hidden, **kwargs), ticker.add)
        self.shell.empty(layer)
        self.stats.forward_seconds += perf_counter() - start

    def _load(self, layer: int, edges: Sequence[Edge]) -> dict[tuple[str, Choice], Tensors]:
        """Every (group, choice) that some edge needs, each once; the rest of the layer is put in place."""
        start = perf_counter()
        ids = self.group_ids[layer]
        needed = dict.fromkeys(pair for edge in edges for pair in zip(ids, edge.choice, strict=True))
        weights = {pair: self.store.group(*pair) for pair in needed}
        self.shell.fill(layer, [self.store.fixed(self.shell.fixed_names(layer))])
        self.shell.fill(layer, [weights[id_, edges[0].choice[place]] for place, id_ in enumerate(ids)])
        self.shell.check_filled(layer)
        self.stats.load_seconds += perf_counter() - start
        return weights

    def _head(self, table: StateTable, leaves: Sequence[Leaf], ids: Tensor) -> dict[Leaf, Tensor]:
        """Row sums of every leaf; the reference's logits are computed once for each batch of positions."""
        start = perf_counter()
        choices = dict.fromkeys((REFERENCE, *(choice for _, choice in leaves)))
        heads = {choice: _HeadWeights(self.store.group(self.head_id, choice)) for choice in choices}
        self.stats.load_seconds += perf_counter() - start
        start = perf_counter()
        rows, length = ids.shape
        where = torch.arange(rows * length).view(rows, length)[:, :-1].reshape(-1)  # (rows * (T - 1),)
        states = {number: state.view(rows * length, -1) for number, state in table.states.items()}
        sums = {leaf: torch.zeros(8, rows, dtype=torch.float64) for leaf in leaves}
        for at in where.split(self.limits.head_positions(heads[REFERENCE].vocab)):
            reference = ReferenceLogits(self._logits(states[0][at], heads[REFERENCE]), ids.view(-1)[at + 1])
            _check_reference(reference)
            row_of = at // length
            for number, choice in leaves:
                values = reference.compare(self._logits(states[number][at], heads[choice])).stacked()
                sums[number, choice].index_add_(1, row_of, values)
        self.stats.head_seconds += perf_counter() - start
        return sums

    def _logits(self, hidden: Tensor, head: _HeadWeights) -> Tensor:
        return F.linear(self.shell.norm(hidden), head.weight, head.bias)


class _HeadWeights:
    """The head's weight (vocab, hidden) and bias at one choice."""

    def __init__(self, tensors: Tensors) -> None:
        by_leaf = {name.rpartition(".")[2]: tensor for name, tensor in tensors.items()}
        self.weight, self.bias = by_leaf["weight"], by_leaf.get("bias")
        self.vocab = self.weight.shape[0]


class _Ticker:
    """Adds up layer forwards for the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done, self.what = progress, total, 0, "embedding"
        self.add(0)

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total, self.what)


def _check_reference(reference: ReferenceLogits) -> None:
    if not torch.isfinite(reference.log_probs).all():
        raise NonFiniteError("the unquantized model's own logits hold NaN or inf", fix="Check the model's weights")
