"""What scores are known by: the content of the weights that a mix swaps in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from exltune.errors import QuantMismatchError
from exltune.inventory import group_hashes, model_fingerprint
from exltune.schema.inventory import Inventory
from exltune.schema.mix import CACHE_K, CACHE_V, REFERENCE, Choice, Mix
from exltune.schema.probe import ProbedMix, Swap

#: Name, bytes, time and inode of every file that a model's directory is known by.
DirectoryState = tuple[tuple[str, int, int, int], ...]


def directory_state(directory: Path) -> DirectoryState:
    """What changes when the weights in a directory are replaced; nothing where there is none."""
    files = sorted((*directory.glob("*.safetensors"), *directory.glob("config.json")))
    stats = ((file.name, file.stat()) for file in files)
    return tuple((name, found.st_size, found.st_mtime_ns, found.st_ino) for name, found in stats)


class MixContent:
    """Tells what a mix is made of, by the content of every group's tensors; a directory is read when first needed.

    reference: its directory where it is a quant, whose own weights are no swap in whatever directory they lie.
    """

    def __init__(self, inventory: Inventory, reference: Path | None = None) -> None:
        self._groups = (*inventory.groups, inventory.head)
        self._reference = reference
        self._paths: dict[Choice, Path] = {}
        self._hashes: dict[Path, Mapping[str, str]] = {}
        self._states: dict[Path, DirectoryState] = {}

    def add(self, quants: Mapping[Choice, Path]) -> None:
        """Let mixes name these directories. Raises: as check."""
        self.check(quants.values())
        self._paths |= {choice: Path(path).resolve() for choice, path in quants.items()}

    def check(self, directories: Iterable[Path]) -> None:
        """Refuse directories whose weights are not those any more that were read: engines hold the old ones.

        Raises: QuantMismatchError.
        """
        for directory in {Path(path).resolve() for path in directories} & self._states.keys():
            if directory_state(directory) != self._states[directory]:
                raise QuantMismatchError(
                    "it has been replaced since it was first read", where=str(directory), fix="Open another session"
                )

    def __call__(self, mix: Mix) -> ProbedMix:
        """The mix by what tells it from the reference. Raises: as group_hashes, and as check."""
        swapped = {unit: choice for unit, choice in sorted(mix.choices.items()) if choice != REFERENCE}
        self.check({self._paths[choice] for unit, choice in swapped.items() if unit not in (CACHE_K, CACHE_V)})
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
            self._states[directory] = directory_state(directory)
            self._hashes[directory] = group_hashes(directory, self._groups)
        return self._hashes[directory]
