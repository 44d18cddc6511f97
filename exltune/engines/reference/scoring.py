"""One pass of all mixes through the model: layer by layer, then the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from exltune.engines.base import Progress, ScoreStats
from exltune.engines.reference.attention import cache_keywords
from exltune.engines.reference.head import HeadPass
from exltune.engines.reference.layer import LayerModule
from exltune.engines.reference.shell import ModelShell
from exltune.engines.reference.store import GroupChoice, WeightStore
from exltune.engines.reference.workers import Workers
from exltune.engines.streaming.prefix_tree import Edge, LayerChoice, PrefixTree, layer_groups
from exltune.engines.streaming.results import Leaf, RowSums
from exltune.engines.streaming.states import Batch, LayerStep, peak_states
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE


@dataclass(frozen=True)
class Limits:
    """Memory that a score call may take beside weights.

    state_bytes: hidden states held at one time; more rows than fit are scored in slabs, each of which needs the weights
    again, and where one row of all mixes does not fit, the mixes are scored in parts.
    batch_bytes: one hidden state of a layer batch. head_bytes: logits of one mix in a head batch. Small batches stay in
    the processor's cache, which is worth more than fewer calls.
    """

    state_bytes: int = 2 << 30
    batch_bytes: int = 1 << 20
    head_bytes: int = 1 << 19

    def slab_rows(self, states: int, length: int, hidden: int) -> int:
        """Rows whose states fit, whole batches if they can be: rows must not be cut differently for want of memory."""
        rows, batch = self.state_bytes // (4 * states * length * hidden), self.batch_rows(length, hidden)
        return rows - rows % batch if rows > batch else rows

    def batch_rows(self, length: int, hidden: int) -> int:
        """Rows in a layer batch."""
        return max(1, self.batch_bytes // (4 * length * hidden))

    def head_positions(self, vocab: int) -> int:
        """Positions in a head batch: enough to make reading the head's weights worth it."""
        return max(64, self.head_bytes // (4 * vocab))


class ScorePass:
    """Scores a prefix tree on tokens (rows, T) and adds its counts to `stats`."""

    def __init__(
        self,
        shell: ModelShell,
        store: WeightStore,
        inventory: Inventory,
        limits: Limits,
        workers: Workers,
        stats: ScoreStats,
    ) -> None:
        self.shell, self.store, self.inventory = shell, store, inventory
        self.limits, self.workers = limits, workers
        self.group_ids = layer_groups(inventory)
        self.stats = stats

    @torch.no_grad()
    def run(self, tree: PrefixTree, tokens: Tensor, progress: Progress | None) -> RowSums:
        """Row sums of every distinct leaf; one row of all states must fit.

        Raises: NonFiniteError if the reference's own logits hold NaN.
        """
        rows = self.limits.slab_rows(peak_states(tree.layers), tokens.shape[1], self.inventory.hidden_size)
        slabs = tokens.split(rows)
        leaves = tuple(dict.fromkeys(tree.leaves))
        self.stats.slabs += len(slabs)
        self.stats.layer_forwards += tree.layer_forwards
        self.stats.head_forwards += len({*leaves, (0, REFERENCE)})
        ticker = _Ticker(progress, tree.layer_forwards * len(slabs))
        kwargs = self.shell.layer_kwargs(tokens.shape[1])
        parts: list[RowSums] = []
        for ids in slabs:
            states: Mapping[int, Tensor] = {0: self.shell.embed(ids)}
            for layer, edges in enumerate(tree.layers):
                ticker.what = f"layer {layer}"
                states = self._advance(states, layer, edges, kwargs[layer], ticker)
            parts.append(self._head(states, leaves, ids))
        return {leaf: torch.cat([part[leaf] for part in parts], dim=1) for leaf in leaves}

    def _advance(
        self,
        states: Mapping[int, Tensor],
        layer: int,
        edges: Sequence[Edge],
        kwargs: Mapping[str, Any],
        ticker: _Ticker,
    ) -> Mapping[int, Tensor]:
        """All states after a layer; every (group, choice) that some edge needs is loaded once."""
        start = perf_counter()
        weights = self.store.load(
            (pair for edge in edges for pair in self._pairs(layer, edge.choice)), self.workers.map
        )
        fixed = self.store.fixed(self.shell.fixed_names(layer))
        loaded = perf_counter()
        modules = self.shell.twins(layer, self.workers.count)
        bench: SimpleQueue[LayerModule] = SimpleQueue()
        for module in modules:
            module.fill([fixed])
            bench.put(module)
        step = LayerStep(states, edges)
        self.stats.state_bytes = max(self.stats.state_bytes, step.held_bytes)

        def work(batch: Batch) -> int:
            module = bench.get()
            try:
                module.fill(weights[pair] for pair in self._pairs(layer, batch.edge.choice))
                self.shell.check_filled(module)
                arguments = {**kwargs, **cache_keywords(batch.edge.choice.cache)}
                return step.run(batch, lambda hidden: module(hidden, arguments))
            finally:
                # Also after a failure: whoever waits for a module would wait for ever.
                bench.put(module)

        for finished in self.workers.map(work, step.batches(self._batch_rows(states[0]))):
            ticker.add(finished)
        for module in modules:
            module.empty()
        self.stats.load_seconds += loaded - start
        self.stats.forward_seconds += perf_counter() - loaded
        return step.children

    def _batch_rows(self, state: Tensor) -> int:
        _, length, hidden = state.shape
        return self.limits.batch_rows(length, hidden)

    def _pairs(self, layer: int, choice: LayerChoice) -> list[GroupChoice]:
        return list(zip(self.group_ids[layer], choice.weights, strict=True))

    def _head(self, states: Mapping[int, Tensor], leaves: Sequence[Leaf], ids: Tensor) -> RowSums:
        start = perf_counter()
        head = HeadPass(self.shell, self.store, self.inventory.head.id, [choice for _, choice in leaves])
        loaded = perf_counter()
        positions = self.limits.head_positions(self.inventory.vocab_size)
        sums = head.row_sums(states, leaves, ids, positions, self.workers)
        self.stats.load_seconds += loaded - start
        self.stats.head_seconds += perf_counter() - loaded
        return sums


class _Ticker:
    """Adds up layer forwards for the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done, self.what = progress, total, 0, "embedding"
        self.add(0)

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total, self.what)
