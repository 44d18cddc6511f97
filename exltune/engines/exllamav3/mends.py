"""What exllamav3 1.6.5 does wrong with layers of which a part alone is quantized, put right in its own classes.

Its conversion makes such layers only if a recipe asks for them, and its kernels are tried on whole quants.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

#: Marks what is mended already.
_MENDED = "_exltune_mended"


def mend() -> None:
    """Mend exllamav3, which has been imported; safe to call twice."""
    mlp = import_module("exllamav3.modules.mlp").GatedMLP
    if not hasattr(mlp, _MENDED):
        mlp.load_local = _without_graph_for_plain_down(mlp.load_local)
        setattr(mlp, _MENDED, True)


def _without_graph_for_plain_down(load_local: Callable[..., None]) -> Callable[..., None]:
    """GatedMLP.load_local, which binds a graph for few tokens where gate and up are EXL3, whatever down is.

    The graph takes EXL3 alone and refuses another down with a TypeError; without it the three linears run.
    Source: exllamav3 1.6.5, modules/mlp.py GatedMLP.load_local, exllamav3_ext/libtorch/mlp_bc.h.
    """

    def load(self: Any, device: Any, load_slice: int, **kwargs: Any) -> None:
        down = self.downs[load_slice]
        if down.quant_type == "exl3":
            load_local(self, device, load_slice, **kwargs)
            return
        bound, down.inner.bc = down.inner.bc, None
        try:
            load_local(self, device, load_slice, **kwargs)
        finally:
            down.inner.bc = bound

    return load
