"""What search and budget restate, against exllamav3's own functions on its own module tree."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exltune.budget import SizeModel
from exltune.exl3.tensors import TensorFiles
from exltune.inventory import inventory_from_config, load_inventory
from exltune.schema.inventory import Inventory
from exltune.schema.mix import MixSize
from exltune.search.baselines.strategy import exllamav3_strategy

HEAD_BITS = 6
BPW = (1.0, 1.7, 2.0, 2.1, 2.57, 3.15, 3.5, 3.84, 4.25, 5.0, 6.66, 8.0)


@pytest.fixture(scope="module")
def deep_model(
    exllamav3: types.ModuleType,
    kind: str,
    config_of: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Any, Inventory]:
    """exllamav3's module tree and our inventory of a config alone: seven layers, some dims not multiples of 128."""
    sparse = {"moe_intermediate_size": 192, "first_k_dense_replace": 2} if "moe" in kind else {}
    config = config_of(kind, num_hidden_layers=7, hidden_size=320, intermediate_size=640, **sparse)
    directory = tmp_path_factory.mktemp("deep")
    (directory / "config.json").write_text(json.dumps(config))
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(directory)))
    return model, inventory_from_config(config)


@pytest.mark.parametrize("half_steps", [False, True])
@pytest.mark.parametrize("hq", [0, 1, 2])
def test_strategy_is_exllamav3s_key_for_key(deep_model: tuple[Any, Inventory], hq: int, half_steps: bool) -> None:
    from exllamav3.conversion.allocation import create_q_strategy

    model, inventory = deep_model
    for bpw in BPW:
        theirs, _ = create_q_strategy(model, None, model.config, bpw, HEAD_BITS, 4, hq, half_steps=half_steps)
        assert theirs.pop("lm_head") == HEAD_BITS
        assert exllamav3_strategy(inventory, bpw, half_steps=half_steps, hq=hq) == theirs


def test_inventory_has_the_linears_of_exllamav3(deep_model: tuple[Any, Inventory]) -> None:
    from exllamav3.modules import Linear

    model, inventory = deep_model
    theirs = {m.key: (m.in_features, m.out_features, m.qmap is not None) for m in model if isinstance(m, Linear)}
    quantized = {key for group in (*inventory.groups, inventory.head) for key in group.tensors}
    ours = {}
    for spec in inventory.linears:
        grouped = spec.key in quantized
        dims = (spec.padded_in, spec.padded_out) if grouped else (spec.in_features, spec.out_features)
        ours[spec.key] = (*dims, grouped)
    assert ours == theirs


def test_groups_follow_exllamav3s_optimizer_targets(deep_model: tuple[Any, Inventory]) -> None:
    """Each group lies within one of its finest targets: no tie of ours joins what its optimizer tells apart."""
    model, inventory = deep_model
    finest = {key: i for m in model.modules for i, keys in leaves(m.optimizer_targets(), m.key) for key in keys}
    for group in inventory.groups:
        assert len({finest[key] for key in group.tensors}) == 1, group.id


def leaves(targets: list[Any], where: str) -> list[tuple[str, list[str]]]:
    """Lists of keys within nested lists, each with a name."""
    if targets and all(isinstance(item, str) for item in targets):
        return [(where, targets)]
    return [leaf for i, item in enumerate(targets) for leaf in leaves(item, f"{where}/{i}")]


@pytest.mark.parametrize(("bits", "codebook"), [(3, "mul1"), (2.5, "mul1"), (4, "3inst")])
def test_sizes_are_those_of_get_storage_info(
    exllamav3: types.ModuleType, exl3_dir: Callable[..., Path], kind: str, bits: float, codebook: str
) -> None:
    directory = exl3_dir(kind, bits, codebook, HEAD_BITS)
    assert_same_size(exllamav3, directory, SizeModel(load_inventory(directory), codebook).uniform_size(bits, HEAD_BITS))


def test_sizes_of_unquantized_models_too(
    exllamav3: types.ModuleType, model_dir: Callable[[str], Path], kind: str
) -> None:
    directory = model_dir(kind)
    assert_same_size(exllamav3, directory, SizeModel(load_inventory(directory), "mul1").uniform_size(16, 16))


def assert_same_size(exllamav3: types.ModuleType, directory: Path, size: MixSize) -> None:
    """To the byte, save for what lies beside a router's weight: of a model not loaded exllamav3 counts it in."""
    from exllamav3.modules import Linear

    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(directory)))
    bpw, head_bpw, vram_bits = model.get_storage_info()
    numel = sum(module.weights_numel() for module in model if isinstance(module, Linear) and module.key != "lm_head")
    entries = TensorFiles(directory).entries.items()
    beside = 8 * sum(entry.nbytes for name, entry in entries if name.endswith("e_score_correction_bias"))
    assert 8 * size.size_bytes + beside == vram_bits
    assert size.head_bpw == pytest.approx(head_bpw, rel=1e-12)
    assert size.bpw + beside / numel == pytest.approx(bpw, rel=1e-12)
