"""The unquantized model's last hidden states, kept by row: most calls of an engine are about the same rows."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor


class ReferenceRows:
    """States of rows of tokens up to `limit_bytes`; those that no call was about for the longest go first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.nbytes = limit_bytes, 0
        self._rows: OrderedDict[bytes, Tensor] = OrderedDict()

    def find(self, tokens: Tensor) -> Tensor | None:
        """(rows, T, hidden) of tokens (rows, T), if every row of them is here."""
        keys = _keys(tokens)
        if not all(key in self._rows for key in keys):
            return None
        return torch.stack([self._rows[key] for key in keys])

    def keep(self, tokens: Tensor, states: Tensor) -> None:
        """Keep states (rows, T, hidden) of tokens (rows, T), none of them if they are too many."""
        if states.nbytes > self.limit_bytes:
            return
        for key, state in zip(_keys(tokens), states, strict=True):
            if key not in self._rows:
                # A call's own buffers end with it.
                self._rows[key] = state.clone()
                self.nbytes += state.nbytes
            self._rows.move_to_end(key)
        while self.nbytes > self.limit_bytes:
            self.nbytes -= self._rows.popitem(last=False)[1].nbytes


def _keys(tokens: Tensor) -> list[bytes]:
    return [hashlib.sha256(row.numpy().tobytes()).digest() for row in tokens.contiguous()]
