"""Hessian capture through exllamav3's own sums: the unquantized model, streamed layer by layer on one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from exltune.engines.base import LayerCapture, Progress
from exltune.engines.exllamav3.worker import Worker
from exltune.exl3.hessian import Hessian
from exltune.schema.inventory import Inventory, Role


class CapturePass:
    """Captures Hessians of linears' inputs on tokens (rows, T), `batch_rows` rows at a time.

    Every expert is shown every token, as exllamav3's conversion does; hidden states go on by the model's own routing.
    Source: exllamav3 1.6.5, conversion/convert_model.py capture_module_serial, modules/linear.py capture_H.
    """

    def __init__(self, worker: Worker, inventory: Inventory, minimum: int, batch_rows: int) -> None:
        self.worker, self.inventory = worker, inventory
        self.minimum, self.batch_rows = minimum, batch_rows

    def run(self, tokens: Tensor, keys: Collection[str] | None, progress: Progress | None) -> Iterator[LayerCapture]:
        """Captures of the layers that hold wanted linears, then the head's; stops after the last of them."""
        wanted = self._wanted(keys)
        last = max((-1 if layer is None else layer for layer in wanted), default=-1)
        layers = self.inventory.layers if None in wanted else last + 1
        hidden = torch.cat(list(self.worker.embed(tokens)))  # (rows, T, hidden)
        for layer in range(layers):
            if progress is not None:
                progress(layer, layers, f"layer {layer}")
            found = self._layer(layer, hidden, tokens, wanted.get(layer, ()))
            if found is not None:
                yield found
        if None in wanted:
            yield LayerCapture(None, self._head(hidden, wanted[None]))
        if progress is not None:
            progress(layers, layers, "head")

    def _wanted(self, keys: Collection[str] | None) -> dict[int | None, list[str]]:
        """Keys by layer, the head under None; linears that are never quantized have no Hessian."""
        wanted: dict[int | None, list[str]] = {}
        for spec in self.inventory.linears:
            if not spec.role.fp16 and (keys is None or spec.key in keys):
                wanted.setdefault(None if spec.role is Role.HEAD else spec.layer, []).append(spec.key)
        return wanted

    def _layer(self, layer: int, hidden: Tensor, tokens: Tensor, wanted: Sequence[str]) -> LayerCapture | None:
        """Run a layer on all rows in place; its captures, if any of them is wanted."""
        module, sums = self.worker.layers[layer], dict[str, dict[str, Any]]()
        with self.worker.loaded(module, {}), counted_experts(module) as counts:
            self.worker.check_finite(module)
            for rows, ids in zip(hidden.split(self.batch_rows), tokens.split(self.batch_rows), strict=True):
                if wanted:
                    with counts.paused():
                        self.worker.capture(layer, rows, ids, sums)
                rows.copy_(self.worker.forward(layer, rows, ids))
            hessians = self._hessians(module, wanted, sums)
        if not wanted:
            return None
        rare = tuple(expert for expert, count in counts.tokens.items() if count < self.minimum)
        return LayerCapture(layer, hessians, dict(counts.tokens), rare)

    def _head(self, hidden: Tensor, wanted: Sequence[str]) -> dict[str, Hessian]:
        sums: dict[str, dict[str, Any]] = {}
        with self.worker.norms(), self.worker.loaded(self.worker.head, {}):
            for rows in hidden.split(self.batch_rows):
                self.worker.capture_head(self.worker.normed(rows.flatten(0, 1)), sums)
            return self._hessians(self.worker.head, wanted, sums)

    def _hessians(self, module: Any, wanted: Sequence[str], sums: dict[str, dict[str, Any]]) -> dict[str, Hessian]:
        """Linears with one input hold one Hessian; exllamav3 sums up inputs, not linears."""
        found: dict[str, Hessian] = {}
        shared: dict[str, Hessian] = {}
        for part in module:
            if part.key in wanted:
                if part.qmap not in shared:
                    shared[part.qmap] = self.worker.hessian(sums[part.qmap], part.in_features_unpadded)
                found[part.key] = shared[part.qmap]
        return {key: found[key] for key in wanted}


class ExpertCounts:
    """Tokens that a layer's router sent to each expert, by the expert's prefix."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Tokens routed meanwhile do not count."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def counting(self, prefix: str, experts: int, route: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
        """The same routing function, which counts."""

        def routed(*args: Any) -> tuple[Tensor, Tensor]:
            selected, weights = route(*args)
            if not self._paused:
                counts = torch.bincount(selected.reshape(-1), minlength=experts).tolist()
                self.tokens.update({f"{prefix}.experts.{number}": count for number, count in enumerate(counts)})
            return selected, weights

        return routed


@contextmanager
def counted_experts(module: Any) -> Iterator[ExpertCounts]:
    """Counts the choices of the module's routers meanwhile."""
    counts = ExpertCounts()
    routers = [(part, part.routing_fn) for part in module if hasattr(part, "routing_fn")]
    for part, route in routers:
        part.routing_fn = counts.counting(part.key, part.num_experts, route)
    try:
        yield counts
    finally:
        for part, route in routers:
            part.routing_fn = route
