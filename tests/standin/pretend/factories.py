"""New tensors on pretend cards: kernels for torch's CUDA key, which all threads share, unlike modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.standin.pretend import guard
from tests.standin.pretend.tensors import CPU, CardTensor

#: Factories with kernels of their own on CUDA; all others begin with an empty tensor.
_KERNELS = {
    "empty.memory_format": torch.empty,
    "empty_strided": torch.empty_strided,
    "arange": torch.arange,
    "arange.start": torch.arange,
    "arange.start_step": torch.arange,
    "eye": torch.eye,
    "eye.m": torch.eye,
    "randperm": torch.randperm,
    "tril_indices": torch.tril_indices,
    "triu_indices": torch.triu_indices,
}


@contextmanager
def kernels(current: Callable[[], int]) -> Iterator[None]:
    """Factories for `device="cuda:N"` meanwhile; current: the number of the thread's current card."""
    library = torch.library.Library("aten", "IMPL", "CUDA")
    for name, function in _KERNELS.items():
        library.impl(name, _kernel(function, current))
    try:
        with guard.registered(current):
            yield
    finally:
        library._destroy()


def _kernel(function: Callable[..., Tensor], current: Callable[[], int]) -> Callable[..., Tensor]:
    def make(*args: Any, device: torch.device, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("Only dense CPU tensors can be pinned")
        index = current() if device.index is None else device.index
        return CardTensor(function(*args, device=CPU, **kwargs), torch.device("cuda", index))

    return make


def tensor_function(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor, which copies to a device below the keys by which pretend tensors are found."""

    def tensor(data: Any, *args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = original(data, *args, device=None if is_card(device) else device, **kwargs)
        return made.to(device) if is_card(device) else made

    return tensor


def pinning(original: Callable[..., Tensor], pinned: Callable[[Tensor], None]) -> Callable[..., Tensor]:
    """A factory whose page-locked tensors are plain ones, of which `pinned` is told."""

    def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        made = original(*args, **kwargs)
        if pin_memory:
            pinned(made)
        return made

    return make


def is_card(device: Any) -> bool:
    """Whether a device as torch's functions take it is a CUDA device."""
    return device is not None and (isinstance(device, int) or torch.device(device).type == "cuda")
