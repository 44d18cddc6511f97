"""The same weights in other formats: 4-bit integers with a scale for each group, with and without AWQ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exltune.exl3.hessian import Hessian
from exltune.schema.inventory import Inventory, LinearSpec, Role
from exltune.schema.mix import MixSize
from exltune.schema.peers import PeerMethod

BITS = 4
_LOWEST, _HIGHEST = -8, 7
#: Half of the range from _LOWEST to _HIGHEST: the largest weight of a group lands there.
_HALF_RANGE = (_HIGHEST - _LOWEST) / 2
#: AWQ's grid of exponents: 0, 1/20, ... 19/20.
ALPHAS = tuple(step / 20 for step in range(20))
_SMALLEST_MAGNITUDE = 1e-4


def round_to_nearest(weight: Tensor, group: int) -> Tensor:
    """A weight (out, in) as int4 would give it back: symmetric, an fp16 scale for each `group` inputs of each output.

    A last group may be shorter. Source: compressed-tensors 0.20, quantization/utils/helpers.py calculate_qparams
    (scale = absmax / 7.5), forward.py (_quantize: round, then clamp to -8..7).
    """
    out, width = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -width % group)).view(out, -1, group)  # (out, groups, group)
    scale = (padded.abs().amax(-1, keepdim=True) / _HALF_RANGE).half().float()  # (out, groups, 1)
    # A scale of zero, of a group of zeros or of weights below fp16's range, gives zeros.
    steps = torch.where(scale > 0, padded / scale.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
    return (steps.round().clamp(_LOWEST, _HIGHEST) * scale).view(out, -1)[:, :width]


def awq(weights: Sequence[Tensor], hessian: Hessian, group: int) -> tuple[list[Tensor], float]:
    """Weights (out, in) that read one input, rounded after AWQ's scaling, and the exponent chosen for them all.

    Inputs are scaled by magnitude**alpha, which a real checkpoint folds into whatever makes them, free of charge; the
    alpha is the one with the least output error. The first is 0, rounding to nearest, so the result is never worse in
    that error. Magnitude: root mean square over the calibration tokens, from the Hessian's diagonal.
    Source: Lin et al. 2023, "AWQ", equations 4 and 5; AutoAWQ 0.2, quantize/quantizer.py (_compute_best_scale: a grid
    of 20, scales normalized by sqrt(max * min)), where the magnitude is the mean of the absolute value.
    """
    mean = hessian.matrix / max(hessian.count, 1)  # (in, in)
    magnitude = mean.diagonal().clamp(min=0).sqrt().clamp(min=_SMALLEST_MAGNITUDE)  # (in,)
    best: tuple[float, float, list[Tensor]] | None = None
    for alpha in ALPHAS:
        scale = magnitude**alpha
        scale = scale / (scale.max() * scale.min()).sqrt()
        rounded = [round_to_nearest(weight * scale, group) / scale for weight in weights]
        error = sum(output_error(new - old, mean) for new, old in zip(rounded, weights, strict=True))
        if best is None or error < best[0]:
            best = error, alpha, rounded
    assert best is not None, "the grid has entries"
    return best[2], best[1]


def output_error(error: Tensor, mean: Tensor) -> float:
    """tr(E H Eᵀ) in fp64: the mean square of the output's error, for a weight's error (out, in) and H (in, in)."""
    exact = error.double()
    return float(((exact @ mean.double()) * exact).sum())


@dataclass(frozen=True)
class PeerLayer:
    """Linears of one layer as a peer gives them back, (out, in) fp32 by key. alphas: exponents that AWQ chose."""

    method: PeerMethod
    group: int
    weights: Mapping[str, Tensor]
    alphas: tuple[float, ...] = ()


def peer_layers(
    weights: Mapping[str, Tensor], hessians: Mapping[str, Hessian], groups: Iterable[int]
) -> Iterator[PeerLayer]:
    """All peers of one layer; linears with the same Hessian object read one input and share a scaling."""
    sites: dict[int, list[str]] = {}
    for key in weights:
        sites.setdefault(id(hessians[key]), []).append(key)
    for group in groups:
        nearest = {key: round_to_nearest(weight, group) for key, weight in weights.items()}
        yield PeerLayer(PeerMethod.RTN, group, nearest)
        scaled: dict[str, Tensor] = {}
        alphas = []
        for keys in sites.values():
            found, alpha = awq([weights[key] for key in keys], hessians[keys[0]], group)
            scaled |= dict(zip(keys, found, strict=True))
            alphas.append(alpha)
        yield PeerLayer(PeerMethod.AWQ, group, scaled, tuple(alphas))


def peer_size(inventory: Inventory, group: int) -> MixSize:
    """Bytes of W4A16: 4 bits a weight, an fp16 scale for each group of each output, fp16 head, gates and biases.

    bpw: bits of all linears but the head over their own weights (no padding). Zero points there are none, and AWQ's
    scales are folded away, so both peers have the same bytes.
    """
    head = [spec for spec in inventory.linears if spec.role is Role.HEAD]
    others = [spec for spec in inventory.linears if spec.role is not Role.HEAD]
    head_bytes = sum(_half_bytes(spec) for spec in head)
    other_bytes = sum(_half_bytes(spec) if spec.role.fp16 else peer_bytes(spec, group) for spec in others)
    payload = sum(_numel(spec) * BITS // 8 for spec in others if not spec.role.fp16)
    payload += sum(2 * _numel(spec) for spec in head)
    return MixSize(
        size_bytes=head_bytes + other_bytes,
        bpw=8 * other_bytes / sum(map(_numel, others)),
        head_bpw=8 * head_bytes / sum(map(_numel, head)),
        overhead_bytes=head_bytes + other_bytes - payload,
    )


def peer_bytes(spec: LinearSpec, group: int) -> int:
    """Bytes of one linear: packed weights, scales, bias."""
    scales = spec.out_features * -(-spec.in_features // group)
    return -(-_numel(spec) * BITS // 8) + 2 * scales + 2 * spec.out_features * spec.bias


def _half_bytes(spec: LinearSpec) -> int:
    return 2 * _numel(spec) + 2 * spec.out_features * spec.bias


def _numel(spec: LinearSpec) -> int:
    return spec.in_features * spec.out_features
