"""What in exllamav3 1.6.5 takes a GPU for granted, put right after it has been imported.

Only names inside exllamav3's own modules are replaced; torch itself stays as it is.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import torch
from exllamav3.conversion import convert_model
from exllamav3.loader.safetensors import SafetensorsCollection
from exllamav3.modules import block_sparse_mlp, linear
from exllamav3.modules.attention_fn import dispatch
from exllamav3.modules.attention_fn.torch import fn_torch_sdpa_fallback_nocache
from exllamav3.modules.quant.exl3_lib import hessian_packed, quantize
from torch import Tensor


def apply() -> None:
    """Replace them all."""
    _read_tensors_in_python()
    _attend_in_torch()
    _route_and_run_experts_one_by_one()
    _quantize_without_streams()
    _keep_the_hessian()
    _convert_on_the_cpu()


def _read_tensors_in_python() -> None:
    original = SafetensorsCollection.__init__

    def init(self: Any, directory: str, load_method: str | None = None, *args: Any, **kwargs: Any) -> None:
        original(self, directory, load_method or "python", *args, **kwargs)

    SafetensorsCollection.__init__ = init


def _attend_in_torch() -> None:
    dispatch.attn_fns[:] = [fn_torch_sdpa_fallback_nocache]


def _route_and_run_experts_one_by_one() -> None:
    load = block_sparse_mlp.BlockSparseMLP.load

    def load_with_routing(self: Any, device: torch.device, **kwargs: Any) -> None:
        load(self, device, **kwargs)
        # exllamav3 does both on CUDA alone. Fused kernels, which it binds to experts that are EXL3, are not here.
        if any(linear.quant_type != "exl3" for linear in (*self.gates, *self.ups, *self.downs)):
            self.load_local(**kwargs)
        self.load_routing(**kwargs)

    block_sparse_mlp.BlockSparseMLP.load = load_with_routing


class _TorchWithoutStreams(types.ModuleType):
    """torch as quantize.py sees it: streams that do nothing, on a current device 0."""

    cuda = types.SimpleNamespace(
        synchronize=lambda device=None: None,
        current_device=lambda: 0,
        Stream=lambda device=None: None,
        stream=lambda stream: contextlib.nullcontext(),
        mem_get_info=lambda device=None: (1 << 34, 1 << 34),
    )

    @staticmethod
    def device(name: Any) -> torch.device:
        """Device numbers name the CPU."""
        return torch.device("cpu") if isinstance(name, int) else torch.device(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _quantize_without_streams() -> None:
    quantize.torch = _TorchWithoutStreams("torch")
    # Allocates 2 GB at 1.5 bits for kernels that are not there.
    quantize.get_temp_buffers_frac = lambda device, whole: (torch.empty(1), torch.empty(1))


def _keep_the_hessian() -> None:
    """block_ldl takes `H.cpu()` for a copy, then writes the factor over H: on a CPU both would be the factor."""
    original = quantize.block_ldl

    def block_ldl(hessian: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        factor, _ = original(hessian.clone(), *args, **kwargs)
        return factor, hessian

    quantize.block_ldl = block_ldl


class _Stager:
    """Weights that are on the device already."""

    def __init__(self, device: torch.device) -> None:
        pass

    def prefetch(self, number: int, weight: Tensor) -> None:
        """Nothing is on its way."""

    def get(self, number: int, weight: Tensor) -> Tensor:
        """The weight in fp32, never the caller's own."""
        return weight.to(torch.float, copy=True)


def _convert_on_the_cpu() -> None:
    """The converter names devices by number and sums Hessians in a triton kernel."""
    make, convert = convert_model.make_quant_args, linear.Linear.convert_exl3

    def on_the_cpu(args: Any, idx: int, bits: float, devices: Any, *others: Any, **named: Any) -> Any:
        return make(args, idx, bits, [torch.device("cpu")] * len(devices), *others, **named)

    def without_swap(self: Any, *args: Any, override_swap_device: Any = None, **named: Any) -> Any:
        return convert(self, *args, **named)

    convert_model.torch = quantize.torch
    convert_model.make_quant_args = on_the_cpu
    linear.Linear.convert_exl3 = without_swap
    linear.accumulate_ = _accumulate
    quantize._WeightStager = _Stager


def _accumulate(packed: Tensor, rows: Tensor) -> None:
    """packed += xᵀx, its upper triangle in blocks, row by row of blocks; the rest of diagonal blocks is filled too."""
    block = hessian_packed.PACK_BLOCK
    width = -(-rows.shape[1] // block) * block
    padded = torch.nn.functional.pad(rows.float(), (0, width - rows.shape[1]))
    full = (padded.T @ padded).view(width // block, block, width // block, block).permute(0, 2, 1, 3)
    at = packed.view(-1, block, block)
    upper = torch.triu_indices(width // block, width // block)
    at += full[upper[0], upper[1]]
