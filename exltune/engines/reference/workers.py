"""Threads that each run torch on one core: small layers lose more to splitting single operations than they gain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool of `count` threads with one torch thread each and no autograd; with one, work is done in place."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._threads_before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, initializer=_settle) if count > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            # A worker's setting becomes the default of threads that torch meets later.
            torch.set_num_threads(self._threads_before)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items, each as soon as it and those before it are done."""
        return map(work, items) if self._pool is None else self._pool.map(work, items)


def _settle() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
