"""A decoder layer whose weights are put in place by reference and taken out again."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

#: Parameter or buffer name in the transformers model -> its value.
Tensors = Mapping[str, Tensor]


class LayerModule:
    """One decoder layer, on meta until it is filled; prefix is its name with a trailing dot."""

    def __init__(self, module: nn.Module, prefix: str) -> None:
        self.module, self.prefix = module, prefix
        self._blank = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self._owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in self._blank}

    def twin(self) -> LayerModule:
        """The same layer, still empty, for another thread."""
        self.empty()
        # Configs are read only, and slow to copy.
        shared = {id(part.config): part.config for part in self.module.modules() if hasattr(part, "config")}
        return LayerModule(copy.deepcopy(self.module, shared), self.prefix)

    def fill(self, parts: Iterable[Tensors]) -> None:
        """Point parameters and buffers at the given tensors; nothing is copied."""
        for tensors in parts:
            for name, tensor in tensors.items():
                self._assign(name.removeprefix(self.prefix), tensor)

    def empty(self) -> None:
        """Drop the weights; a cache's own copies of them stay."""
        for name, tensor in self._blank.items():
            self._assign(name, tensor)

    def missing(self) -> str | None:
        """Full name of the first parameter or buffer without a value."""
        for name, owner in self._owners.items():
            if getattr(owner, name.rpartition(".")[2]).is_meta:
                return self.prefix + name
        return None

    def __call__(self, hidden: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """(rows, T, hidden) -> the same shape."""
        output: Tensor = self.module(hidden, **kwargs)
        return output

    def _assign(self, name: str, tensor: Tensor) -> None:
        owner, leaf = self._owners[name], name.rpartition(".")[2]
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor.detach()
        else:
            owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
