"""exllamav3 reads our measurement files and our recipes."""

from __future__ import annotations

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exltune.assembly.recipes import resolve_recipe
from exltune.budget import SizeModel
from exltune.exl3.directory import QuantDir
from exltune.inventory import load_inventory
from exltune.measurement import QuantHead, QuantSizes, probe_name, summarize, wider_probes
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import Measurement
from exltune.schema.mix import choice_of_bits
from exltune.schema.provenance import Provenance
from exltune.schema.recipe import Recipe
from exltune.schema.score import Score
from exltune.schema.tokens import DataOptions

LOW, HIGH = 2.0, 4.0


def measurement_of(inventory: Inventory, directories: dict[float, Path]) -> Measurement:
    """Through exltune's own summary, of made-up scores: the later a group, the more its bits matter."""
    model = SizeModel(inventory, "mul1")
    quants = []
    for bits, path in directories.items():
        size = model.uniform_size(bits, 6)
        by_group = {group.id: model.group_bytes(group.id, bits) for group in inventory.groups}
        quants.append(QuantSizes(choice_of_bits(bits), path, "", bits, size.bpw, size.size_bytes, by_group))
    scores = {}
    for quant in quants:
        scores[f"uniform@{quant.choice}"] = score(1.0 / quant.bits)
        for i, group in enumerate(inventory.groups, start=1):
            scores[probe_name(group.id, quant.choice)] = score(0.01 * i / quant.bits)
    nothing = Provenance(exltune_version="0", engine="none", model_path="", model_sha256="")
    head = QuantHead("6", 6, "mul1")
    scores |= {mix.name: score(0.01) for mix in wider_probes(inventory, head.distinct)}
    return summarize(inventory, 4, quants, head, scores, DataOptions(), nothing)


def score(kl: float) -> Score:
    rows = (kl * 10,) * 4
    return Score(mix="", positions=10, kl_ref_mix=rows, kl_mix_ref=rows, nll=rows, top_k=((10,) * 4,) * 5)


@pytest.fixture(scope="module")
def optimized(
    exllamav3: types.ModuleType,
    exl3_dir: Callable[..., Path],
    kind: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[float, Path], float]:
    """Directory that exllamav3's optimizer made from our measurement, the quants it had, and its target."""
    from exllamav3.conversion.optimize_model import main

    directories = {bits: exl3_dir(kind, bits) for bits in (LOW, HIGH)}
    inventory = load_inventory(directories[LOW])
    work = tmp_path_factory.mktemp("optimized")
    (work / "measurement.json").write_text(measurement_of(inventory, directories).model_dump_json())
    low, high = (SizeModel(inventory, "mul1").uniform_size(bits, 6).bpw for bits in (LOW, HIGH))
    arguments = {
        "measurement": str(work / "measurement.json"),
        "out_dir": str(work / "out"),
        "bitrate": (low + high) / 2,
        "shard_size": 8192,
        "in_dir": None,
    }
    main(arguments, {})
    return work / "out", directories, arguments["bitrate"]


def test_its_optimizer_builds_a_mix_from_our_measurement(
    exllamav3: types.ModuleType, optimized: tuple[Path, dict[float, Path], float]
) -> None:
    out, directories, target = optimized
    inventory, quant = load_inventory(out), QuantDir(out)
    bits = {group.id: quant.bits(group.tensors[0]) for group in inventory.groups}
    for group in inventory.groups:
        source = QuantDir(directories[bits[group.id]])
        for key in group.tensors:
            assert quant.bits(key) == bits[group.id]
            assert quant.load(key).trellis.equal(source.load(key).trellis)
    assert set(bits.values()) == {LOW, HIGH}
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(out)))
    size = SizeModel(inventory, "mul1").mix_size(bits | {inventory.head.id: 6})
    bpw, _, vram_bits = model.get_storage_info()
    extra = 8 * router_buffer_bytes(quant)
    assert 8 * size.size_bytes + extra == vram_bits
    assert 0.8 * target < bpw <= target + 1e-3


def router_buffer_bytes(quant: QuantDir) -> int:
    """exllamav3 counts what lies beside a router's weight, under its key, as the router's."""
    return sum(entry.nbytes for name, entry in quant.files.entries.items() if "e_score_correction_bias" in name)


@pytest.fixture
def source(exllamav3: types.ModuleType, model_dir: Callable[[str], Path], kind: str) -> tuple[Any, Inventory]:
    """The small model as exllamav3 sees it, and our inventory of it."""
    model = exllamav3.Model.from_config(exllamav3.Config.from_directory(str(model_dir(kind))))
    return model, load_inventory(model_dir(kind))


def strategy_from(model: Any, recipe: Recipe) -> dict[str, float]:
    """What exllamav3 makes of a recipe as it is written, without the head."""
    from exllamav3.conversion.allocation import create_q_strategy_from_recipe

    written = json.loads(recipe.model_dump_json(exclude_none=True))
    bits, _ = create_q_strategy_from_recipe(model, None, model.config, written["tensors"], written["head_bits"], 4)
    assert bits.pop("lm_head") == recipe.head_bits
    return bits


def test_our_recipe_is_taken_as_it_is(source: tuple[Any, Inventory]) -> None:
    model, inventory = source
    choices = [2, 3, 2.5, 4, 16]
    tensors = {key: choices[i % 5] for i, group in enumerate(inventory.groups) for key in group.tensors}
    assert strategy_from(model, Recipe(target_bpw=3.0, head_bits=6, tensors=tensors)) == tensors
    with pytest.raises(ValueError, match="missing bitrates"):
        strategy_from(model, Recipe(head_bits=6, tensors=dict(list(tensors.items())[1:])))


def test_globs_mean_the_same_to_both(source: tuple[Any, Inventory]) -> None:
    model, inventory = source
    globs = {
        "*": 3,
        "*.self_attn.?_proj": 4,
        "*.layers.1.*": 2.5,
        "model.layers.1.self_attn.k_proj": 5,
        "*down_proj": 6,
    }
    recipe = Recipe(head_bits=6, tensors=globs)
    assert resolve_recipe(recipe, inventory) == strategy_from(model, recipe)
