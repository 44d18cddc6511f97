"""The throughput figures at tiny size: natively on a GPU, else on the CPU, where they mean nothing and say so."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from exltune.exl3.directory import QuantDir
from exltune.inventory import load_inventory
from exltune.testing.tiny_models import CONFIGS
from tests.standin.devices import exllamav3_devices

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("gpu_throughput")
    for name in ("gpu_throughput", "random_model"):
        del sys.modules[name]


def test_figures_follow_from_what_was_counted(script: Any, tmp_path: Path) -> None:
    devices = exllamav3_devices()[:1]
    found = script.throughput(tmp_path, CONFIGS["glm4moe"], devices, 3, (2, 16), prompt=32)
    assert ("meaningless" in found) == (devices[0].type == "cpu")
    scoring = found["scoring"]
    one, many = scoring["one"], scoring["many"]
    assert (one["mixes"], many["mixes"]) == (1, 3)
    # The unquantized model's layers and one mix's; then those of three mixes that share next to nothing.
    assert one["layer_forwards"] == 2 * 3
    assert 9 <= many["layer_forwards"] <= 4 * 3
    assert many["tokens_per_second_and_mix"] == pytest.approx(2 * 16 * 3 / many["total_seconds"])
    on_disk = {path.parent.name: path.stat().st_size for path in tmp_path.rglob("*.safetensors")}
    reading = scoring["reading"]
    assert reading["one"]["bytes"] == on_disk["model"] + on_disk["2bpw"]
    assert reading["many"]["bytes"] == sum(on_disk[name] for name in ("model", "2bpw", "3bpw", "4bpw"))
    assert one["reading_share"] == pytest.approx(reading["one"]["seconds"] / one["total_seconds"])
    forward = one["forward_seconds"] / 6
    head = one["head_seconds"] / one["head_forwards"]
    counted = many["load_seconds"] + 1.2 * (forward * many["layer_forwards"] + head * many["head_forwards"])
    assert scoring["many_over_counted"] == pytest.approx(many["total_seconds"] / counted)


def test_quants_that_are_compared_have_the_same_bytes(script: Any, tmp_path: Path) -> None:
    quants = script.write_random_model(tmp_path, CONFIGS["glm4moe"], script.WIDTHS)
    serving = script.serving(tmp_path, quants, exllamav3_devices()[0], 8)
    assert {found["bytes"] for found in serving.values()} == {serving["uniform"]["bytes"]}
    assert all(found["decode_tokens_per_second"] > 0 for found in serving.values())
    fused, unfused = (QuantDir(tmp_path / name) for name in ("mixed_fused", "mixed_unfused"))
    groups = [group.tensors for group in load_inventory(tmp_path / "model").groups]
    assert [fused.bits(f"model.layers.{n}.self_attn.k_proj") for n in range(3)] == [3.0, 2.0, 4.0]
    assert [unfused.bits(f"model.layers.2.mlp.shared_experts.{name}_proj") for name in ("gate", "up")] == [2.0, 4.0]
    # exllamav3 loads no routed experts whose gate and up differ.
    assert [unfused.bits(f"model.layers.2.mlp.experts.1.{name}_proj") for name in ("gate", "up")] == [3.0, 3.0]
    assert all(len({fused.bits(key) for key in group}) == 1 for group in groups)


def test_a_model_is_cut_to_one_dense_layer_and_fewer_words(script: Any) -> None:
    config = json.loads((ROOT / "tests" / "fixtures" / "configs" / "glm-4.7.json").read_text())
    cut = script.cut(config, 3)
    changed = {key: cut[key] for key in cut if cut[key] != config[key]}
    assert changed == {"num_hidden_layers": 3, "vocab_size": 32768, "first_k_dense_replace": 1}


def test_random_weights_stay_finite(script: Any, tmp_path: Path) -> None:
    quants = script.write_random_model(tmp_path, CONFIGS["qwen3moe"], script.WIDTHS)
    engine = script.ExllamaEngine(tmp_path / "model", quants, devices=exllamav3_devices()[:1])
    mixes = script.random_mixes(engine.inventory, sorted(quants), 3)
    scores = engine.score(mixes, torch.arange(24).view(2, 12))
    assert all(0 < sum(score.kl_ref_mix) < 24 * 10 for score in scores)
    assert {choice for mix in mixes for choice in mix.choices.values()} == {"2", "3", "4"}
