"""Whether a device holds a layer's needs, known from headers before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from exltune.budget import format_size
from exltune.engines.exllamav3.shelf import GroupChoice, Shelf
from exltune.engines.streaming.prefix_tree import Edge, PrefixTree, layer_groups
from exltune.errors import EngineError
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE

#: Copies of a row's states, and of its widest intermediate, that a layer holds while it runs.
_STATES, _INTERMEDIATES = 6, 6
#: Logits of a batch: the reference's and a mix's, probabilities, their gap, and softmax's own.
_LOGITS = 6
#: Below this, torch's allocator could not round up to its blocks.
_LEAST_POOL = 256 << 20


class Fits:
    """Bytes that the layers of a score call need on each device; `bytes_`: of a device, None without limit."""

    def __init__(self, shelf: Shelf, inventory: Inventory, tree: PrefixTree, length: int) -> None:
        self.shelf, self.inventory, self.tree, self.length = shelf, inventory, tree, length
        self._groups = layer_groups(inventory)

    def check(self, bytes_: int | None) -> None:
        """Raises: EngineError naming the first layer that does not fit, not even choice by choice and row by row."""
        if bytes_ is None:
            return
        for layer, edges in enumerate(self.tree.layers):
            self._refuse(f"layer {layer}", self.least(layer, edges), bytes_)
        plain = self._unquantized(None)
        self._refuse("the head", plain + self._heads() + max(plain, self._working(None)), bytes_)

    def all_at_once(self, layer: int, bytes_: int | None) -> bool:
        """Whether every stored tensor of a layer may lie on the device from the layer's beginning to its end."""
        edges = self.tree.layers[layer]
        held, plain = sum(self.shelf.nbytes(pair) for pair in self._stored(layer, edges)), self._plain(layer, edges)
        return bytes_ is None or held + plain + max(plain, self._working(layer)) <= bytes_

    def least(self, layer: int, edges: Sequence[Edge]) -> int:
        """Bytes with the tensors of one choice at a time."""
        heaviest = max(sum(self.shelf.nbytes(pair) for pair in self._stored(layer, [edge])) for edge in edges)
        plain = self._plain(layer, edges)
        return plain + max(plain, heaviest + self._working(layer))

    def _plain(self, layer: int, edges: Iterable[Edge]) -> int:
        """The layer unquantized, if some choice needs any of it; while it is loaded, exllamav3 holds it twice.

        Source: exllamav3 1.6.5, loader/safetensors.py get_tensor ("defer", transpose), end_deferred_load.
        """
        return self._unquantized(layer) if any(REFERENCE in edge.choice.weights for edge in edges) else 0

    def _stored(self, layer: int, edges: Iterable[Edge]) -> set[GroupChoice]:
        pairs = {pair for edge in edges for pair in zip(self._groups[layer], edge.choice.weights, strict=True)}
        return {pair for pair in pairs if pair[1] != REFERENCE}

    def _heads(self) -> int:
        choices = {choice for _, choice in self.tree.leaves if choice != REFERENCE}
        return sum(self.shelf.nbytes((self.inventory.head.id, choice)) for choice in choices)

    def _unquantized(self, layer: int | None) -> int:
        return sum(2 * spec.padded_in * spec.padded_out for spec in self.inventory.linears if spec.layer == layer)

    def _working(self, layer: int | None) -> int:
        """One row on its way, and the largest weight written out for it."""
        specs = [spec for spec in self.inventory.linears if spec.layer == layer]
        if layer is None:
            return 4 * _LOGITS * self.inventory.vocab_size
        widest = max(max(spec.padded_in, spec.padded_out) for spec in specs)
        row = 4 * self.length * (_STATES * self.inventory.hidden_size + _INTERMEDIATES * widest)
        return row + max(2 * spec.padded_in * spec.padded_out for spec in specs)

    @staticmethod
    def _refuse(what: str, needed: int, has: int) -> None:
        if needed > has:
            raise EngineError(
                f"{what} needs about {format_size(needed)} of a device that has {format_size(has)} to give",
                fix="Free memory of the device, take a larger one, or shorten the rows (`row_length`)",
            )


def device_bytes(device: torch.device, limit: int | None) -> int | None:
    """Bytes that a device may give: free ones, within the limit; None for a CPU without one.

    What torch keeps of it for itself, from an earlier call, is free too.
    """
    if device.type != "cuda":
        return limit
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(torch.cuda.mem_get_info(device)[0]) + kept
    return free if limit is None else min(free, limit)


def hold_to(device: torch.device, limit: int | None) -> None:
    """Let torch take no more of a device than the limit: beyond it, its allocator is out of memory. CPUs have none."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        fraction = 1.0 if limit is None else min(1.0, max(limit, _LEAST_POOL) / total)
        torch.cuda.set_per_process_memory_fraction(fraction, device)
