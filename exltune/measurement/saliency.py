"""The effect of tensors on their own outputs, where swapping each alone would cost too much or cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from exltune.engines.base import Engine, LayerCapture
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import TensorSaliency
from exltune.schema.mix import Choice

if TYPE_CHECKING:
    from torch import Tensor


#: The level at which tensors are looked at, and the rows of the search set whose inputs tell.
SALIENCY_LEVEL, _ROWS = 4, 16


def saliencies(engine: Engine, level: int, lowest: Choice, tokens: Tensor) -> tuple[TensorSaliency, ...]:
    """Saliency of every tensor at level 4, of none at others. lowest: the base quant with the fewest bits."""
    if level != SALIENCY_LEVEL:
        return ()
    inventory = engine.inventory
    keys = [key for group in inventory.groups for key in group.tensors]
    return tensor_saliency(inventory, engine.rfn(lowest, keys), engine.capture(tokens[:_ROWS], keys))


def tensor_saliency(
    inventory: Inventory, errors: Mapping[str, float], captures: Iterable[LayerCapture]
) -> tuple[TensorSaliency, ...]:
    """Saliency of every linear in a group, in forward order: rfn * the norm of its input.

    errors: rfn of every linear in the lowest quant. captures: Hessians of every layer's inputs on the reference model.
    A routed expert's is weighed by the share of the tokens that the model's own routing sends there.
    """
    groups = {key: group.id for group in inventory.groups for key in group.tensors}
    found = []
    for capture in captures:
        for key, hessian in capture.hessians.items():
            if key not in groups:
                continue
            norm = float(np.sqrt(float(hessian.matrix.diagonal().double().mean()) / max(hessian.count, 1)))
            tokens = capture.expert_tokens.get(key.rpartition(".")[0])
            share = 1.0 if tokens is None else tokens / max(hessian.count, 1)
            found.append(
                TensorSaliency(
                    key=key,
                    group=groups[key],
                    rfn=errors[key],
                    input_rms=norm,
                    tokens=tokens,
                    saliency=errors[key] * norm * float(np.sqrt(share)),
                )
            )
    order = {key: place for place, key in enumerate(groups)}
    return tuple(sorted(found, key=lambda one: order[one.key]))
