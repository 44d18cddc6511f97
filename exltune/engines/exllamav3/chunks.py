"""Rows that run together, fewer of them once a device has had too little memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exltune.errors import EngineError


class Chunks:
    """How many rows a device takes at one time; `shrunk` counts how often that had to be halved."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.shrunk = device, 0
        self._rows: int | None = None

    def run(self, forward: Callable[[slice, Tensor], Tensor], first: int, hidden: Tensor) -> Tensor:
        """forward over rows (n, ...), the first of which is number `first`, in as many parts as memory asks for.

        Raises: EngineError where not even one row fits.
        """
        rows, at, parts = len(hidden), 0, []
        while at < rows:
            count = min(rows - at, self._rows or rows)
            try:
                parts.append(forward(slice(first + at, first + at + count), hidden[at : at + count]).cpu())
                at += count
                continue
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if count == 1:
                    raise EngineError(
                        f"{self.device} has too little memory for a single row ({_first_line(error)})",
                        fix="Use shorter rows (`row_length`), or free memory of the device",
                    ) from error
            # Outside of the handler: the error holds the tensors of the failed call.
            self._rows, self.shrunk = count // 2, self.shrunk + 1
            torch.cuda.empty_cache()
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch or of exllamav3's extension means that a device's memory is full."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "CUBLAS_STATUS_ALLOC_FAILED" in text


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or ["out of memory"])[0]
