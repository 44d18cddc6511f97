"""exllamav3's loader of weights (exllamav3_ext/stloader.cpp 1.6.5): reads files into addresses, of cards or not."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.standin.pretend.memory import device_at

_BF16_TO_FP16, _CUDA = 1, 4


def stloader_open_file(filename: str) -> list[str]:
    """Handles of a file."""
    return [filename]


def stloader_close_file(handles: list[str]) -> None:
    """Nothing is open."""


def stloader_read(handles: list[str], offset: int, size: int, target: Tensor) -> None:
    """Fill a tensor."""
    _fill(handles, offset, size, target.data_ptr(), False)


def stloader_deferred_batch(handles: Sequence[list[str]], loads: Tensor, chunk: int) -> None:
    """Fill many: rows of loads are (file, offset, bytes, address, room, flags, card)."""
    for file, offset, size, address, room, flags, card in loads.tolist():
        if size > room:
            raise RuntimeError(f"stloader: {size} bytes into a destination of {room} bytes")
        if flags & _CUDA and device_at(address, size) != torch.device("cuda", card):
            raise RuntimeError(f"stloader: the destination is not on cuda:{card}")
        _fill(handles[file], offset, size, address, bool(flags & _BF16_TO_FP16))


def _fill(handles: list[str], offset: int, size: int, address: int, halve: bool) -> None:
    with Path(handles[0]).open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if halve:
        values = torch.frombuffer(bytearray(content), dtype=torch.bfloat16).half()
        ctypes.memmove(address, values.data_ptr(), size)
    else:
        ctypes.memmove(address, content, size)


def functions() -> dict[str, Any]:
    """By name."""
    loading = (stloader_open_file, stloader_close_file, stloader_read, stloader_deferred_batch)
    return {function.__name__: function for function in loading}
