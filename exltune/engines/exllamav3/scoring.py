"""One pass of all mixes through the model: layer by layer, then the head; devices share the rows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TypeVar

import torch
from torch import Tensor

from exltune.engines.base import Progress, ScoreStats
from exltune.engines.exllamav3.fits import Fits, device_bytes
from exltune.engines.exllamav3.head import row_sums
from exltune.engines.exllamav3.shelf import GroupChoice, Shelf
from exltune.engines.exllamav3.states import StatePool
from exltune.engines.exllamav3.worker import Worker
from exltune.engines.streaming.prefix_tree import Edge, PrefixTree, layer_groups, needed_by_leaves
from exltune.engines.streaming.results import Leaf, RowSums
from exltune.engines.streaming.states import Batch, LayerStep
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, Choice

Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """Memory that a score call may take.

    state_bytes: hidden states in RAM; more of them go to files in spill_dir. vram_bytes: all that lies on a device,
    all that is free of it if None. batch_tokens: tokens that run through a layer together. head_bytes: logits of one
    mix that are on a device at one time.
    """

    state_bytes: int = 8 << 30
    spill_dir: Path | None = None
    vram_bytes: int | None = None
    batch_tokens: int = 4096
    head_bytes: int = 256 << 20

    def room(self) -> int:
        """Bytes of hidden states for which there is RAM or disk; some of the disk is left alone."""
        return self.state_bytes + shutil.disk_usage(self.spill_dir or tempfile.gettempdir()).free * 4 // 5

    def batch_rows(self, length: int) -> int:
        """Rows in a batch."""
        return max(1, self.batch_tokens // length)

    def head_positions(self, vocab: int) -> int:
        """Positions whose logits are made at one time."""
        return max(1, self.head_bytes // (4 * vocab))


class ScorePass:
    """Scores a prefix tree on tokens (rows, T) and adds its counts to `stats`."""

    def __init__(
        self, workers: Sequence[Worker], shelf: Shelf, inventory: Inventory, limits: Limits, stats: ScoreStats
    ) -> None:
        self.workers, self.shelf, self.inventory = workers, shelf, inventory
        self.limits, self.stats = limits, stats
        self.group_ids = layer_groups(inventory)
        self.reference: Tensor | None = None
        pinned = any(worker.device.type == "cuda" for worker in workers)
        self.pool = StatePool(limits.state_bytes, limits.spill_dir, pinned=pinned)

    def run(self, tree: PrefixTree, tokens: Tensor, progress: Progress | None) -> RowSums:
        """Row sums of every distinct leaf.

        `reference` is the reference's state after the last layer (rows, T, hidden), which is computed unless it is
        given beforehand. Raises: NonFiniteError, EngineError where not even one row fits.
        """
        if self.reference is not None:
            tree = needed_by_leaves(tree)
        leaves = tuple(dict.fromkeys(tree.leaves))
        fits = Fits(self.shelf, self.inventory, tree, tokens.shape[1])
        for worker in self.workers:
            worker.start(device_bytes(worker.device, self.limits.vram_bytes))
            fits.check(worker.bytes_)
        self.stats.slabs += 1
        self.stats.layer_forwards += tree.layer_forwards
        self.stats.head_forwards += len({*leaves, (0, REFERENCE)})
        ticker = _Ticker(progress, tree.layer_forwards)
        states: Mapping[int, Tensor] = {0: self._embed(tokens)}
        for layer, edges in enumerate(tree.layers):
            ticker.what = f"layer {layer}"
            states = self._advance(states, layer, edges, tokens, fits, ticker)
        if self.reference is None:
            self.reference = states[0]
        states = {**states, 0: self.reference}
        sums = self._head(states, leaves, tokens)
        self.stats.spilled_bytes = max(self.stats.spilled_bytes, self.pool.spilled_bytes)
        self.stats.vram_bytes = max(worker.peak_bytes for worker in self.workers)
        self.stats.shrunk = sum(worker.chunks.shrunk for worker in self.workers)
        return sums

    def _embed(self, tokens: Tensor) -> Tensor:
        state: Tensor | None = None
        for row, hidden in enumerate(self.workers[0].embed(tokens)):
            if state is None:
                state = self.pool.empty((len(tokens), *hidden.shape[1:]), hidden.dtype)
            state[row] = hidden[0]
        assert state is not None
        return state

    def _advance(
        self,
        states: Mapping[int, Tensor],
        layer: int,
        edges: Sequence[Edge],
        tokens: Tensor,
        fits: Fits,
        ticker: _Ticker,
    ) -> Mapping[int, Tensor]:
        """All states after a layer; every (group, choice) that some edge needs is read once."""
        start = perf_counter()
        stored = self.shelf.read(self._stored_pairs(layer, edges))
        self.stats.load_seconds += perf_counter() - start
        step = LayerStep(states, edges, self.pool.empty_like)
        self.stats.state_bytes = max(self.stats.state_bytes, step.held_bytes)
        batches = step.batches(self.limits.batch_rows(tokens.shape[1]))

        def share(number: int) -> float:
            worker = self.workers[number]
            with worker.current():
                worker.hold(stored, placed=fits.all_at_once(layer, worker.bytes_))
                try:
                    run = _LayerRun(worker, layer, self.group_ids[layer], self.shelf, step, tokens)
                    return run.run(batches[number :: len(self.workers)], ticker.add)
                finally:
                    worker.hold({})

        start = perf_counter()
        loading = max(_in_parallel(share, range(len(self.workers))))
        self.stats.load_seconds += loading
        self.stats.forward_seconds += perf_counter() - start - loading
        kept = {state.data_ptr() for state in step.children.values()}
        for parent in states.values():
            if parent.data_ptr() not in kept:
                self.pool.give_back(parent)
        return step.children

    def _stored_pairs(self, layer: int, edges: Iterable[Edge]) -> list[GroupChoice]:
        pairs = (pair for edge in edges for pair in zip(self.group_ids[layer], edge.choice.weights, strict=True))
        return [pair for pair in dict.fromkeys(pairs) if pair[1] != REFERENCE]

    def _head(self, states: Mapping[int, Tensor], leaves: Sequence[Leaf], tokens: Tensor) -> RowSums:
        start = perf_counter()
        id_ = self.inventory.head.id
        stored = self.shelf.read((id_, choice) for _, choice in leaves if choice != REFERENCE)
        positions = self.limits.head_positions(self.inventory.vocab_size)
        count = len(self.workers)
        shares = [range(number, len(tokens), count) for number in range(count)]

        def share(number: int) -> Tensor:
            worker = self.workers[number]
            with worker.current():
                worker.hold(stored)
                try:
                    with worker.loaded(worker.head, {}):
                        worker.check_finite(worker.head)
                        worker.hold_reference(worker.head, [id_], self.shelf)
                    return row_sums(worker, states, leaves, tokens, shares[number], positions)
                finally:
                    worker.hold({})

        sums = torch.zeros(len(leaves), 8, len(tokens), dtype=torch.float64)
        for rows, found in zip(shares, _in_parallel(share, range(count)), strict=True):
            sums[:, :, list(rows)] = found
        self.stats.head_seconds += perf_counter() - start
        return dict(zip(leaves, sums, strict=True))


class _LayerRun:
    """One worker's share of one layer."""

    def __init__(
        self, worker: Worker, layer: int, groups: Sequence[str], shelf: Shelf, step: LayerStep, tokens: Tensor
    ) -> None:
        self.worker, self.module, self.layer, self.groups = worker, worker.layers[layer], layer, groups
        self.shelf, self.step, self.tokens = shelf, step, tokens

    def run(self, batches: Sequence[Batch], done: Callable[[int], None]) -> float:
        """Run batches, each choice of weights loaded once, the unquantized one first. Returns seconds of loading."""
        by_weights: dict[tuple[Choice, ...], list[Batch]] = {}
        for batch in batches:
            by_weights.setdefault(batch.edge.choice.weights, []).append(batch)
        plain = by_weights.pop((REFERENCE,) * len(self.groups), [])
        seconds = self._unquantized(plain, self._left_unquantized(by_weights), done)
        for weights, mixed in by_weights.items():
            start = perf_counter()
            with self.worker.loaded(self.module, self.worker.tensors_of(zip(self.groups, weights, strict=True))):
                seconds += perf_counter() - start
                self._forward(mixed, done)
        return seconds

    def _unquantized(self, batches: Sequence[Batch], wanted: Sequence[str], done: Callable[[int], None]) -> float:
        """The batches without stored tensors, and the weights that other choices share with them."""
        if not batches and not wanted:
            return 0.0
        start = perf_counter()
        with self.worker.loaded(self.module, {}):
            self.worker.check_finite(self.module)
            self.worker.hold_reference(self.module, wanted, self.shelf)
            seconds = perf_counter() - start
            self._forward(batches, done)
        return seconds

    def _left_unquantized(self, choices: Iterable[tuple[Choice, ...]]) -> list[str]:
        """Groups that some of the choices do not quantize."""
        found = (
            group
            for weights in choices
            for group, choice in zip(self.groups, weights, strict=True)
            if choice == REFERENCE
        )
        return list(dict.fromkeys(found))

    def _forward(self, batches: Sequence[Batch], done: Callable[[int], None]) -> None:
        for batch in batches:
            done(self.step.run(batch, partial(self._rows, batch)))

    def _rows(self, batch: Batch, hidden: Tensor) -> Tensor:
        """(n, T, hidden) of a batch through the layer, in as many parts as the device's memory asks for."""
        cache = batch.edge.choice.cache
        return self.worker.chunks.run(
            lambda rows, part: self.worker.forward(self.layer, part, self.tokens[rows], cache), batch.start, hidden
        )


def _in_parallel(work: Callable[[int], Result], shares: Sequence[int]) -> list[Result]:
    """Results of all shares; a single one is worked in this thread."""
    if len(shares) == 1:
        return [work(shares[0])]
    with ThreadPoolExecutor(len(shares), thread_name_prefix="device") as pool:
        return list(pool.map(work, shares))


class _Ticker:
    """Adds up layer forwards for the progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done, self.what = progress, total, 0, "embedding"
        self._lock = Lock()
        self.add(0)

    def add(self, count: int) -> None:
        """Layer forwards that were finished."""
        with self._lock:
            self.done += count
            if self.progress is not None:
                self.progress(self.done, self.total, self.what)
