"""A model of random weights with random base quants, of any shapes and in a moment: for timing, not for quality.

A trellis may hold any bits, so no encoder is needed; activations keep their size from layer to layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from exltune.assembly import assemble_quant
from exltune.exl3.linear import QuantizedLinear
from exltune.exl3.writer import PendingTensor, write_tensors
from exltune.inventory import inventory_from_config, model_shape, unquantized_shapes
from exltune.schema.defaults import DEFAULT_HEAD_BITS
from exltune.schema.inventory import Inventory, LinearSpec
from exltune.schema.mix import Choice, choice_of_bits

#: Random numbers are drawn once and repeated: 7 GB of a layer would take a minute to draw.
_BLOCK = 1 << 22


def write_random_model(root: Path, config: Mapping[str, Any], widths: Sequence[float]) -> dict[Choice, Path]:
    """Write `root/model` (bf16) and `root/quants/<width>` for each width, unless they are there; the quants' paths."""
    model, inventory, draw = root / "model", inventory_from_config(config), _Draw()
    if not (model / "config.json").is_file():
        model.mkdir(parents=True, exist_ok=True)
        write_tensors(model, _checkpoint(config, inventory, draw))
        (model / "config.json").write_text(json.dumps(dict(config)))
    paths = {choice_of_bits(bits): root / "quants" / f"{bits:g}bpw" for bits in widths}
    for bits, path in zip(widths, paths.values(), strict=True):
        if not (path / "config.json").is_file():
            path.mkdir(parents=True, exist_ok=True)
            specs = {spec.key: spec for spec in inventory.linears}
            linear = partial(_quantized, specs, inventory.head.tensors, bits, draw)
            settings = {"bits": bits, "head_bits": DEFAULT_HEAD_BITS, "calibration": {"rows": 0, "cols": 0}}
            assemble_quant(model, path, inventory, linear, {**settings, "out_scales": "always", "codebook": "mul1"})
    return paths


class _Draw:
    """Tensors of random numbers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._normal = torch.randn(_BLOCK, generator=generator).bfloat16()
        self._bits = torch.randint(-(1 << 15), 1 << 15, (_BLOCK,), generator=generator).to(torch.int16)

    def normal(self, shape: Sequence[int], scale: float) -> torch.Tensor:
        """bf16, of this spread."""
        return _repeated(self._normal, shape) * scale

    def trellis(self, shape: Sequence[int]) -> torch.Tensor:
        """int16, any bits."""
        return _repeated(self._bits, shape)

    def signs(self, size: int) -> torch.Tensor:
        """fp16, 1 or -1."""
        return self.normal([size], 1.0).sign().half()


def _repeated(block: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    count = prod(shape)
    return block.repeat(-(-count // len(block)))[:count].view(*shape)


def _checkpoint(config: Mapping[str, Any], inventory: Inventory, draw: _Draw) -> list[PendingTensor]:
    shapes = {spec.key: (spec.out_features, spec.in_features) for spec in inventory.linears if not spec.role.fp16}
    plain = unquantized_shapes(model_shape(config))
    weights = {f"{key}.weight": shape for key, shape in shapes.items()}
    biases = {f"{spec.key}.bias": (spec.out_features,) for spec in inventory.linears if spec.bias}
    return [
        PendingTensor(name, 2 * prod(shape), partial(_plain, draw, name, shape))
        for name, shape in {**plain, **weights, **biases}.items()
    ]


def _plain(draw: _Draw, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return draw.normal(shape, shape[-1] ** -0.5 if len(shape) > 1 else 0.1)


def _quantized(
    specs: Mapping[str, LinearSpec], head: Sequence[str], width: float, draw: _Draw, key: str
) -> list[PendingTensor]:
    spec, bits = specs[key], DEFAULT_HEAD_BITS if key in head else width
    shape = (spec.padded_in // 16, spec.padded_out // 16, int(16 * bits))
    suh = draw.signs(spec.padded_in) * spec.in_features**-0.5
    suh[spec.in_features :] = 0
    bias = torch.zeros(spec.padded_out, dtype=torch.half) if spec.bias else None
    linear = QuantizedLinear(draw.trellis(shape), suh, draw.signs(spec.padded_out), "mul1", bias)
    return [PendingTensor(name, tensor.nbytes, lambda it=tensor: it) for name, tensor in linear.tensors(key).items()]
