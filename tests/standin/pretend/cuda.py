"""torch.cuda as it answers where there are pretend cards."""

from __future__ import annotations

import threading
import types
from contextlib import nullcontext
from typing import Any

import torch

#: Bytes of a card, and those that are free.
TOTAL, FREE = 80 << 30, 79 << 30


class Cards:
    """So many cards; `fractions`: what set_per_process_memory_fraction was told, by number."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.fractions: dict[int, float] = {}
        self.pinned_bytes = 0
        self._thread = threading.local()

    def current_device(self) -> int:
        """As torch.cuda.current_device: each thread has its own."""
        return int(getattr(self._thread, "device", 0))

    def set_device(self, device: Any) -> None:
        """As torch.cuda.set_device."""
        self._thread.device = self.number(device)

    def number(self, device: Any = None) -> int:
        """Number of a device as torch.cuda's functions take it. Raises: RuntimeError for none of these cards."""
        if device is None:
            return self.current_device()
        named = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if named.type != "cuda":
            raise ValueError(f"Expected a cuda device, but got: {named}")
        number = self.current_device() if named.index is None else named.index
        if not 0 <= number < self.count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return int(number)

    def set_per_process_memory_fraction(self, fraction: float, device: Any = None) -> None:
        """As torch.cuda.set_per_process_memory_fraction."""
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        self.fractions[self.number(device)] = fraction

    def answers(self) -> dict[str, Any]:
        """What takes the place of torch.cuda's own functions."""
        cards = self

        class Device:
            """As torch.cuda.device."""

            def __init__(self, device: Any) -> None:
                self.number = cards.number(device)

            def __enter__(self) -> None:
                self.before = cards.current_device()
                cards.set_device(self.number)

            def __exit__(self, *_exception: Any) -> None:
                cards.set_device(self.before)

        return {
            "_lazy_init": lambda: None,
            "init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: self.count,
            "device": Device,
            "current_device": self.current_device,
            "set_device": self.set_device,
            "set_per_process_memory_fraction": self.set_per_process_memory_fraction,
            "mem_get_info": lambda device=None: (self.number(device), (FREE, TOTAL))[1],
            "empty_cache": lambda: None,
            "synchronize": lambda device=None: (self.number(device), None)[1],
            "get_device_capability": lambda device=None: (self.number(device), (9, 0))[1],
            "get_device_properties": lambda device=None: _properties(self.number(device)),
            "Stream": _Stream,
            "Event": _Event,
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda device=None: _Stream(device),
            **{name: lambda device=None: (self.number(device), 1 << 20)[1] for name in _COUNTS},
        }


_COUNTS = ("max_memory_reserved", "max_memory_allocated", "memory_reserved", "memory_allocated")


def _properties(number: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name=f"Pretend {number}", major=9, minor=0, multi_processor_count=132, total_memory=TOTAL
    )


class _Stream:
    """Does at once what it is given."""

    def __init__(self, device: Any = None, **_kwargs: Any) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Nothing is left to do."""

    wait_stream = wait_event = record_event = lambda self, *_args: None


class _Event:
    """Something that has happened."""

    def __init__(self, **_kwargs: Any) -> None:
        pass

    def record(self, *_args: Any) -> None:
        """It has happened."""

    synchronize = wait = record
