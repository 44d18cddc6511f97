"""How much each step does: on a card, and in a dry run, which takes the same path in a minute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_throughput import cut

from exltune.testing.tiny_models import CONFIGS
from parity.runner import ROOT


@dataclass(frozen=True)
class Sizes:
    """throughput and rate: configs of random models, whose layers are timed and converted.

    mixes: scored in one pass, of tokens (rows, T). prompt: tokens of a prefill. rate_tokens: calibration rows (rows,
    T). contexts: tokens in the KV cache; chunk: of a prefill. target_bpw: of the chain; passes: of its search.
    """

    throughput: Mapping[str, Any]
    mixes: int
    tokens: tuple[int, int]
    prompt: int
    rate: Mapping[str, Any]
    rate_tokens: tuple[int, int]
    contexts: tuple[int, ...]
    chunk: int
    target_bpw: float
    passes: float


def sizes(dry: bool) -> Sizes:
    """Of a run on a card, or of a dry one."""
    return _dry() if dry else _full()


def _full() -> Sizes:
    air = json.loads((ROOT / "tests" / "fixtures" / "configs" / "glm-4.5-air.json").read_text())
    return Sizes(
        # A dense layer and two with 128 experts: 10 GB, and 9 GB of quants.
        throughput=cut(air, 3),
        mixes=32,
        tokens=(32, 256),
        prompt=2048,
        # One layer with 8 of its experts: 0.28e9 weights.
        rate={**cut(air, 1, vocabulary=4096), "first_k_dense_replace": 0, "n_routed_experts": 8},
        rate_tokens=(16, 2048),
        contexts=(8192, 65536),
        chunk=2048,
        target_bpw=3.4,
        passes=12.0,
    )


def _dry() -> Sizes:
    tiny = CONFIGS["glm4moe"]
    return Sizes(
        throughput=tiny,
        mixes=3,
        tokens=(2, 16),
        prompt=32,
        rate={**tiny, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128},
        rate_tokens=(2, 32),
        contexts=(512,),
        chunk=64,
        target_bpw=3.0,
        passes=1.0,
    )
