"""What probes are known by in a store: the hashes of the weights that they swap in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from exltune.engines.base import Engine
from exltune.inventory import group_hashes, model_fingerprint
from exltune.pipeline.common.reference import reference_quant
from exltune.pipeline.quants.base_quants import BaseQuant
from exltune.schema.inventory import Inventory
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Choice, Mix
from exltune.schema.probe import ProbeContext, ProbedMix, Swap
from exltune.store.identity import scoring_versions


def probe_context(engine: Engine) -> ProbeContext:
    """The model and the code that scores it."""
    return ProbeContext(
        model_sha256=model_fingerprint(engine.model_dir),
        reference=reference_quant(engine.model_dir),
        architecture=engine.inventory.architecture,
        engine=engine.name,
        code=scoring_code(engine.name),
    )


def scoring_code(engine: str) -> str:
    """What an engine computes with here: versions of exltune's algorithms and of the libraries."""
    return scoring_versions(engine)


class MixContent:
    """Tells what a mix of base quants is made of, by the content of every group's tensors.

    reference: its directory where it is a quant, whose own weights are no swap in whatever directory they lie.
    """

    def __init__(self, inventory: Inventory, quants: Iterable[BaseQuant], reference: Path | None = None) -> None:
        groups = (*inventory.groups, inventory.head)
        self._own = {} if reference is None else group_hashes(reference, groups)
        self._hashes: Mapping[Choice, Mapping[str, str]] = {
            quant.choice: group_hashes(quant.path, groups) for quant in quants
        }

    def __call__(self, mix: Mix) -> ProbedMix:
        """The mix by what tells it from the reference."""
        swapped = {unit: choice for unit, choice in sorted(mix.choices.items()) if choice != REFERENCE}
        swaps = {unit: self._swap(unit, choice) for unit, choice in swapped.items()}
        own = {unit for unit, swap in swaps.items() if swap.sha256 is not None and swap.sha256 == self._own.get(unit)}
        return ProbedMix(name=mix.name, swaps={unit: swap for unit, swap in swaps.items() if unit not in own})

    def _swap(self, unit: str, choice: Choice) -> Swap:
        return Swap(choice=choice, sha256=None if unit in (CACHE_K, CACHE_V) else self._hashes[choice][unit])
