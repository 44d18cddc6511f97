"""Hours that a large model takes on GPUs: base quants, measurement, search. Arithmetic, not a measurement.

    python benchmarks/hours.py [CONFIG] [--cards 8] [--read 6e9] [--flops 20e12] [--convert 10.6e6] ...

Every figure follows from the rates below, which are printed with it, and from what exltune counts: bytes read, layers
run, layers loaded. Nothing is taken to overlap, so a row is the sum of its columns. None of the rates was measured with
exltune on a GPU; gpu_throughput.py gives them (`seconds_per_layer_forward`, `load_seconds`, `bytes / seconds`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from exltune.budget import SizeModel
from exltune.inventory import groups_at_level, inventory_from_config, model_shape
from exltune.schema.defaults import DEFAULT_HEAD_BITS
from exltune.schema.inventory import Inventory

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
#: What others say their way takes (shared/UPSTREAM.md, DESIGN.md): hours for GLM-4.7.
PUBLISHED = {
    "exllamav3's measure, all quants": "24 (published)",
    "exllamav3's measure, two quants": "2-5 (published)",
}


@dataclass(frozen=True)
class Rates:
    """Rates and sizes, each with its source; all of them are assumptions until a GPU box has measured them.

    cards: GPUs that share the work. read: bytes/s from one disk, for all cards (a PCIe 4.0 NVMe drive's data sheet says
    7e9). pcie: bytes/s to a card (PCIe 4.0 x16 is 32e9 on paper). flops: of a card's, effective (an RTX 3090 has 71e12
    in fp16 on paper; routed experts see few tokens each). load: seconds that exllamav3 takes to set up a layer beside
    moving it (a guess: some hundred experts in Python). convert: weights/s of a card at any width (exllamav3 issue 53:
    Command A, 111e9 weights, 2 h 55 min at 3.12 bpw on one RTX 5090). sharing: of the cards' sum that a conversion
    reaches (a guess). calibration: tokens (exllamav3's default, 250 x
    2048). tokens: of the search set (64 rows of 256, the defaults). ram: bytes for hidden states, --max-ram.
    """

    cards: int = 8
    read: float = 6e9
    pcie: float = 20e9
    flops: float = 20e12
    load: float = 0.5
    convert: float = 10.6e6
    sharing: float = 0.7
    calibration: int = 250 * 2048
    tokens: int = 64 * 256
    ram: float = 256e9


@dataclass(frozen=True)
class Hours:
    """Hours of a task, by what they go to."""

    reading: float = 0.0
    loading: float = 0.0
    computing: float = 0.0
    encoding: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.reading + self.loading + self.computing + self.encoding

    def times(self, factor: float) -> Hours:
        """So many of it."""
        return Hours(*(factor * getattr(self, field.name) for field in fields(self)))


class Work:
    """What exltune does for a model of this config, in hours at some rates."""

    def __init__(self, config: Mapping[str, Any], rates: Rates, widths: Sequence[float] = WIDTHS) -> None:
        self.rates, self.widths = rates, widths
        self.inventory: Inventory = inventory_from_config(config)
        self.shape = model_shape(config)
        self.chosen = int(config.get("num_experts_per_tok", 0))
        sizes = SizeModel(self.inventory, "mul1")
        self.unquantized_bytes = sizes.uniform_size(16, 16).size_bytes
        self.quants_bytes = sum(sizes.uniform_size(bits, DEFAULT_HEAD_BITS).size_bytes for bits in widths)

    @property
    def weights(self) -> int:
        """Weights that are quantized, the head's among them."""
        return self.inventory.quantizable_parameters + self.inventory.head.numel

    @property
    def active_weights(self) -> float:
        """Weights of the layers that one token passes: of routed experts as many as are chosen."""
        routed = sum(group.numel for group in self.inventory.groups if group.role.part == "experts")
        others = self.inventory.quantizable_parameters - routed
        return others + (routed * self.chosen / self.shape.experts if routed else 0)

    def base_quants(self) -> Hours:
        """All widths through exllamav3's conversion, which shows every calibration token to every expert."""
        each = Hours(
            reading=self._hours(self.unquantized_bytes / self.rates.read),
            computing=self._computing(2 * self.rates.calibration * self.weights),
            encoding=self._hours(self.weights / (self.rates.convert * self.rates.cards * self.rates.sharing)),
        )
        return each.times(len(self.widths))

    def measurement(self) -> Hours:
        """Every part (l3) at every width: a swap in layer l runs the layers from l on; before are the reference's."""
        layers = self.inventory.layers
        parts = groups_at_level(self.inventory, 3)
        swaps = len(self.widths) * len(parts)
        forwards = layers + sum(len(self.widths) * (layers - (part.layer or 0)) for part in parts)
        batches = max(1.0, swaps * self._state_bytes() / self.rates.ram)
        # Each batch of swaps runs the unquantized layers behind it; each swap's own layer is set up for it.
        reading = batches * self.unquantized_bytes + self.quants_bytes
        loads = batches * layers + swaps
        return self._scored(reading, loads, forwards)

    def search(self, passes: float = 48.0, calls: int = 16) -> Hours:
        """So many mixes on all tokens, in so many calls that each read all quants; the model itself is read once."""
        layers = self.inventory.layers
        reading = calls * self.quants_bytes + self.unquantized_bytes
        return self._scored(reading, layers * (passes + 1), layers * (passes + 1))

    def _scored(self, reading: float, loads: float, forwards: float) -> Hours:
        """loads, forwards: of layers, the latter on all tokens."""
        per_layer = 2 * self.rates.tokens * self.active_weights / self.inventory.layers
        moved = reading / self.rates.pcie  # Every card takes all of it.
        return Hours(
            reading=self._hours(reading / self.rates.read),
            loading=self._hours(moved + loads * self.rates.load),
            computing=self._computing(forwards * per_layer),
        )

    def _state_bytes(self) -> float:
        """Hidden states of one mix on all tokens, in fp32."""
        return 4.0 * self.rates.tokens * self.inventory.hidden_size

    def _computing(self, flops: float) -> float:
        return self._hours(flops / (self.rates.flops * self.rates.cards))

    @staticmethod
    def _hours(seconds: float) -> float:
        return seconds / 3600


