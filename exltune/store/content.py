"""The key of scores: the content of the weights that a mix swaps in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from exltune.inventory import group_hashes, model_fingerprint
from exltune.schema.inventory import Inventory
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Choice, Mix
from exltune.schema.probe import ProbedMix, Swap


class MixContent:
    """The content of a mix, by that of every group's tensors; a directory is read when first needed.

    reference: its directory where it is a quant, whose own weights are not a swap in whatever directory they lie.
    """

    def __init__(self, inventory: Inventory, reference: Path | None = None) -> None:
        self._groups = (*inventory.groups, inventory.head)
        self._reference = reference
        self._paths: dict[Choice, Path] = {}
        self._hashes: dict[Path, Mapping[str, str]] = {}

    def add(self, quants: Mapping[Choice, Path]) -> None:
        """Let mixes name these directories."""
        self._paths |= {choice: Path(path).resolve() for choice, path in quants.items()}

    def __call__(self, mix: Mix) -> ProbedMix:
        """The mix by its difference from the reference. Raises: as group_hashes."""
        swapped = {unit: choice for unit, choice in sorted(mix.choices.items()) if choice != REFERENCE}
        swaps = {unit: self._swap(unit, choice) for unit, choice in swapped.items()}
        own = {} if self._reference is None else self._of(self._reference.resolve())
        same = {unit for unit, swap in swaps.items() if swap.sha256 is not None and swap.sha256 == own.get(unit)}
        return ProbedMix(name=mix.name, swaps={unit: swap for unit, swap in swaps.items() if unit not in same})

    def _swap(self, unit: str, choice: Choice) -> Swap:
        if unit in (CACHE_K, CACHE_V):
            return Swap(choice=choice)
        directory = self._paths[choice]
        # Without tensors of its own (a tied head) a group is known by the directory as a whole.
        return Swap(choice=choice, sha256=self._of(directory).get(unit) or model_fingerprint(directory))

    def _of(self, directory: Path) -> Mapping[str, str]:
        """Hashes of all groups of a directory."""
        if directory not in self._hashes:
            self._hashes[directory] = group_hashes(directory, self._groups)
        return self._hashes[directory]
