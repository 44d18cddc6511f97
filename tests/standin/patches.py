"""What in exllamav3 1.6.5 takes a GPU for granted, put right after it has been imported.

Only names inside exllamav3's own modules are replaced; torch itself stays as it is.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any, cast
from unittest import mock

import torch
from exllamav3.conversion import convert_model
from exllamav3.loader.safetensors import SafetensorsCollection
from exllamav3.modules import attn, block_sparse_mlp, linear
from exllamav3.modules.attention_fn import dispatch
from exllamav3.modules.attention_fn import torch as attention
from exllamav3.modules.quant.exl3_lib import hessian_packed, quantize
from torch import Tensor

_ORIGINALS: dict[tuple[Any, str], Any] = {}
#: What needs no card but something that says that it is one: tests/standin/pretend gives it.
_FOR_CARDS = (
    (SafetensorsCollection, "__init__"),
    (block_sparse_mlp.BlockSparseMLP, "load"),
    (quantize, "block_ldl"),
    (quantize, "_WeightStager"),
    (convert_model, "make_quant_args"),
    (linear.Linear, "convert_exl3"),
)


def apply() -> None:
    """Replace them all."""
    _read_tensors_in_python()
    _attend_in_torch()
    _route_and_run_experts_one_by_one()
    _quantize_without_streams()
    _keep_the_hessian()
    _convert_on_the_cpu()


@contextlib.contextmanager
def for_cards() -> Iterator[None]:
    """exllamav3's own code meanwhile, but for what takes a real card."""
    from tests.standin.pretend.kernels import on_one_card

    with contextlib.ExitStack() as stack:
        for owner, name in _FOR_CARDS:
            stack.enter_context(mock.patch.object(owner, name, _ORIGINALS[owner, name]))
        for module in (quantize, convert_model):
            stack.enter_context(mock.patch.object(module, "torch", _TorchNamingCards("torch")))
        stack.enter_context(mock.patch.object(linear, "accumulate_", on_one_card("accumulate_", _accumulate)))
        yield


def _replace(owner: Any, name: str, value: Any) -> None:
    _ORIGINALS[owner, name] = getattr(owner, name)
    setattr(owner, name, value)


def _read_tensors_in_python() -> None:
    original = SafetensorsCollection.__init__

    def init(self: Any, directory: str, load_method: str | None = None, *args: Any, **kwargs: Any) -> None:
        original(self, directory, load_method or "python", *args, **kwargs)

    _replace(SafetensorsCollection, "__init__", init)


def _attend_in_torch() -> None:
    dispatch.attn_fns[:] = [attention.fn_torch_sdpa_fallback_nocache, _attend_to_pages]
    # The graph of a decode step is not here; what card it would be on, and that torch is slow, is not asked or told.
    attn._bc_attn_enable = False
    attention.sdpa_prefill = lambda device: False
    attention.has_warned_sdpa_fallback = True


def _attend_to_pages(args: Any) -> Tensor | None:
    """Attention with an fp16 cache in pages, which exllamav3 has in torch for large heads alone."""
    if not args.has_kv_cache():
        return None
    given = (args.q, args.k, args.v, args.k_cache, args.v_cache, args.block_table, args.cache_seqlens)
    found = attention._torch_bighead_fallback(*given, causal=args.causal, softmax_scale=args.sm_scale)
    return cast("Tensor", found)


def _route_and_run_experts_one_by_one() -> None:
    load = block_sparse_mlp.BlockSparseMLP.load

    def load_with_routing(self: Any, device: torch.device, **kwargs: Any) -> None:
        load(self, device, **kwargs)
        # exllamav3 does both on CUDA alone. Fused kernels, which it binds to experts that are EXL3, are not here.
        if any(linear.quant_type != "exl3" for linear in (*self.gates, *self.ups, *self.downs)):
            self.load_local(**kwargs)
        self.load_routing(**kwargs)

    _replace(block_sparse_mlp.BlockSparseMLP, "load", load_with_routing)


class _TorchNamingCards(types.ModuleType):
    """torch for the converter, to which numbers name CUDA devices; torch itself asks its build for them."""

    @staticmethod
    def device(name: Any) -> torch.device:
        """Device numbers name cards."""
        return torch.device("cuda", name) if isinstance(name, int) else torch.device(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


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
    _replace(quantize, "torch", _TorchWithoutStreams("torch"))
    # Allocates 2 GB at 1.5 bits for kernels that are not there.
    _replace(quantize, "get_temp_buffers_frac", lambda device, whole: (torch.empty(1), torch.empty(1)))


def _keep_the_hessian() -> None:
    """block_ldl takes `H.cpu()` for a copy, then writes the factor over H: on a CPU both would be the factor."""
    original = quantize.block_ldl

    def block_ldl(hessian: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        factor, _ = original(hessian.clone(), *args, **kwargs)
        return factor, hessian

    _replace(quantize, "block_ldl", block_ldl)


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

    _replace(convert_model, "torch", quantize.torch)
    _replace(convert_model, "make_quant_args", on_the_cpu)
    _replace(linear.Linear, "convert_exl3", without_swap)
    _replace(linear, "accumulate_", _accumulate)
    _replace(quantize, "_WeightStager", _Stager)


def _accumulate(packed: Tensor, rows: Tensor) -> None:
    """packed += xᵀx, its upper triangle in blocks, row by row of blocks; the rest of diagonal blocks is filled too."""
    block = hessian_packed.PACK_BLOCK
    width = -(-rows.shape[1] // block) * block
    padded = torch.nn.functional.pad(rows.float(), (0, width - rows.shape[1]))
    full = (padded.T @ padded).view(width // block, block, width // block, block).permute(0, 2, 1, 3)
    at = packed.view(-1, block, block)
    upper = torch.triu_indices(width // block, width // block)
    at += full[upper[0], upper[1]]
