"""Hessian capture: the reference model streamed layer by layer, each layer yielded as soon as it is done."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from exltune.engines.base import LayerCapture, Progress
from exltune.engines.reference.observe import LayerObserver
from exltune.engines.reference.shell import ModelShell
from exltune.engines.reference.store import WeightStore
from exltune.engines.reference.workers import Workers
from exltune.exl3.hessian import Hessian
from exltune.schema.inventory import Inventory, Role
from exltune.schema.mix import REFERENCE

#: Hessians of one layer that all threads together may hold; a layer with larger ones is captured by one.
_HESSIAN_BYTES = 1 << 30


class CapturePass:
    """Captures Hessians of linears' inputs on tokens; batch_rows bounds the memory of activations.

    The same tokens and number of workers give the same bits, whichever keys are wanted: threads take fixed shares of
    the rows, and the sums of the shares are added in order.
    """

    def __init__(
        self, shell: ModelShell, store: WeightStore, inventory: Inventory, minimum: int, batch_rows: int
    ) -> None:
        self.shell, self.store, self.inventory = shell, store, inventory
        self.minimum, self.batch_rows = minimum, batch_rows

    @torch.no_grad()
    def run(
        self, tokens: Tensor, keys: Collection[str] | None, threads: int, progress: Progress | None
    ) -> Iterator[LayerCapture]:
        """Captures of the layers that hold wanted linears, then the head's; stops after the last of them."""
        wanted = self._wanted(keys)
        last = max((-1 if layer is None else layer for layer in wanted), default=-1)
        layers = self.inventory.layers if None in wanted else last + 1
        kwargs = self.shell.layer_kwargs(tokens.shape[1])
        hidden = self.shell.embed(tokens)  # (rows, T, hidden)
        for layer in range(layers):
            if progress is not None:
                progress(layer, layers, f"layer {layer}")
            with Workers(self._workers(layer, threads)) as workers:
                observer = self._advance(layer, hidden, kwargs[layer], wanted.get(layer, ()), workers)
            if layer in wanted:
                yield self._captured(layer, observer)
        if None in wanted:
            yield LayerCapture(None, self._head(hidden))
        if progress is not None:
            progress(layers, layers, "head")

    def _wanted(self, keys: Collection[str] | None) -> dict[int | None, list[str]]:
        """Keys by layer, the head under None; router gates have no Hessian."""
        wanted: dict[int | None, list[str]] = {}
        for spec in self.inventory.linears:
            if spec.role is not Role.ROUTER and (keys is None or spec.key in keys):
                wanted.setdefault(spec.layer, []).append(spec.key)
        return wanted

    def _workers(self, layer: int, threads: int) -> int:
        """All threads, if the layer's Hessians are small enough to be held once for each."""
        specs = [spec for spec in self.inventory.linears if spec.layer == layer and spec.role is not Role.ROUTER]
        layer_bytes = sum(4 * spec.in_features**2 for spec in specs)
        return threads if layer_bytes * threads <= _HESSIAN_BYTES else 1

    def _advance(
        self, layer: int, hidden: Tensor, kwargs: Mapping[str, Any], wanted: Sequence[str], workers: Workers
    ) -> LayerObserver:
        """Run a layer on all rows in place, with the model's real routing."""
        groups = [group.id for group in self.inventory.groups if group.layer == layer]
        weights = self.store.load(((id_, REFERENCE) for id_ in groups), workers.map).values()
        fixed = self.store.fixed(self.shell.fixed_names(layer))
        batches = hidden.split(self.batch_rows)

        def share(number: int) -> LayerObserver:
            module, observer = modules[number], LayerObserver(wanted)
            module.fill((fixed, *weights))
            self.shell.check_filled(module)
            with observer.watching(module.module, module.prefix):
                for rows in batches[number :: workers.count]:
                    rows.copy_(module(rows, kwargs))
                    observer.end_batch()
            module.empty()
            return observer

        modules = self.shell.twins(layer, workers.count)
        first, *others = workers.map(share, range(workers.count))
        for other in others:
            first.merge(other)
        return first

    def _captured(self, layer: int, observer: LayerObserver) -> LayerCapture:
        tokens = dict(observer.expert_tokens)
        rare = tuple(expert for expert, count in tokens.items() if count < self.minimum)
        return LayerCapture(layer, observer.hessians(), tokens, rare)

    def _head(self, hidden: Tensor) -> dict[str, Hessian]:
        keys: Sequence[str] = self.inventory.head.tensors
        observer = LayerObserver(keys)
        for rows in hidden.split(self.batch_rows):
            normed = self.shell.norm(rows)
            for key in keys:
                observer.see(key, normed)
            observer.end_batch()
        return observer.hessians()
