"""Quantize linears layer by layer; a finished linear is yielded at once, so that the caller can keep it."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from exltune.engines.base import Engine, LayerCapture, Progress
from exltune.exl3.codebooks import Codebook
from exltune.exl3.trellis import cores
from exltune.schema.inventory import Inventory, Role

if TYPE_CHECKING:
    from torch import Tensor

    from exltune.exl3.hessian import RotatedHessian
    from exltune.exl3.linear import QuantizedLinear
    from exltune.exl3.quantizer import QuantStats


class TensorJob(NamedTuple):
    """A linear to quantize and its bit width."""

    key: str
    bits: float


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A finished job. `rare_experts` names experts of the layer that the model's own routing reached too seldom."""

    job: TensorJob
    linear: QuantizedLinear
    stats: QuantStats
    rare_experts: tuple[str, ...]


def all_jobs(inventory: Inventory, widths: Collection[float], head_widths: Collection[float]) -> list[TensorJob]:
    """Every linear of the groups at every width, and the head at its own ones."""
    keys = [spec.key for spec in inventory.linears if spec.role not in (Role.HEAD, Role.ROUTER)]
    return [TensorJob(key, bits) for key in keys for bits in widths] + [
        TensorJob(key, bits) for key in inventory.head.tensors for bits in dict.fromkeys(head_widths)
    ]


def quantize_tensors(
    engine: Engine,
    tokens: Tensor,
    jobs: Collection[TensorJob],
    codebook: Codebook,
    progress: Progress | None = None,
) -> Generator[QuantizedTensor, None, None]:
    """Yield jobs as they finish; Hessians come from tokens (rows, T) on the reference model.

    A tensor's result depends on the model, the tokens and its own job alone, never on which other jobs there are.
    Who stops early closes the generator, or its threads go on to the end of the layer.
    progress counts weights. Raises: all that the engine raises.
    """
    widths: dict[str, list[float]] = {}
    for job in jobs:
        widths.setdefault(job.key, []).append(job.bits)
    sizes = {spec.key: spec.padded_in * spec.padded_out for spec in engine.inventory.linears}
    total, done = sum(sizes[job.key] for job in jobs), 0
    for layer in engine.capture(tokens, _whole_layers(engine.inventory, widths)):
        for finished in _quantize_layer(engine, layer, widths, codebook):
            done += sizes[finished.job.key]
            if progress is not None:
                progress(done, total, finished.job.key)
            yield finished


def _whole_layers(inventory: Inventory, keys: Collection[str]) -> list[str]:
    """All linears of every layer that has a wanted one: who shares a Hessian must not depend on finished work."""
    layers = {spec.layer for spec in inventory.linears if spec.key in keys}
    return [spec.key for spec in inventory.linears if spec.layer in layers and spec.role is not Role.ROUTER]


def _quantize_layer(
    engine: Engine, layer: LayerCapture, widths: dict[str, list[float]], codebook: Codebook
) -> Iterator[QuantizedTensor]:
    """The layer's jobs in order, as many at a time as there are cores: the encoder runs without the GIL."""
    hessians = _rotate_once(layer)
    jobs = [TensorJob(key, bits) for key in layer.hessians for bits in widths.get(key, ())]

    def run(job: TensorJob) -> QuantizedTensor:
        linear, stats = engine.quantize(job.key, hessians[job.key], job.bits, codebook, job.key)
        return QuantizedTensor(job, linear, stats, layer.rare_experts)

    with ThreadPoolExecutor(cores(), thread_name_prefix="quantize") as pool:
        yield from pool.map(run, jobs)


def _rotate_once(layer: LayerCapture) -> dict[str, RotatedHessian]:
    """Linears with one input share its signs and factor; the first of them names the seed."""
    from exltune.exl3.quantizer import prepare_hessian

    rotated: dict[int, RotatedHessian] = {}
    for key, hessian in layer.hessians.items():
        if id(hessian) not in rotated:
            rotated[id(hessian)] = prepare_hessian(hessian, hessian.matrix.shape[0], key)
    return {key: rotated[id(hessian)] for key, hessian in layer.hessians.items()}