def rows(work: Work) -> dict[str, Hours]:
    """The table's rows."""
    everything = work.measurement()
    return {
        f"base quants at {', '.join(f'{bits:g}' for bits in work.widths)} bits": work.base_quants(),
        "l3 measurement, a tenth (the default)": everything.times(0.1),
        "l3 measurement, everything": everything,
        "search, 48 passes (the default)": work.search(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "tests" / "fixtures" / "configs" / "glm-4.7.json"
    parser.add_argument("config", type=Path, nargs="?", default=default)
    for field in fields(Rates):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    args = vars(parser.parse_args())
    work = Work(json.loads(args.pop("config").read_text()), Rates(**args))
    table = Table(title=f"Hours on {work.rates.cards} cards: predicted, not measured")
    for name in ("task", "reading", "loading", "computing", "encoding", "total"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for name, hours in rows(work).items():
        parts = (hours.reading, hours.loading, hours.computing, hours.encoding, hours.total)
        table.add_row(name, *(f"{part:.2f}" for part in parts))
    for name, told in PUBLISHED.items():
        table.add_row(name, "", "", "", "", told)
    console = Console(width=110)
    console.print(table)
    gib = 1 << 30
    console.print(
        f"{work.weights / 1e9:.0f}e9 weights, {work.active_weights / 1e9:.1f}e9 of them for each token; unquantized "
        f"{work.unquantized_bytes / gib:.0f} GiB, all quants {work.quants_bytes / gib:.0f} GiB.\n{work.rates}"
    )


if __name__ == "__main__":
    main()
