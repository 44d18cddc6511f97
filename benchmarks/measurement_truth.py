"""Ground truth of the measurement benchmark: every swap on many rows, kept in blocks under out/measurement-benchmark/.

    python benchmarks/measurement_truth.py MODEL... [--blocks 8]

The rows are those of the search, selection and held-out sets of a larger deal of the same documents: none of them was
used for calibration. A replicate of the benchmark takes some of them as its search set; the others are its truth.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt
import torch
from search_stage import QUANTS, ROOT, quants_of
from torch import Tensor

from exltune.corpora.dealing import ids, token_sets
from exltune.engines.base import Engine
from exltune.inventory import groups_at_level
from exltune.measurement import ExhaustivePlan, QuantHead
from exltune.pipeline.common.session import EngineOptions, Session
from exltune.pipeline.demo import DEMO_DATA
from exltune.pipeline.quants.quantize import quantize
from exltune.schema.inventory import Inventory
from exltune.schema.mix import REFERENCE, Mix
from exltune.schema.tokens import Split
from exltune.store.quants.base_quants import BaseQuant, head_source

WORK = ROOT / "out" / "measurement-benchmark"
#: Rows of a block, and of all sets together in the larger deal.
BLOCK, DEALT = 64, 1600
#: Blocks on which designs are scored: a search set's worth.
DESIGN_BLOCKS = 2
#: Blocks of swaps: 512 rows.
BLOCKS = 8

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """One model with its pool of rows and the scores that were kept."""

    model: str

    @cached_property
    def session(self) -> Session:
        """On the model and the base quants of the search benchmark; these are made where they are not there yet."""
        folder = quants_of(self.model)
        session = Session(ROOT / "models" / self.model, DEMO_DATA, quants=folder, engine=EngineOptions("reference"))
        if not all((folder / QUANTS.directory(bits)).is_dir() for bits in QUANTS.widths):
            quantize(session, folder, QUANTS)
        return session

    @property
    def quants(self) -> tuple[BaseQuant, ...]:
        """The base quants, ascending in bits."""
        return self.session.base_quants

    @property
    def inventory(self) -> Inventory:
        """The model's inventory."""
        return self.session.inventory

    @cached_property
    def head(self) -> QuantHead:
        """The default head and all others."""
        default = head_source(self.quants, None)
        heads = {quant.choice: quant.head_bits for quant in self.quants}
        return QuantHead(default.choice, default.head_bits, default.codebook, heads)

    @property
    def choices(self) -> tuple[str, ...]:
        """All base quants, ascending in bits."""
        return tuple(quant.choice for quant in self.quants)

    @cached_property
    def tokens(self) -> Tensor:
        """(pool rows, T) in random order."""
        sets = token_sets(DEMO_DATA.model_copy(update={"rows": DEALT}), self.session.model)
        rows = torch.cat([ids(sets[split]) for split in (Split.SEARCH, Split.SELECTION, Split.HELD_OUT)])
        order = list(range(len(rows)))
        random.Random(6).shuffle(order)
        return rows[order]

    @property
    def engine(self) -> Engine:
        """An engine that knows the base quants."""
        assert self.quants, "the engine knows them from here on"
        return self.session.engine

    @cached_property
    def swaps(self) -> tuple[Mix, ...]:
        """The exhaustive plan's mixes."""
        plan = ExhaustivePlan.of(self.inventory, 3, self.choices, self.head, 1)
        return tuple(mix for batch in plan.batches for mix in batch.mixes)

    @cached_property
    def designs(self) -> tuple[Mix, ...]:
        """Random halves of the groups at 2 and at 3 bits, the others at the reference."""
        return tuple(half_design(self.inventory, choice, seed) for choice in ("2", "3") for seed in range(32))

    def block(self, name: str, mixes: Sequence[Mix], number: int) -> Floats:
        """(mixes, BLOCK) mean KL(reference‖mix) of each row of a block, scored once and kept."""
        file = WORK / "truth" / self.model / f"{name}-{number:03d}.npy"
        if not file.is_file():
            scores = self.engine.score(mixes, self.tokens[number * BLOCK : (number + 1) * BLOCK])
            values = np.array([np.array(score.kl_ref_mix) / score.positions for score in scores])
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_suffix(".part")
            with unfinished.open("wb") as handle:
                np.save(handle, values)
            unfinished.rename(file)
        return np.asarray(np.load(file))

    def kept(self, name: str, blocks: int) -> Floats:
        """(mixes, rows) of the first blocks, or of as many as there are."""
        files = sorted((WORK / "truth" / self.model).glob(f"{name}-*.npy"))[:blocks]
        return np.concatenate([np.load(file) for file in files], axis=1)


@cache
def pool_of(model: str) -> Pool:
    """One pool for each model and process."""
    return Pool(model)


def members(inventory: Inventory) -> dict[str, tuple[str, ...]]:
    """Groups of every part (l3), which is what is swapped here."""
    return {part.id: part.members for part in groups_at_level(inventory, 3)}


def half_design(inventory: Inventory, choice: str, seed: int) -> Mix:
    """Each part (l3) at the choice or at the reference by a fair coin."""
    coin = random.Random(f"{choice} {seed}")
    choices = {inventory.head.id: REFERENCE}
    for groups in members(inventory).values():
        choices |= dict.fromkeys(groups, choice if coin.random() < 0.5 else REFERENCE)
    return Mix(name=f"half@{choice}#{seed}", choices=choices)


def score_truth(models: Sequence[str], blocks: int) -> None:
    """Score the pool's first blocks, model by model in turn."""
    for number in range(blocks):
        for model in models:
            pool_of(model).block("swaps", pool_of(model).swaps, number)
            if number < DESIGN_BLOCKS:
                pool_of(model).block("designs", pool_of(model).designs, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    score_truth(arguments.models, arguments.blocks)


if __name__ == "__main__":
    main()
