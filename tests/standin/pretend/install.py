"""Pretend cards in this process, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils import _device

from tests.standin.pretend import factories, kernels, loader
from tests.standin.pretend.cuda import Cards
from tests.standin.pretend.guard import TORCH


def can_pretend() -> bool:
    """Whether torch is without CUDA, whose kernels would be in the way, and its guards are as guard.py says."""
    return torch.version.cuda is None and torch.version.hip is None and torch.__version__.startswith(TORCH)


@contextmanager
def cards(count: int) -> Iterator[Cards]:
    """So many pretend cards meanwhile, with exllamav3 as it runs on cards."""
    import exllamav3  # noqa: F401

    from tests.standin import extension, patches

    made = Cards(count)
    # torch keeps the list of its factories from their first use in `with torch.device(...)`: not of ours.
    _device._device_constructors()
    with ExitStack() as stack:
        stack.enter_context(factories.kernels(made.current_device))
        for name, answer in made.answers().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        for name, function in _factories(made).items():
            stack.enter_context(mock.patch.object(torch, name, function))
        for name, function in (loader.functions() | kernels.functions()).items():
            stack.enter_context(mock.patch.object(extension, name, function, create=True))
        stack.enter_context(patches.for_cards())
        yield made


def _factories(made: Cards) -> dict[str, Any]:
    def pinned(tensor: torch.Tensor) -> None:
        made.pinned_bytes += tensor.nbytes

    pinning = {name: factories.pinning(getattr(torch, name), pinned) for name in ("empty", "zeros", "empty_like")}
    return pinning | {"tensor": factories.tensor_function(torch.tensor)}
