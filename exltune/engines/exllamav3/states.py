"""Where hidden states lie between layers: in RAM up to a limit, beyond it in files that nobody else sees."""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from exltune.errors import StorageError


class StatePool:
    """Buffers for hidden states; those given back are used again.

    ram_bytes: how much may be in RAM at one time, page-locked where `pinned`. folder: where the rest goes, the system's
    folder for temporary files if None. The files have no name and vanish with the process, however it ends.
    """

    def __init__(self, ram_bytes: int, folder: Path | None = None, *, pinned: bool = False) -> None:
        self.ram_bytes, self.folder, self.pinned = ram_bytes, folder or Path(tempfile.gettempdir()), pinned
        self.peak_ram_bytes = self.spilled_bytes = 0
        self._in_ram = 0
        self._idle: defaultdict[int, list[Tensor]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A buffer of any content. Raises: StorageError where the disk is full."""
        nbytes = math.prod(shape) * dtype.itemsize
        idle = self._idle[nbytes]
        # States in RAM were made first, so they are taken first.
        buffer = idle.pop(0) if idle else self._new(nbytes)
        return buffer.view(dtype).view(shape)

    def empty_like(self, state: Tensor) -> Tensor:
        """A buffer of the same shape and kind."""
        return self.empty(tuple(state.shape), state.dtype)

    def give_back(self, state: Tensor) -> None:
        """Let the buffer of a state be used again."""
        self._idle[state.nbytes].append(state.view(-1).view(torch.uint8))

    def _new(self, nbytes: int) -> Tensor:
        # torch rounds page-locked buffers up (CachingHostAllocator.h).
        taken = 1 << (nbytes - 1).bit_length() if self.pinned else nbytes
        if self._in_ram + taken <= self.ram_bytes:
            self._in_ram += taken
            self.peak_ram_bytes = max(self.peak_ram_bytes, self._in_ram)
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.pinned)
        self.spilled_bytes += nbytes
        return _mapped(nbytes, self.folder)


def _mapped(nbytes: int, folder: Path) -> Tensor:
    """A buffer in a file without a name, all of it on the disk already: a full disk is told here, not by a signal."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return torch.frombuffer(mmap.mmap(file.fileno(), nbytes), dtype=torch.uint8)
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else f"hidden states cannot be put there ({error})"
        raise StorageError(
            what,
            where=str(folder),
            fix=f"Make room for {nbytes:,} bytes of hidden states, set TMPDIR to another disk, or raise `max_ram`",
        ) from error
