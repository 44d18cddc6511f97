"""The arithmetic of hours, against figures worked out by hand."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exltune.inventory import groups_at_level

ROOT = Path(__file__).resolve().parents[2]
#: q and o 128 x 128, k and v 128 x 64 (stored 128 x 128), gate, up and down 128 x 256; the head 128 x 256.
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 2,
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "hidden_act": "silu",
}
LAYER, HEAD = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256, 128 * 256
SCALES = 4 * (2 * 256 + 4) + 3 * (2 * 384 + 4)
#: Both quants with their heads of 6 bits.
QUANTS = sum(2 * (163840 * bits // 8 + SCALES) + 32768 * 6 // 8 + 2 * 384 + 4 for bits in (2, 4))


@pytest.fixture(scope="module")
def hours() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("hours")
    sys.path.pop(0)
    del sys.modules["hours"]


@pytest.fixture
def work(hours: Any) -> Any:
    rates = {"cards": 2, "read": 1e3, "pcie": 1e4, "flops": 1e6, "load": 0.25, "convert": 100.0, "sharing": 0.5}
    return hours.Work(CONFIG, hours.Rates(**rates, calibration=10, tokens=8, ram=1e9), (2.0, 4.0))


def seconds(hours: Any) -> dict[str, float]:
    return {name: 3600 * getattr(hours, name) for name in ("reading", "loading", "computing", "encoding")}


def test_what_is_counted(work: Any) -> None:
    assert work.weights == 2 * LAYER + HEAD == 327680
    assert work.unquantized_bytes == 2 * work.weights
    assert work.quants_bytes == QUANTS == 313976
    assert work.active_weights == 2 * LAYER


def test_base_quants(work: Any) -> None:
    assert seconds(work.base_quants()) == pytest.approx(
        {"reading": 2 * 655.36, "loading": 0, "computing": 2 * 2 * 10 * 327680 / 2e6, "encoding": 2 * 3276.8}
    )


def test_measurement(work: Any) -> None:
    groups = len(groups_at_level(work.inventory, 3)) // 2
    forwards = 2 + 2 * (2 * groups + groups)
    assert seconds(work.measurement()) == pytest.approx(
        {
            "reading": (655360 + QUANTS) / 1e3,
            "loading": (655360 + QUANTS) / 1e4 + 0.25 * (2 + 4 * groups),
            "computing": forwards * 2 * 8 * LAYER / 2e6,
            "encoding": 0,
        }
    )


def test_states_that_do_not_fit_make_the_model_be_read_again(hours: Any, work: Any) -> None:
    groups, state = len(groups_at_level(work.inventory, 3)), 4 * 8 * 128
    small = hours.Work(CONFIG, hours.Rates(read=1e3, tokens=8, ram=state * groups), (2.0, 4.0))
    assert 3600 * small.measurement().reading == pytest.approx((2 * 655360 + QUANTS) / 1e3)


def test_search(work: Any) -> None:
    assert seconds(work.search(passes=3, calls=5)) == pytest.approx(
        {
            "reading": (5 * QUANTS + 655360) / 1e3,
            "loading": (5 * QUANTS + 655360) / 1e4 + 0.25 * 8,
            "computing": 8 * 2 * 8 * LAYER / 2e6,
            "encoding": 0,
        }
    )


@pytest.mark.slow
def test_only_chosen_experts_are_active(hours: Any) -> None:
    config = json.loads((ROOT / "tests" / "fixtures" / "configs" / "glm-4.7.json").read_text())
    work = hours.Work(config, hours.Rates())
    expert, routed = 3 * 5120 * 1536, 89 * 160
    assert work.active_weights == work.inventory.quantizable_parameters - expert * routed + expert * 89 * 8
    assert list(hours.rows(work))[1:] == [
        "l3 measurement, a tenth (the default)",
        "l3 measurement, everything",
        "search, 48 passes (the default)",
    ]
