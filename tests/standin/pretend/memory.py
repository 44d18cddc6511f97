"""Memory of pretend cards by address, for kernels that follow pointers."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

#: Address of a storage -> whether it is still there, its card, its bytes.
_STORAGES: dict[int, tuple[StorageWeakRef, torch.device, int]] = {}
_LOCK = threading.Lock()
#: Of this thread: whether a `kernel` runs, and on which `device`.
running = threading.local()


def note(storage: torch.UntypedStorage, device: torch.device) -> None:
    """Somebody was told the address of a card's storage."""
    with _LOCK:
        for address in [at for at, (there, _, _) in _STORAGES.items() if there.expired()]:
            del _STORAGES[address]
        _STORAGES[storage.data_ptr()] = (StorageWeakRef(storage), device, storage.nbytes())


def device_at(address: int, nbytes: int) -> torch.device:
    """The card that so many bytes are on. Raises: RuntimeError, as an illegal access, for any other memory."""
    with _LOCK:
        known = list(_STORAGES.items())
    for start, (storage, device, size) in known:
        if start <= address and address + nbytes <= start + size and not storage.expired():
            return device
    raise RuntimeError(f"CUDA error: an illegal memory access was encountered ({address:#x})")


def tensor_at(address: int, shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None) -> Tensor:
    """What lies at an address of the running kernel's card, as a tensor in main memory.

    Raises: RuntimeError, as an illegal access, for any other memory.
    """
    steps = list(stride or torch.empty(tuple(shape), device="meta").stride())
    count = 1 + sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    if device_at(address, count * dtype.itemsize) != running.device:
        raise RuntimeError(f"CUDA error: a kernel on {running.device} was given an address of another card")
    buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype).as_strided(tuple(shape), steps)
