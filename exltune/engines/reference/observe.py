"""Hooks that sum up the Hessians of one decoder layer while it runs on the reference weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exltune.exl3.hessian import Hessian


class Site:
    """One input of the model, read by one linear or by several: sum of x xᵀ over the vectors seen."""

    def __init__(self, width: int) -> None:
        self.matrix = torch.zeros(width, width)
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Add vectors (..., width)."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        self.matrix.addmm_(flat.T, flat)
        self.count += flat.shape[0]


class LayerObserver:
    """Collects the inputs of wanted linears; those that read the same tensor share one Site."""

    def __init__(self, wanted: Collection[str]) -> None:
        self.wanted = frozenset(wanted)
        self.sites: dict[str, Site] = {}
        self.expert_tokens: Counter[str] = Counter()
        # Inputs of the running batch; holding them keeps their addresses from being used again.
        self._batch: list[tuple[Tensor, Site]] = []

    def hessians(self) -> dict[str, Hessian]:
        """Linear key -> Hessian, the same object for linears with the same input."""
        unique = {id(site): Hessian(site.matrix, site.count) for site in self.sites.values()}
        return {key: unique[id(site)] for key, site in self.sites.items()}

    def merge(self, other: LayerObserver) -> None:
        """Add the sums of another observer of the same layer."""
        added: set[int] = set()
        for key, site in other.sites.items():
            mine = self.sites.setdefault(key, site)
            if mine is not site and id(site) not in added:
                mine.matrix += site.matrix
                mine.count += site.count
            added.add(id(site))
        self.expert_tokens += other.expert_tokens

    def see(self, key: str, inputs: Tensor) -> None:
        """Note that the linear `key` reads `inputs` (..., in); a tensor is summed up once, whoever reads it."""
        for tensor, site in self._batch:
            if tensor.data_ptr() == inputs.data_ptr() and tensor.numel() == inputs.numel():
                self.sites[key] = site
                return
        site = self.sites.setdefault(key, Site(inputs.shape[-1]))
        site.add(inputs)
        self._batch.append((inputs, site))

    def end_batch(self) -> None:
        """Forget the batch's tensors."""
        self._batch.clear()

    @contextmanager
    def watching(self, layer: nn.Module, prefix: str) -> Iterator[None]:
        """Hooks on the layer's linears and experts; prefix is the layer's name with a trailing dot."""
        handles = []
        for name, module in layer.named_modules():
            key = f"{prefix}{name}"
            if isinstance(module, nn.Linear) and key in self.wanted:
                handles.append(module.register_forward_pre_hook(self._linear_hook(key)))
            elif hasattr(module, "gate_up_proj"):
                handles.append(module.register_forward_pre_hook(self._experts_hook(key)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _linear_hook(self, key: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: self.see(key, args[0])

    def _experts_hook(self, prefix: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            hidden, routed = args[0], args[1]  # (tokens, hidden), (tokens, top_k)
            self._see_experts(prefix, module, hidden)
            counts = torch.bincount(routed.reshape(-1), minlength=module.num_experts)
            for expert, count in enumerate(counts.tolist()):
                self.expert_tokens[f"{prefix}.{expert}"] += count

        return hook

    def _see_experts(self, prefix: str, module: Any, hidden: Tensor) -> None:
        """Every expert sees every token here; the model's own output keeps its top-k routing."""
        for expert, gate_up in enumerate(module.gate_up_proj):  # (2 * inter, hidden)
            key = f"{prefix}.{expert}"
            for name in ("gate_proj", "up_proj"):
                if f"{key}.{name}" in self.wanted:
                    self.see(f"{key}.{name}", hidden)
            if f"{key}.down_proj" in self.wanted:
                gate, up = F.linear(hidden, gate_up).chunk(2, dim=-1)  # (tokens, inter) each
                # No other linear reads this: nothing to share, so nothing to hold.
                inner = module.act_fn(gate) * up
                self.sites.setdefault(f"{key}.down_proj", Site(inner.shape[-1])).add(inner)
