"""A directory of ours, loaded and run by exllamav3, against transformers with our dequantized weights."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from exltune.exl3.directory import QuantDir
from exltune.inventory import load_inventory
from exltune.schema.inventory import Role


@contextmanager
def loaded(exllamav3: types.ModuleType, directory: Path) -> Iterator[Any]:
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(directory)))
    model.load(torch.device("cpu"), progressbar=False)
    yield model
    model.unload()


def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.forward(ids, {"attn_mode": "flash_attn_nc"}).float()[..., :256]


def reference_logits(source: Path, weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """transformers in fp32 with some linears replaced: weights (out, in) and biases by module key."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    names = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            target, index, part = place_of(name)
            place = names[target] if index is None else names[target][index]
            if part is not None:
                place = place.chunk(2)[part]
            place.copy_(tensor[tuple(slice(size) for size in place.shape)])
        return model(ids).logits


def place_of(name: str) -> tuple[str, int | None, int | None]:
    """Parameter, expert and half of it that a tensor on disk goes to; transformers fuses experts, gate first."""
    head, found, tail = name.partition(".experts.")
    if not found:
        return name, None, None
    index, projection, _ = tail.split(".")
    if projection == "down_proj":
        return f"{head}.experts.down_proj", int(index), None
    return f"{head}.experts.gate_up_proj", int(index), ("gate_proj", "up_proj").index(projection)


def dequantized(directory: Path) -> dict[str, torch.Tensor]:
    quant = QuantDir(directory)
    weights: dict[str, torch.Tensor] = {}
    for key in quant.keys:
        linear = quant.load(key)
        weights[f"{key}.weight"] = linear.dequantize().T
        if linear.bias is not None:
            weights[f"{key}.bias"] = linear.bias.float()
    return weights


def assert_close(logits: torch.Tensor, reference: torch.Tensor) -> None:
    """KL(reference‖logits) as small as fp16 allows, but for the few tokens whose router flips at a near tie."""
    p, q = reference.log_softmax(-1), logits.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).flatten()
    assert kl.median() < 1e-6
    assert (kl > 1e-5).float().mean() < 0.05


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 100), generator=torch.Generator().manual_seed(5))


def test_every_module_reconstructs_our_weight(
    exllamav3: types.ModuleType, exl3_dir: Callable[..., Path], kind: str
) -> None:
    directory = exl3_dir(kind, 3)
    quant = QuantDir(directory)
    with loaded(exllamav3, directory) as model:
        for key in quant.keys:
            ours, theirs = quant.load(key).dequantize(), model.find_module(key).inner.get_weight_tensor().float()
            torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3 * ours.abs().max().item())
    expected = {spec.key for spec in load_inventory(directory).linears if spec.role is not Role.ROUTER}
    assert set(quant.keys) == expected


def test_unquantized_forward_is_that_of_transformers(
    exllamav3: types.ModuleType, model_dir: Callable[[str], Path], kind: str, ids: torch.Tensor
) -> None:
    with loaded(exllamav3, model_dir(kind)) as model:
        assert_close(logits_of(model, ids), reference_logits(model_dir(kind), {}, ids))


@pytest.mark.parametrize("bits", [2, 3.5])
def test_quantized_forward_is_that_of_our_weights(
    exllamav3: types.ModuleType,
    model_dir: Callable[[str], Path],
    exl3_dir: Callable[..., Path],
    kind: str,
    bits: float,
    ids: torch.Tensor,
) -> None:
    directory = exl3_dir(kind, bits)
    expected = reference_logits(model_dir(kind), dequantized(directory), ids)
    with loaded(exllamav3, directory) as model:
        logits = logits_of(model, ids)
        few = logits_of(model, ids[:1, :6])
    assert expected.std() > 0.1
    assert_close(logits, expected)
    assert_close(few, expected[:1, :6])
