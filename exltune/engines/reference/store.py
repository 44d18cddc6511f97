"""Weights of groups as the transformers modules want them, cached across calls within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from exltune.engines.reference.layer import Tensors
from exltune.engines.streaming.weights import LinearWeights, WeightSource, open_reference, open_weights
from exltune.exl3.tensors import TensorFiles
from exltune.schema.inventory import Inventory, LinearSpec, Role
from exltune.schema.mix import REFERENCE, Choice

GroupChoice = tuple[str, Choice]

#: map, or the like of it that works in threads.
Map = Callable[[Callable[[GroupChoice], Tensors], Iterable[GroupChoice]], Iterator[Tensors]]


class WeightStore:
    """Loads groups from the reference or a quant and keeps the latest used ones.

    files: the reference's, which may be a quant itself. cache_bytes: how much stays in memory after use; what a running
    layer needs is held beside that.
    """

    def __init__(
        self, files: TensorFiles, quants: Mapping[Choice, Path], inventory: Inventory, cache_bytes: int
    ) -> None:
        self.reference, self.plain = open_reference(files)
        self.quants = {choice: Path(path) for choice, path in quants.items()}
        self.specs = {spec.key: spec for spec in inventory.linears}
        self.groups = {group.id: group for group in (*inventory.groups, inventory.head)}
        self._sources: dict[Choice, WeightSource] = {REFERENCE: self.reference}
        self._cache = _Cache(cache_bytes)

    @property
    def choices(self) -> frozenset[Choice]:
        """Choices that a mix may name."""
        return frozenset((REFERENCE, *self.quants))

    def add(self, quants: Mapping[Choice, Path]) -> None:
        """Know further quants; a choice of another path than before is read anew."""
        for choice, path in quants.items():
            if choice == REFERENCE or self.quants.get(choice) == Path(path):
                continue
            self.quants[choice] = Path(path)
            if self._sources.pop(choice, None) is not None:
                self._cache.forget((group, choice) for group in self.groups)

    def source(self, choice: Choice) -> WeightSource:
        """The source of a choice; directories are opened when first used."""
        if choice not in self._sources:
            self._sources[choice] = open_weights(self.quants[choice])
        return self._sources[choice]

    def load(self, pairs: Iterable[GroupChoice], run: Map = map) -> dict[GroupChoice, Tensors]:
        """All parameters of groups at choices, experts fused, each loaded once.

        run: maps over those that are not in the cache, maybe in threads.
        """
        wanted = list(dict.fromkeys(pairs))
        found = {pair: tensors for pair in wanted if (tensors := self._cache.get(pair)) is not None}
        absent = [pair for pair in wanted if pair not in found]
        for choice in {choice for _, choice in absent}:
            self.source(choice)
        for pair, tensors in zip(absent, run(lambda pair: self._load(*pair), absent), strict=True):
            found[pair] = tensors
            self._cache.put(pair, tensors)
        return found

    def drop_cache(self) -> None:
        """Forget all weights; the next use loads them again."""
        self._cache = _Cache(self._cache.limit)

    def fixed(self, names: tuple[str, ...]) -> Tensors:
        """Tensors that are in no group (norms, routers), always the reference's."""
        found = self._cache.get(names)
        if found is None:
            found = {name: self.plain.tensor(name) for name in names}
            self._cache.put(names, found)
        return found

    def _load(self, group_id: str, choice: Choice) -> Tensors:
        group, source = self.groups[group_id], self._sources[choice]
        specs = [self.specs[key] for key in group.tensors]
        if group.role is Role.EXPERTS_GATE_UP:
            return {_fused_name(specs[0], "gate_up_proj"): _fuse(source, specs, parts=2)}
        if group.role is Role.EXPERTS_DOWN:
            return {_fused_name(specs[0], "down_proj"): _fuse(source, specs, parts=1)}
        tensors: dict[str, Tensor] = {}
        for spec in specs:
            weights = source.linear(spec)
            tensors |= {f"{spec.key}.{name}": value for name, value in _named(weights)}
        return tensors


class _Cache:
    """Least recently used tensors, bounded by bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.used = 0
        self.items: OrderedDict[Hashable, Tensors] = OrderedDict()

    def get(self, key: Hashable) -> Tensors | None:
        found = self.items.get(key)
        if found is not None:
            self.items.move_to_end(key)
        return found

    def put(self, key: Hashable, tensors: Tensors) -> None:
        self.items[key] = tensors
        self.used += _nbytes(tensors)
        while self.used > self.limit and self.items:
            _, dropped = self.items.popitem(last=False)
            self.used -= _nbytes(dropped)

    def forget(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self.used -= _nbytes(self.items.pop(key, {}))


def _fuse(source: WeightSource, specs: list[LinearSpec], parts: int) -> Tensor:
    """(E, parts * out, in) from E * parts linears, an expert's parts (gate, up) after each other.

    Source: transformers 5, conversion_mapping.py "qwen2_moe": gate rows first.
    """
    out, in_features = specs[0].out_features, specs[0].in_features
    fused = torch.empty(len(specs) // parts, parts, out, in_features)
    for index, spec in enumerate(specs):
        fused[index // parts, index % parts] = source.linear(spec).weight
    return fused.view(len(specs) // parts, parts * out, in_features)


def _fused_name(spec: LinearSpec, name: str) -> str:
    return f"{spec.key.rsplit('.', maxsplit=2)[0]}.{name}"


def _named(weights: LinearWeights) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in zip(("weight", "bias"), weights, strict=True) if value is not None]


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
