"""Models whose KL(reference‖mix) is a known law, and measurements of them, to try searches and samplers on.

KL(reference‖mix) = (sum of z)^gamma plus interactions of pairs of units, times the difficulty of each row, plus
noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exltune.inventory import groups_at_level, inventory_from_config
from exltune.schema.evaluation import MethodRow
from exltune.schema.inventory import Inventory
from exltune.schema.measurement import MeasuredGroup, Measurement, MeasurementDetail, Probe, QuantRef
from exltune.schema.mix import CACHE_CHOICES, CACHE_K, CACHE_V, REFERENCE, choice_of_bits
from exltune.schema.provenance import Provenance
from exltune.schema.tokens import DataOptions
from exltune.search.law.costs import nmse
from exltune.search.problem.problem import SearchProblem, search_problem

WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
HEADS = {"4": 4.0, "6": 6.0, "8": 8.0}
CONFIG: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "vocab_size": 256,
}
INVENTORY = inventory_from_config(CONFIG)
_SHARE_OF_ROLE = {"attn": 0.3, "mlp": 1.0, "shared": 1.5, "experts": 1.0, "head": 0.5, "cache": 0.3}


@dataclass(frozen=True)
class Law:
    """scales: z of every key at 2 bits. pairs: (key, key, strength) adds strength * sqrt(z * z), negative ones too.

    rows: difficulty of each row of the search set. noise: share of a row's KL, drawn for each mix and row alone.
    """

    scales: Mapping[str, float]
    gamma: float = 0.8
    q: float = 2.0
    pairs: Sequence[tuple[str, str, float]] = ()
    noise: float = 0.0
    luck: Callable[[Mapping[str, str], int], float] | None = None

    def kld(self, choices: Mapping[str, str]) -> float:
        """KL(reference‖mix) without noise."""
        z = {key: self._z(key, choice) for key, choice in choices.items() if key in self.scales}
        energy = sum(z.values()) + sum(s * float(np.sqrt(z.get(a, 0.0) * z.get(b, 0.0))) for a, b, s in self.pairs)
        return float(max(energy, 1e-12) ** self.gamma)

    def rows(self, choices: Mapping[str, str], rows: Sequence[int]) -> npt.NDArray[np.float64]:
        """KL(reference‖mix) of the given rows."""
        found = []
        for row in rows:
            content = [f"{key}={choice}" for key, choice in sorted(choices.items()) if choice != REFERENCE]
            rng = np.random.default_rng([row, *("|".join(content)).encode()])
            difficulty = np.exp(0.5 * np.random.default_rng([1, row]).standard_normal())
            factor = 1 + self.noise * rng.standard_normal()
            lucky = self.luck(choices, row) if self.luck else 1.0
            found.append(self.kld(choices) * difficulty * max(factor, 0.01) * lucky)
        return np.array(found)

    def _z(self, key: str, choice: str) -> float:
        if choice == REFERENCE:
            return 0.0
        bits = float(choice)
        if key in (CACHE_K, CACHE_V):
            return self.scales[key] * float(4.0 ** (2 - bits))
        return self.scales[key] * float(float(nmse(bits) / nmse(2.0)) ** (self.q / 2))


def random_law(inventory: Inventory = INVENTORY, seed: int = 0, *, wider: bool = False, **changes: Any) -> Law:
    """A law with scales by role, spread over a factor of some; k and v, and gate and up, are alike."""
    rng = np.random.default_rng(seed)
    parts = groups_at_level(inventory, 3)
    total = sum(part.numel for part in parts)
    scales: dict[str, float] = {}
    for part in parts:
        share = _SHARE_OF_ROLE[part.role.partition(".")[0]] * part.numel / total
        scale = share * float(np.exp(0.8 * rng.standard_normal()))
        scales |= dict.fromkeys(part.members, scale / len(part.members))
    if wider:
        scales |= {inventory.head.id: 0.2, CACHE_K: 0.1, CACHE_V: 0.03}
    return Law(scales, **changes)


def measured(
    law: Law,
    inventory: Inventory = INVENTORY,
    *,
    level: int = 3,
    widths: Sequence[float] = WIDTHS,
    rows: int = 8,
    wider: bool = False,
) -> Measurement:
    """The measurement of single swaps under a law; its search set has rows 0 to `rows`."""

    def probe(members: Sequence[str], choice: str) -> Probe:
        klds = law.rows(dict.fromkeys(members, choice), range(rows))
        se = float(klds.std(ddof=1) / np.sqrt(rows)) if rows > 1 else 0.0
        return Probe(
            choice=choice,
            bits=float(choice),
            size_bytes=0,
            kld_nats=float(klds.mean()),
            kld_se_nats=se,
            kld_rows=tuple(klds),
        )

    choices = [choice_of_bits(width) for width in widths]
    groups = tuple(
        MeasuredGroup(**part.model_dump(), probes=tuple(probe(part.members, choice) for choice in choices))
        for part in groups_at_level(inventory, level)
    )
    head = {inventory.head.id: "6"}
    uniform = {choice: dict.fromkeys((group.id for group in inventory.groups), choice) | head for choice in choices}
    provenance = Provenance(exltune_version="0", engine="law", model_path="m", model_sha256="0")
    detail = MeasurementDetail(
        level=level,
        base=REFERENCE,
        quants={},
        quant_sha256={},
        head_choice="6",
        head_bits=6.0,
        codebook="mul1",
        data=DataOptions(),
        groups=groups,
        wider=_wider(inventory, probe) if wider else (),
        heads=HEADS if wider else {},
        mixes=tuple(
            MethodRow(
                name=f"uniform@{choice}",
                size_bytes=0,
                bpw=float(choice),
                kl_ref_quant=float(law.rows(mix, range(rows)).mean()),
                kl_ref_quant_se=0.0,
            )
            for choice, mix in uniform.items()
        ),
        provenance=provenance,
    )
    return Measurement(
        base=QuantRef(dir="2", bpw=2.0),
        alts=(),
        groups=(),
        base_kld=0.0,
        arch_string=inventory.architecture,
        exltune=detail,
    )


def _wider(inventory: Inventory, probe: Callable[[Sequence[str], str], Probe]) -> tuple[MeasuredGroup, ...]:
    cache = [choice for choice in CACHE_CHOICES if choice != REFERENCE]
    keys = ((inventory.head.id, "head", HEADS), (CACHE_K, CACHE_K, cache), (CACHE_V, CACHE_V, cache))
    return tuple(
        MeasuredGroup(
            id=key,
            members=(key,),
            role=role,
            layer=None,
            numel=inventory.head.numel if role == "head" else 0,
            probes=tuple(probe((key,), choice) for choice in choices),
        )
        for key, role, choices in keys
    )


def problem_of(law: Law, target_bpw: float, *, rows: int = 8, **changes: Any) -> SearchProblem:
    """A search over a law: its swaps measured on so many rows, at a target in bpw; changes: of search_problem."""
    return search_problem(
        INVENTORY,
        target_bpw=target_bpw,
        widths=WIDTHS,
        codebook="mul1",
        head_choice="6",
        head_bits=6.0,
        measurement=measured(law, rows=rows),
        **changes,
    )
